"""ITrainRunStatus: what the operator says of a run (API document, "Status"). Bounded to 32 KiB."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from itrain_contract.base import SpecModel
from itrain_contract.names import ConditionType, Phase, Reason
from itrain_contract.stages import StageKind, StageRef

Clipped = Annotated[str, StringConstraints(max_length=1024)]
Indexes = Annotated[str, StringConstraints(max_length=1024)]
Short = Annotated[str, StringConstraints(max_length=64)]
Key = Annotated[str, StringConstraints(max_length=2048)]


class Condition(SpecModel):
    """metav1.Condition."""

    type: ConditionType
    status: Literal["True", "False", "Unknown"]
    reason: Reason
    message: Clipped = ""
    observed_generation: int = 0
    last_transition_time: datetime


class Progress(SpecModel):
    done: int = 0
    total: int = 0
    percent: Annotated[int, Field(ge=0, le=100)] = 0
    eta_seconds: int | None = None
    text: Annotated[str, StringConstraints(max_length=128)] = ""


class CurrentJob(SpecModel):
    """The Job of the attempt under way; counts are exact, index lists are clipped."""

    job_name: Short
    uid: Short = ""
    active: int = 0
    succeeded: int = 0
    failed: int = 0
    completed_indexes: Indexes = ""
    failed_indexes: Indexes = ""


class Metric(SpecModel):
    name: Annotated[str, StringConstraints(max_length=63)]
    value: float


class StageRecord(SpecModel):
    """A stage that ended: what a later stage needs to find its results. One per stage of the run."""

    kind: StageKind
    iteration: int
    attempt: int
    digest: Short
    shards: Indexes | None = None
    """Completed indexes of a sharded stage, exact (interval form)."""
    seconds: int = 0

    @property
    def ref(self) -> StageRef:
        return StageRef(kind=self.kind, iteration=self.iteration)


class Best(SpecModel):
    iteration: int
    metric: Short
    value: float
    adapter_uri: Annotated[Key, Field(alias="adapterURI")] = ""


class IterationHistory(SpecModel):
    iteration: int
    stage_seconds: Annotated[dict[str, int], Field(max_length=8)] = {}
    metrics: Annotated[list[Metric], Field(max_length=32)] = []
    pairs: int = 0
    failed_trees: int = 0


class ITrainRunStatus(SpecModel):
    """Written once per reconcile pass, only when changed. Terminal phases latch."""

    observed_generation: int = 0
    phase: Phase = Phase.PENDING
    reason: Reason = Reason.RUN_PENDING
    message: Clipped = ""
    iteration: int = 0
    iteration_text: Short = ""
    stage: StageKind | None = None
    attempt: int = 0
    """Attempt of the current stage that exists or is to be made; 0 before the first."""
    progress: Progress = Progress()
    start_time: datetime | None = None
    completion_time: datetime | None = None
    conditions: Annotated[list[Condition], Field(max_length=8)] = []
    current: CurrentJob | None = None
    completed: Annotated[list[StageRecord], Field(max_length=512)] = []
    """Stages that succeeded, in the run's order."""
    retries: int = 0
    preemptions: int = 0
    retry_at: datetime | None = None
    """When the next attempt may start (back-off)."""
    running_seconds: float = 0.0
    """Running time so far: suspended and queued time does not count."""
    last_observed_time: datetime | None = None
    best: Best | None = None
    last_iteration: int | None = None
    """Set once the run decided to stop early: no iteration after this one starts."""
    metrics: Annotated[list[Metric], Field(max_length=64)] = []
    history: Annotated[list[IterationHistory], Field(max_length=100)] = []
    gpu_seconds: float = 0.0
    gpu_hours: Short = ""
    report_uri: Annotated[Key, Field(alias="reportURI")] = ""
    template_hash: Short = ""
