"""ITrainRunStatus: what the operator says of a run (API document, "Status"). Bounded to 32 KiB."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints, model_serializer, model_validator

from itrain_contract.base import SpecModel
from itrain_contract.layout import format_indexes
from itrain_contract.names import ConditionType, Phase, Reason
from itrain_contract.stages import StageKind, StageRef

Clipped = Annotated[str, StringConstraints(max_length=512)]
INDEXES_LIMIT = 1024
Indexes = Annotated[str, StringConstraints(max_length=INDEXES_LIMIT)]
Short = Annotated[str, StringConstraints(max_length=64)]
Key = Annotated[str, StringConstraints(max_length=2048)]


class Condition(SpecModel):
    """metav1.Condition."""

    type: ConditionType
    """What it is about."""
    status: Literal["True", "False", "Unknown"]
    """Whether it is so."""
    reason: Reason
    """Why (docs/troubleshooting.md)."""
    message: Clipped = ""
    """The same for people."""
    observed_generation: int = 0
    """The spec that it speaks of."""
    last_transition_time: datetime
    """Since when."""


class Progress(SpecModel):
    """How far the current stage is."""

    done: int = 0
    """Units of work done: steps, rows, trees, questions or shards."""
    total: int = 0
    """Of so many."""
    percent: Annotated[int, Field(ge=0, le=100)] = 0
    """100 · done/total."""
    eta_seconds: int | None = None
    """Expected time to the stage's end."""
    text: Annotated[str, StringConstraints(max_length=128)] = ""
    """What the stage says of itself, as in `loss 0.2689`."""


class CurrentJob(SpecModel):
    """The Job of the attempt under way; counts are exact, index lists are clipped."""

    job_name: Short
    """Name of the Job."""
    uid: Short = ""
    """UID of the Job."""
    active: int = 0
    """Pods that run or start."""
    succeeded: int = 0
    """Pods or shards that succeeded."""
    failed: int = 0
    """Pods or shards that failed."""
    completed_indexes: Indexes = ""
    """Shards that succeeded, as in `0-2,5`."""
    failed_indexes: Indexes = ""
    """Shards that failed for good."""
    start_time: datetime | None = None
    """When its pods were let go last; a later time than before tells that it lost its quota in between."""


class Metric(SpecModel):
    name: Annotated[str, StringConstraints(max_length=63)]
    """As in `dev/call_accuracy`."""
    value: float
    """Its value."""


class StageRecord(SpecModel):
    """A stage that succeeded: what a later stage needs to find its results.

    In the status it is one short text, `i1/rollout a2 0123456789abcdef 93s 0-7`: a run of a hundred iterations has four
    hundred of them and the whole status may have 32 KiB.
    """

    TEXT_PATTERN: ClassVar[str] = r"^i[0-9]+/[a-z]+ a[0-9]+ [0-9a-f]{16} [0-9]+s( [0-9,-]*\??)?$"

    kind: StageKind
    iteration: int
    attempt: int
    digest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
    """The first 16 digits of the StageInput's digest."""
    shards: Indexes | None = None
    """Completed indexes of a sharded stage (`layout.format_indexes`); a `?` at the end says that only those with a
    valid result count."""
    seconds: int = 0

    @property
    def ref(self) -> StageRef:
        return StageRef(kind=self.kind, iteration=self.iteration)

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("digest"), str):
            return {**value, "digest": value["digest"][:16]}
        if not isinstance(value, str):
            return value
        if not re.fullmatch(cls.TEXT_PATTERN, value):
            raise ValueError(f"{value!r} is no stage record, allowed: i<n>/<stage> a<n> <digest> <n>s [indexes]")
        stage, attempt, digest, seconds, *shards = value.split(" ")
        iteration, _, kind = stage.partition("/")
        return {
            "kind": kind,
            "iteration": int(iteration[1:]),
            "attempt": int(attempt[1:]),
            "digest": digest,
            "seconds": int(seconds[:-1]),
            "shards": shards[0] if shards else None,
        }

    @model_serializer
    def _to_text(self) -> str:
        text = f"{self.ref} a{self.attempt} {self.digest} {self.seconds}s"
        return text if self.shards is None else f"{text} {self.shards}"


class Best(SpecModel):
    """The best evaluation so far."""

    iteration: int
    """Its iteration; 0 is the warm-up."""
    metric: Short
    """What it is best in."""
    value: float
    """Value of the metric."""
    adapter_uri: Annotated[Key, Field(alias="adapterURI")] = ""
    """Where its adapter lies."""


class IterationHistory(SpecModel):
    iteration: int
    """Its number; 0 is the warm-up."""
    stage_seconds: Annotated[dict[str, int], Field(max_length=8)] = {}
    """Running time by stage."""
    metrics: Annotated[list[Metric], Field(max_length=32)] = []
    """What its evaluation measured."""
    pairs: int = 0
    """Preference pairs that it trained on."""
    failed_trees: int = 0
    """Trees that its rollout gave up."""
    search: Annotated[dict[str, int], Field(max_length=16)] = {}
    """What the iteration's rollout counted: trees, requests, tokens and what went wrong."""


