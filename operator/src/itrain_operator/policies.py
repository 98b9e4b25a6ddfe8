"""Small named checks, asked in order: the first that has an opinion decides the pass. Pure.

Each check reads the same frozen context and returns a verdict or None. `decide` is total: the last check always has an
opinion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from itrain_contract.names import ExitCode, Phase, Reason
from itrain_contract.stageio import printable
from itrain_contract.stages import StageRef, stage_spec
from itrain_contract.stagespec import ShardedStage, Stage
from itrain_contract.status import ITrainRunStatus
from itrain_operator.backoff import delay_s
from itrain_operator.observed import JobState, JobView, Refusal, Run

CLEANUP_LIMIT = timedelta(minutes=10)
"""How long an attempt waits for the one before to be gone: on a dead node that is for ever, and results are scoped to
their attempt."""
FATAL = {
    ExitCode.CONFIG: Reason.CONFIG_ERROR,
    ExitCode.DATA: Reason.DATA_ERROR,
    ExitCode.PERMANENT: Reason.PERMANENT_ERROR,
}
IMAGE_REASONS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
OUT_OF_MEMORY = "OOMKilled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a check may look at."""

    run: Run
    status: ITrainRunStatus
    """As stored, with the time up to `now` accounted."""
    ref: StageRef
    view: JobView | None
    """The Job under the name of the current attempt, whoever owns it."""
    older: tuple[JobView, ...]
    """Our Jobs of earlier attempts of the stage."""
    refusal: Refusal | None
    now: datetime

    @property
    def stage(self) -> Stage:
        return stage_spec(self.run.spec, self.ref.kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail:
    """The run ends."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Complete:
    """The stage succeeded."""

    view: JobView


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """The next attempt; a counted one follows a failure, the others a disruption."""

    reason: Reason
    message: str
    delay: timedelta
    counted: bool = True
    preempted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspend:
    """Hold, and end what runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """No Job of the attempt runs, and none may be made yet."""

    reason: Reason
    message: str
    until: datetime | None = None
    retry_at: datetime | None = None
    """Kept in the status: from when the wait is counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Create:
    """Make the Job of the current attempt."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """The Job is there; nothing to do but to tell how it stands."""

    view: JobView
    phase: Phase
    reason: Reason
    message: str


Verdict = Fail | Complete | Retry | Suspend | Wait | Create | Watch


def check_foreign(ctx: Context) -> Verdict | None:
    if ctx.view is None or not ctx.view.foreign:
        return None
    text = f"Job {ctx.view.name} exists and does not belong to this run: delete it, or name the run differently"
    return Fail(reason=Reason.FOREIGN_OBJECT, message=text)


def check_complete(ctx: Context) -> Verdict | None:
    """A sharded stage succeeds with its quorum, also where Kubernetes calls the Job failed."""
    view = ctx.view
    if view is None or not view.ours or not view.state.ended:
        return None
    if isinstance(ctx.stage, ShardedStage) and view.shards is not None:
        done = len(view.completed) >= quorum(ctx.stage, view.shards)
    else:
        done = view.state == JobState.COMPLETE
    return Complete(view=view) if done else None


def quorum(stage: ShardedStage, shards: int) -> int:
    """Shards that must succeed of a Job with `shards` of them: as many may fail as the spec allows now."""
    return min(shards, max(1, shards - (stage.shards - stage.quorum)))


def check_run_deadline(ctx: Context) -> Verdict | None:
    limit = ctx.run.spec.active_deadline_seconds
    if limit is None or ctx.status.running_seconds < limit:
        return None
    text = f"the run took {ctx.status.running_seconds:.0f} s of running time, spec.activeDeadlineSeconds allows {limit}"
    return Fail(reason=Reason.DEADLINE_EXCEEDED, message=text)


def check_gpu_hours(ctx: Context) -> Verdict | None:
    limit = ctx.run.spec.max_gpu_hours
    hours = ctx.status.gpu_seconds / 3600
    if limit is None or hours < limit:
        return None
    return Fail(
        reason=Reason.GPU_HOURS_EXCEEDED, message=f"{hours:.2f} GPU-hours used, spec.maxGpuHours allows {limit:g}"
    )


def check_fatal_exit(ctx: Context) -> Verdict | None:
    """64 and 65 end the run; so does 70, which a sharded stage answers through its quorum."""
    view = _failed(ctx)
    if view is None or view.exit_code not in FATAL:
        return None
    if view.exit_code == ExitCode.PERMANENT and view.failed_indexes:
        return None
    return Fail(reason=FATAL[ExitCode(view.exit_code)], message=failure_text(ctx, view))


def check_disrupted(ctx: Context) -> Verdict | None:
    """A preempted or drained attempt starts again from its checkpoint; only the deadline bounds how often."""
    view = _failed(ctx)
    if view is None or not (view.disrupted or view.exit_code == ExitCode.INTERRUPTED):
        return None
    return Retry(
        reason=Reason.STAGE_RETRYING,
        message=f"attempt {ctx.status.attempt} of {ctx.ref} was disrupted{_cause(view)}",
        delay=timedelta(seconds=ctx.stage.retry.backoff_seconds),
        counted=False,
        preempted=True,
    )


def check_quorum(ctx: Context) -> Verdict | None:
    view = _failed(ctx)
    if view is None or not view.failed_indexes or not isinstance(ctx.stage, ShardedStage) or view.shards is None:
        return None
    needed = quorum(ctx.stage, view.shards)
    text = f"{len(view.completed)} of {view.shards} shards of {ctx.ref} succeeded, {needed} are needed{_cause(view)}"
    return Fail(reason=Reason.QUORUM_NOT_MET, message=text)


def check_failed(ctx: Context) -> Verdict | None:
    view = _failed(ctx)
    if view is None:
        return None
    oom = view.reason == OUT_OF_MEMORY
    exhausted = Reason.OUT_OF_MEMORY if oom else Reason.RETRIES_EXHAUSTED
    hint = f"; raise stages.{ctx.ref.kind}.resources.limits.memory" if oom else ""
    return _retry_or_fail(ctx, exhausted, failure_text(ctx, view) + hint)


def check_stage_deadline(ctx: Context) -> Verdict | None:
    """An attempt that takes too long is ended and counted as failed."""
    limit = ctx.stage.active_deadline_seconds
    if limit is None or not _ours_live(ctx) or ctx.status.attempt_seconds < limit:
        return None
    text = (
        f"attempt {ctx.status.attempt} of {ctx.ref} ran for {ctx.status.attempt_seconds:.0f} s, "
        f"stages.{ctx.ref.kind}.activeDeadlineSeconds allows {limit}"
    )
    return _retry_or_fail(ctx, Reason.DEADLINE_EXCEEDED, text)


def check_pending_deadline(ctx: Context) -> Verdict | None:
    limit = ctx.stage.pending_deadline_seconds
    if limit is None or not _ours_live(ctx) or ctx.status.pending_seconds < limit:
        return None
    text = (
        f"attempt {ctx.status.attempt} of {ctx.ref} waited {ctx.status.pending_seconds:.0f} s for nodes or images, "
        f"stages.{ctx.ref.kind}.pendingDeadlineSeconds allows {limit}{_cause(ctx.view)}"
    )
    return Fail(reason=Reason.PENDING_DEADLINE_EXCEEDED, message=text)


def check_suspended(ctx: Context) -> Verdict | None:
    return Suspend() if ctx.run.spec.suspend else None


def check_backoff(ctx: Context) -> Verdict | None:
    at = ctx.status.retry_at
    if ctx.view is not None or at is None or at <= ctx.now:
        return None
    # A clock that jumped back must not make the wait longer than the spec allows.
    at = min(at, ctx.now + timedelta(seconds=ctx.stage.retry.max_backoff_seconds))
    return Wait(reason=Reason.STAGE_RETRYING, message=ctx.status.message, until=at, retry_at=at)


def check_former_run(ctx: Context) -> Verdict | None:
    if ctx.view is None or not ctx.view.former_run:
        return None
    text = f"Job {ctx.view.name} of a deleted run with the same name is still there: waiting for garbage collection"
    return Wait(reason=Reason.WAITING_FOR_CLEANUP, message=text)


def check_cleanup(ctx: Context) -> Verdict | None:
    """Wait until the attempt before is gone, and a Job under our own name that somebody deletes; not for ever."""
    own = ctx.view is not None and ctx.view.state == JobState.DELETING
    if not own and (ctx.view is not None or not ctx.older):
        return None
    since = min(ctx.status.retry_at or ctx.now, ctx.now)
    names = ", ".join([ctx.view.name] if own and ctx.view else sorted(view.name for view in ctx.older))
    if ctx.now < since + CLEANUP_LIMIT:
        text = f"waiting until {names} is deleted"
        return Wait(reason=Reason.WAITING_FOR_CLEANUP, message=text, until=since + CLEANUP_LIMIT, retry_at=since)
    if not own:
        return None
    text = f"{names} could not be deleted within {CLEANUP_LIMIT}: going on under the next attempt"
    return Retry(reason=Reason.STAGE_RETRYING, message=text, delay=timedelta(0), counted=False)


def check_absent(ctx: Context) -> Verdict | None:
    if ctx.view is not None:
        return None
    if ctx.refusal is not None:
        reason = Reason.CREATE_FORBIDDEN if ctx.refusal.forbidden else Reason.CREATE_REJECTED
        return Create(reason=reason, message=f"creating {ctx.refusal.job_name}: {ctx.refusal.message}")
    return Create(reason=Reason.STAGE_STARTING, message=f"starting attempt {ctx.status.attempt} of {ctx.ref}")


def check_live(ctx: Context) -> Verdict | None:
    """What the Job is waiting for, or that it runs."""
    view = ctx.view
    if view is None:
        return None
    if view.state == JobState.WAITING:
        return Watch(view=view, phase=Phase.PENDING, reason=Reason.WAITING_FOR_QUOTA, message=queue_text(view))
    if view.state == JobState.PENDING:
        image = view.reason in IMAGE_REASONS
        reason = Reason.IMAGE_PULL_FAILED if image else Reason.WAITING_FOR_NODES
        return Watch(view=view, phase=Phase.PENDING, reason=reason, message=f"{view.name} is pending{_cause(view)}")
    text = f"attempt {ctx.status.attempt} of {ctx.ref} runs"
    return Watch(view=view, phase=Phase.RUNNING, reason=Reason.STAGE_RUNNING, message=text)


POLICIES: tuple[Callable[[Context], Verdict | None], ...] = (
    check_foreign,
    check_complete,  # before the deadlines: work that is done counts
    check_run_deadline,
    check_gpu_hours,
    check_fatal_exit,
    check_disrupted,
    check_quorum,
    check_failed,
    check_stage_deadline,
    check_pending_deadline,
    check_suspended,  # after the outcomes: what ended before the pause is not lost
    check_backoff,
    check_former_run,
    check_cleanup,
    check_absent,
    check_live,
)


def decide(ctx: Context) -> Verdict:
    for check in POLICIES:
        verdict = check(ctx)
        if verdict is not None:
            return verdict
    raise AssertionError("check_absent and check_live together always have an opinion")


def queue_text(view: JobView) -> str:
    """One line: which queue a Job waits in and, where it can be read, what the queue says."""
    if not view.queue_name:
        return f"{view.name} is suspended, not by this run"
    text = f"{view.name} waits for quota in queue {view.queue_name}"
    if view.queue is None:
        return text
    reason = f" ({view.queue.reason})" if view.queue.reason else ""
    return f"{text}{reason}: {printable(view.queue.message)}" if view.queue.message else f"{text}{reason}"


def failure_text(ctx: Context, view: JobView) -> str:
    """One line that names the attempt, the exit code and the last thing the process said."""
    code = "no exit code" if view.exit_code is None else f"exit code {view.exit_code}"
    return f"attempt {ctx.status.attempt} of {ctx.ref} failed with {code}{_cause(view)}"


def backoff(stage: Stage, failures: int) -> timedelta:
    """backoff · 2^(failures − 1), at most the maximum."""
    retry = stage.retry
    return timedelta(seconds=delay_s(failures, first_s=retry.backoff_seconds, most_s=retry.max_backoff_seconds))


def _retry_or_fail(ctx: Context, exhausted: Reason, text: str) -> Verdict:
    failures, limit = ctx.status.failures + 1, ctx.stage.retry.limit
    if failures > limit:
        return Fail(
            reason=exhausted, message=f"{text} (failure {failures}, stages.{ctx.ref.kind}.retry.limit is {limit})"
        )
    return Retry(reason=Reason.STAGE_RETRYING, message=text, delay=backoff(ctx.stage, failures))


def _failed(ctx: Context) -> JobView | None:
    view = ctx.view
    return view if view is not None and view.ours and view.state.ended else None


def _ours_live(ctx: Context) -> bool:
    return ctx.view is not None and ctx.view.ours and ctx.view.state.live


def _cause(view: JobView | None) -> str:
    """What the cluster and the process said, as ` (reason): last line`; empty when nobody said anything."""
    if view is None:
        return ""
    reason = f" ({view.reason})" if view.reason else ""
    words = view.message if view.message != f"exit code {view.exit_code}" else ""
    said = (view.summary.message if view.summary else "") or words or _last_line(view.log_tail)
    return f"{reason}: {printable(said)}" if said else reason


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
