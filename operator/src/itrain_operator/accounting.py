"""Running time, waiting time and GPU time of a run: what deadlines and budgets are judged by. Pure.

A pass adds the time since the last recorded pass to what the world did in between. Time never runs backwards here: a
clock that jumps back adds nothing. Of a jump that was noticed nothing remains at all (`moved`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from itrain_contract.names import Phase, Reason
from itrain_contract.spec import ITrainRunSpec
from itrain_contract.stages import StageRef, stage_spec
from itrain_contract.stagespec import ShardedStage
from itrain_contract.status import ITrainRunStatus
from itrain_operator.observed import JobState, JobView

UNSEEN_LIMIT = timedelta(minutes=5)
"""The most that is charged for a Job that stopped at an unknown moment between two passes: one resync."""
PENDING_REASONS = (Reason.WAITING_FOR_NODES, Reason.IMAGE_PULL_FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Elapsed:
    """Seconds since the last recorded pass, by what they were spent on."""

    running: float = 0.0
    pending: float = 0.0
    retrying: float = 0.0
    pods: int = 0

    @property
    def any(self) -> bool:
        return bool(self.running or self.pending or self.retrying)


def elapsed(status: ITrainRunStatus, view: JobView | None, parallelism: int, now: datetime) -> Elapsed:
    """What happened between the last recorded pass and `now`."""
    last = status.last_observed_time
    if status.phase == Phase.SUSPENDED and (view is None or view.state != JobState.ACTIVE):
        return Elapsed()
    pending = retrying = 0.0
    if last is not None and view is not None and view.state == JobState.PENDING and status.reason in PENDING_REASONS:
        pending = _seconds(last, now)
    if last is not None and status.retry_at is not None:
        retrying = _seconds(last, min(now, status.retry_at))
    interval = running_interval(status, view, now)
    if interval is None:
        return Elapsed(pending=pending, retrying=retrying)
    return Elapsed(
        running=_seconds(*interval), pending=pending, retrying=retrying, pods=_pods(status, view, parallelism)
    )


def running_interval(status: ITrainRunStatus, view: JobView | None, now: datetime) -> tuple[datetime, datetime] | None:
    """The part of the time since the last pass in which pods of the current attempt ran; None for no part."""
    last = status.last_observed_time
    ran_at_last = last is not None and status.current is not None and status.current.active > 0
    if view is None or not (view.state == JobState.ACTIVE or view.state.ended):
        if not ran_at_last or last is None:
            return None
        return last, min(now, last + UNSEEN_LIMIT)  # it stopped at an unknown moment
    end = now
    if view.state.ended:
        end = min(now, view.finished) if view.finished else min(now, (last or now) + UNSEEN_LIMIT)
    start = view.started or (last if ran_at_last else end)
    if last is not None:
        start = last if start is None else max(last, start)
    return (start or end), end


def account(status: ITrainRunStatus, spent: Elapsed, *, gpus: int, now: datetime) -> ITrainRunStatus:
    """The status with the time up to `now` added."""
    gpu_seconds = status.gpu_seconds + spent.running * gpus * spent.pods
    return status.model_copy(
        update={
            "last_observed_time": now,
            "running_seconds": round(status.running_seconds + spent.running + spent.retrying, 3),
            "attempt_seconds": round(status.attempt_seconds + spent.running, 3),
            "pending_seconds": round(status.pending_seconds + spent.pending, 3),
            "gpu_seconds": round(gpu_seconds, 3),
            "gpu_hours": f"{gpu_seconds / 3600:.2f}",
        }
    )


def moved(status: ITrainRunStatus, by: timedelta) -> ITrainRunStatus:
    """The status as it would be had the wall clock, which jumped by so much since, always shown what it shows now."""

    def later(at: datetime | None) -> datetime | None:
        return at + by if at is not None else None

    update = {"last_observed_time": later(status.last_observed_time), "retry_at": later(status.retry_at)}
    return status.model_copy(update=update)


def gpus_per_pod(spec: ITrainRunSpec, ref: StageRef) -> int:
    return stage_spec(spec, ref.kind).gpus


def parallelism(spec: ITrainRunSpec, ref: StageRef) -> int:
    """Pods of a stage at a time."""
    block = stage_spec(spec, ref.kind)
    return min(block.parallelism, block.shards) if isinstance(block, ShardedStage) else 1


def _pods(status: ITrainRunStatus, view: JobView | None, limit: int) -> int:
    """Pods that ran in the interval: as the last pass saw them, else as now, else as the finished indexes tell."""
    before = status.current.active if status.current else 0
    if before > 0 or view is None:
        return max(1, before)
    return max(
        1, view.active if view.state == JobState.ACTIVE else min(limit, len(view.completed | view.failed_indexes))
    )


def _seconds(start: datetime, end: datetime) -> float:
    return max(0.0, (end - start).total_seconds())