class ITrainRunStatus(SpecModel):
    """Written once per reconcile pass, only when changed. Terminal phases latch."""

    observed_generation: int = 0
    """`metadata.generation` of the spec that the operator last acted on."""
    phase: Phase = Phase.PENDING
    """The last two never change again."""
    reason: Reason = Reason.RUN_PENDING
    """Why the phase is what it is (docs/troubleshooting.md)."""
    message: Clipped = ""
    """The same for people."""
    iteration: int = 0
    """Iteration of the current stage; 0 for prepare, warm-up and the first evaluation."""
    iteration_text: Short = ""
    """Iteration and `iterations.max` for `kubectl get`, as in `1/3`."""
    stage: StageKind | None = None
    """The current stage; the last one after the end."""
    attempt: int = 0
    """Attempt of the current stage that exists or is to be made; 0 before the first."""
    progress: Progress = Progress()
    progress_text: Short = ""
    """Progress in one line, for `kubectl get`."""
    start_time: datetime | None = None
    """When the first attempt was seen running."""
    completion_time: datetime | None = None
    """When the run succeeded or failed."""
    conditions: Annotated[list[Condition], Field(max_length=8)] = []
    """For `kubectl wait` and GitOps tools (docs/gitops.md); there is no `Ready`."""
    current: CurrentJob | None = None
    completed: Annotated[list[StageRecord], Field(max_length=512)] = []
    """Stages that succeeded, in the run's order."""
    retries: int = 0
    """Failed attempts that were tried again, over the whole run."""
    preemptions: int = 0
    """Attempts that were disrupted without a fault of theirs; not counted as retries."""
    failures: int = 0
    """Failed attempts of the current stage; `retry.limit` bounds them."""
    retry_at: datetime | None = None
    """When the next attempt may start (back-off, clean-up of the attempt before)."""
    attempt_seconds: float = 0.0
    """Running time of the current attempt."""
    pending_seconds: float = 0.0
    """Time that the current attempt waited for nodes or images."""
    running_seconds: float = 0.0
    """Running time so far: suspended and queued time does not count."""
    last_observed_time: datetime | None = None
    """Up to when the times above are counted."""
    best: Best | None = None
    best_text: Short = ""
    """The best value and its iteration, for `kubectl get`."""
    last_iteration: int | None = None
    """Set once it is decided, by an early stop or because export starts: no iteration after this one starts."""
    without_gain: int = 0
    """Iterations in a row whose metric gained too little (`iterations.stopWhen`)."""
    metrics: Annotated[list[Metric], Field(max_length=64)] = []
    """What the newest evaluation measured."""
    history: Annotated[list[IterationHistory], Field(max_length=100)] = []
    """The newest iterations, `historyLimit` of them."""
    gpu_seconds: float = 0.0
    """GPUs × running time so far, over all attempts."""
    gpu_hours: Short = ""
    """The same in hours, for `kubectl get`."""
    report_uri: Annotated[Key, Field(alias="reportURI")] = ""
    """Where export wrote the report."""
    template_hash: Short = ""
    """Hash of the pod settings of the current Job: an edit of them shows."""


STATUS_LIMIT_BYTES = 32 * 1024


def fit(status: ITrainRunStatus) -> ITrainRunStatus:
    """The status within 32 KiB of JSON: what is least needed is shortened first, and only as far as necessary.

    1. Exact index lists of iterations before the last one become ranges marked `?`; 2. those of all stages; 3. the
    oldest history goes. Counts, conditions, metrics and the records themselves always stay.
    """
    if size_bytes(status) <= STATUS_LIMIT_BYTES:
        return status
    status = _coarsen(status, before=status.iteration)
    if size_bytes(status) > STATUS_LIMIT_BYTES:
        status = _coarsen(status, before=status.iteration + 1)
    while size_bytes(status) > STATUS_LIMIT_BYTES and len(status.history) > 1:
        status = status.model_copy(update={"history": status.history[1:]})
    return status


def size_bytes(status: ITrainRunStatus) -> int:
    return len(status.model_dump_json(by_alias=True, exclude_none=True).encode())


def _coarsen(status: ITrainRunStatus, *, before: int) -> ITrainRunStatus:
    records = [
        record.model_copy(update={"shards": coarse_indexes(record.shards)}) if record.iteration < before else record
        for record in status.completed
    ]
    return status.model_copy(update={"completed": records})


def coarse_indexes(shards: str | None) -> str | None:
    """The whole range of an index list that has holes, marked `?`; a list without holes stays as it is."""
    if not shards or "," not in shards:
        return shards
    numbers = [int(number) for number in re.findall(r"[0-9]+", shards)]
    return f"{min(numbers)}-{max(numbers)}?"


def record_indexes(indexes: frozenset[int]) -> str:
    """The completed indexes for a StageRecord: exact where they fit, else the whole range marked `?`."""
    exact = format_indexes(indexes)
    return exact if len(exact) <= INDEXES_LIMIT else str(coarse_indexes(exact))
