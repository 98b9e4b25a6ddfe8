"""What the planner sees of the world: the run, and one view for each attempt's Job. Facts only, no judgement."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from itrain_contract.spec import ITrainRunSpec
from itrain_contract.stageio import RunIdentity, TerminationSummary
from itrain_contract.stages import StageRef
from itrain_contract.status import ITrainRunStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One ITrainRun as stored; `status` is what the last pass wrote."""

    name: str
    namespace: str
    uid: str
    generation: int
    spec: ITrainRunSpec
    status: ITrainRunStatus
    created: datetime
    storage: str
    """URI of the storage root as pods see it."""

    @property
    def identity(self) -> RunIdentity:
        return RunIdentity(name=self.name, namespace=self.namespace, uid=self.uid, storage=self.storage)


class JobState(StrEnum):
    WAITING = "Waiting"
    """Held back by a queue (its quota), not by the user."""
    PENDING = "Pending"
    """Admitted, but no pod runs yet: nodes, images, volumes."""
    ACTIVE = "Active"
    """At least one pod runs, or ran and is being replaced."""
    COMPLETE = "Complete"
    FAILED = "Failed"
    DELETING = "Deleting"

    @property
    def ended(self) -> bool:
        return self in (JobState.COMPLETE, JobState.FAILED)

    @property
    def live(self) -> bool:
        """It runs or will run without anybody's doing."""
        return self in (JobState.WAITING, JobState.PENDING, JobState.ACTIVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueView:
    """What a queue says of a Job that was given to it."""

    workload: str = ""
    """Name of the Workload that stands for the Job there; empty while there is none."""
    active: bool = True
    """Its `spec.active`: False takes the pods and the quota away until it is True again."""
    reason: str = ""
    """The queue's own word, `Pending`, `Preempted`, `ClusterQueueStopped`; empty while there is nothing to wait for."""
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """One attempt of one stage, as observed."""

    name: str
    uid: str
    ref: StageRef
    attempt: int
    state: JobState
    digest: str | None = None
    """Of the StageInput that it was created with."""
    shards: int | None = None
    """Completion indexes; None for an unsharded stage."""
    active: int = 0
    """Pods that run, exactly; `succeeded` and `failed` likewise."""
    succeeded: int = 0
    failed: int = 0
    completed: frozenset[int] = frozenset()
    failed_indexes: frozenset[int] = frozenset()
    started: datetime | None = None
    """When the present execution started: after a suspension or a restart of the machine, that restart."""
    finished: datetime | None = None
    exit_code: int | None = None
    """Of the failure that decided the Job; None where no process reported one."""
    disrupted: bool = False
    """Preempted, its node drained, or terminated from outside: nobody's fault."""
    reason: str = ""
    """The cluster's own word, `OOMKilled`, `ImagePullBackOff`, `Unschedulable`; empty when there is none."""
    message: str = ""
    summary: TerminationSummary | None = None
    """Of an unsharded stage; of a sharded one only where the observer could sum up its shards."""
    log_tail: str = ""
    foreign: bool = False
    """Not ours: something else bears the name."""
    former_run: bool = False
    """Left over from a deleted run of the same name."""
    progress_done: int = 0
    progress_total: int = 0
    progress_text: str = ""
    queue_name: str = ""
    """The queue that it was given to; empty for none."""
    queue: QueueView | None = None
    """None where nobody could ask, or there was no need to."""

    @property
    def ours(self) -> bool:
        return not (self.foreign or self.former_run)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The server's refusal of the last creation, until one succeeds."""

    job_name: str
    forbidden: bool
    """A matter of permission or quota (403); otherwise the object itself was rejected (422)."""
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """Everything under the run's names, in any order."""

    jobs: tuple[JobView, ...] = ()
    refusal: Refusal | None = None

    def ours(self) -> tuple[JobView, ...]:
        return tuple(view for view in self.jobs if view.ours)
