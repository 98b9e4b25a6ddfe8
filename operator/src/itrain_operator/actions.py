"""What a plan consists of: actions in the order in which they are to be carried out, the status to write, a wake-up."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Literal

from itrain_contract.layout import job_name
from itrain_contract.stageio import StageInput
from itrain_contract.stages import StageRef
from itrain_contract.status import ITrainRunStatus


class EventReason(StrEnum):
    """Reasons of the events on a run."""

    STAGE_STARTED = "StageStarted"
    STAGE_SUCCEEDED = "StageSucceeded"
    STAGE_RETRYING = "StageRetrying"
    STAGE_DISRUPTED = "StageDisrupted"
    ITERATION_COMPLETED = "IterationCompleted"
    STOPPED_EARLY = "StoppedEarly"
    METRIC_MISSING = "MetricMissing"
    SUSPENDED = "Suspended"
    RESUMED = "Resumed"
    WAITING = "Waiting"
    CREATE_REFUSED = "CreateRefused"
    INVALID_SPEC = "InvalidSpec"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsureJob:
    """Create the Job of one attempt unless it exists; an existing one is left as it is."""

    stage_input: StageInput
    parallelism: int = 1
    """Pods at a time; 1 for an unsharded stage."""
    max_failed_indexes: int = 0
    """Shards that may fail before the Job does (shards − quorum)."""

    @property
    def job_name(self) -> str:
        return job_name(self.stage_input.run.name, self.stage_input.ref, self.stage_input.attempt)

    @property
    def ref(self) -> StageRef:
        return self.stage_input.ref

    @property
    def attempt(self) -> int:
        return self.stage_input.attempt

    @property
    def shards(self) -> int | None:
        return self.stage_input.shards


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteJob:
    """Delete a Job and what belongs to it, pods first; nothing to do when this `uid` is gone already."""

    name: str
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetActive:
    """Give a Job's quota back, with its pods, or ask for it again: through its Workload, never its suspension."""

    job_uid: str
    workload: str
    active: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Emit:
    """An event on the run, posted after the status was written: a write that fails posts nothing."""

    type: Literal["Normal", "Warning"]
    reason: EventReason
    message: str


Action = EnsureJob | DeleteJob | SetActive | Emit


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One pass. `wake_after` is when to look again although nothing was observed; zero means at once."""

    actions: tuple[Action, ...]
    status: ITrainRunStatus
    wake_after: timedelta | None = None
