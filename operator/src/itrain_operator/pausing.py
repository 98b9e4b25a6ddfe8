"""A run and its queue: pauses, ends of pauses, quota that was taken away. Pure.

A queued Job is paused through the Workload that stands for it in the queue (`spec.active`): it keeps its place, its
pods end as for an eviction, and its own `spec.suspend` stays the queue's. A Job without one is deleted, and made again
when the pause is over.
"""

from __future__ import annotations

from itrain_contract.names import Reason
from itrain_contract.spec import ITrainRunSpec
from itrain_contract.status import ITrainRunStatus
from itrain_operator.actions import Action, DeleteJob, Emit, EventReason, SetActive
from itrain_operator.observed import JobState, JobView


def paused(view: JobView, spec: ITrainRunSpec) -> list[Action]:
    """What a pause asks for while the Job of the attempt is there; nothing once it rests.

    In another queue than the spec names by now a Job must not rest: it would wake up in the wrong one.
    """
    if not view.ours or not view.state.live:
        return []
    queue, asked = view.queue, spec.queue
    if queue is None or not queue.workload or asked is None or asked.name != view.queue_name:
        return [DeleteJob(name=view.name, uid=view.uid)]
    return [SetActive(job_uid=view.uid, workload=queue.workload, active=False)] if queue.active else []


def let_go(view: JobView) -> list[Action]:
    """The end of a pause. Only where this run made the pause: who else took a Workload out of its queue had reasons."""
    queue = view.queue
    if queue is None or not queue.workload or queue.active:
        return []
    return [SetActive(job_uid=view.uid, workload=queue.workload, active=True)]


def quota_lost(old: ITrainRunStatus, view: JobView) -> list[Emit]:
    """The event of a Job that its queue took the pods from: no failure, and no new attempt either.

    Seen by its waiting again, or by a later start than the last pass saw, where it was let go in between.
    """
    if old.reason != Reason.STAGE_RUNNING:
        return []
    known = old.current.start_time if old.current is not None and old.current.uid == view.uid else None
    again = bool(view.queue_name) and known is not None and view.started is not None and view.started > known
    if view.state != JobState.WAITING and not again:
        return []
    cause = f" ({view.queue.reason})" if view.queue is not None and view.queue.reason else ""
    return [Emit(type="Normal", reason=EventReason.STAGE_DISRUPTED, message=f"{view.name} lost its quota{cause}")]
