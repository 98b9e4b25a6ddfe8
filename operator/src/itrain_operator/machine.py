"""The planner: what to do next for a run. Pure and total; no I/O, no clock, no logging.

The status points at one attempt of one stage (stage, iteration, attempt). A pass that moves the pointer only writes
the status; the next pass acts on it, so a Job is made only for an attempt that is already on record. `completed` is the
latch of what is done: no observation takes a stage out of it again.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from itrain_contract.layout import job_name
from itrain_contract.names import Phase, Reason
from itrain_contract.stages import StageRef, stage_spec
from itrain_contract.stagespec import ShardedStage
from itrain_contract.status import ITrainRunStatus, Progress, fit
from itrain_operator import policies
from itrain_operator.accounting import account, elapsed, gpus_per_pod, parallelism
from itrain_operator.actions import Action, DeleteJob, Emit, EnsureJob, EventReason, Plan, SetActive
from itrain_operator.advance import advance, latch, moving
from itrain_operator.conditions import merge_conditions, wanted_conditions
from itrain_operator.observed import JobState, JobView, Observed, Run
from itrain_operator.pausing import let_go, paused, quota_lost
from itrain_operator.progress import best_text, clip, current_job, iteration_text, progress, progress_text
from itrain_operator.sequence import current_ref, stage_input
from itrain_operator.terminal import plan_terminal

__all__ = ["Action", "DeleteJob", "Emit", "EnsureJob", "Plan", "SetActive", "invalid_spec_status", "plan"]

RECORD_EVERY_S = 30.0
"""Time that passed is written to the status this often; a change of anything else is written at once."""
REFUSED_AGAIN = timedelta(seconds=60)
AT_ONCE = timedelta(0)


def plan(run: Run, observed: Observed, now: datetime) -> Plan:
    """The next pass over a run (API document, "Reconcile").

    Equal arguments give equal plans. Times are timezone-aware; `now` may lie before times in the status.
    """
    if run.status.phase.terminal:
        return plan_terminal(run, observed, now)
    ref = current_ref(run.status)
    if ref is None:
        return _begin(run, observed, now)
    newer = _newest_attempt(observed, ref)
    if newer > run.status.attempt:
        # A Job is made only after its attempt was recorded: this status is older than the world.
        return _finish(run, run.status.model_copy(update={"attempt": newer, "current": None}), [], now, wake=AT_ONCE)
    view = _view(observed, job_name(run.name, ref, run.status.attempt))
    spent = elapsed(run.status, view, parallelism(run.spec, ref), now)
    status = account(run.status, spent, gpus=gpus_per_pod(run.spec, ref), now=now)
    older = tuple(v for v in observed.ours() if v.ref == ref and v.attempt < status.attempt)
    refusal = observed.refusal
    ctx = policies.Context(
        run=run,
        status=status,
        ref=ref,
        view=view,
        older=older,
        refusal=refusal if refusal and refusal.job_name == job_name(run.name, ref, status.attempt) else None,
        now=now,
    )
    return _carry_out(ctx, policies.decide(ctx), observed)


def invalid_spec_status(status: ITrainRunStatus, *, generation: int, message: str, now: datetime) -> ITrainRunStatus:
    """The status of a run whose spec cannot be read: nothing moves until it is edited; a terminal phase stays."""
    if status.phase.terminal:
        return status
    update = {"reason": Reason.INVALID_SPEC, "message": clip(message), "observed_generation": generation}
    new = status.model_copy(update=update)
    wanted = wanted_conditions(None, new)
    return new.model_copy(
        update={"conditions": merge_conditions(status.conditions, wanted, generation=generation, now=now)}
    )


def _begin(run: Run, observed: Observed, now: datetime) -> Plan:
    """A run without a pointer: point at the first stage, or hold."""
    status = run.status.model_copy(update={"last_observed_time": now})
    if run.spec.suspend:
        return _finish(run, _suspended(status), _suspension_events(run, suspended=True), now)
    moved, events = advance(run, observed, status, now)
    return _finish(run, moved, [*_suspension_events(run, suspended=False), *events], now, wake=AT_ONCE)


def _carry_out(ctx: policies.Context, verdict: policies.Verdict, observed: Observed) -> Plan:
    """A verdict as a status and, where the pointer stays, as actions."""
    run, status, now = ctx.run, ctx.status, ctx.now
    deletes = _leftovers(ctx, observed)
    resumed = [] if run.spec.suspend else _suspension_events(run, suspended=False)
    match verdict:
        case policies.Fail(reason=reason, message=message):
            update = {"phase": Phase.FAILED, "reason": reason, "message": clip(message), "completion_time": now}
            failed = status.model_copy(update={**_seen(ctx), **update})
            events = [Emit(type="Warning", reason=EventReason.FAILED, message=f"{reason}: {message}")]
            return _finish(run, failed, events, now, wake=AT_ONCE)
        case policies.Complete(view=view):
            latched, events = latch(run, ctx.ref, status, view, now)
            moved, more = advance(run, observed, latched, now)
            return _finish(run, moved, [*resumed, *events, *more], now, wake=AT_ONCE)
        case policies.Retry():
            moved, events = _retried(ctx, verdict)
            return _finish(run, moved, [*resumed, *events], now, wake=AT_ONCE)
        case policies.Suspend():
            held = _suspended(status.model_copy(update=_seen(ctx)))
            ending = paused(ctx.view, run.spec) if ctx.view is not None else []
            return _finish(run, held, [*deletes, *ending, *_suspension_events(run, suspended=True)], now)
        case policies.Wait(reason=reason, message=message, until=until, retry_at=retry_at):
            waiting = status.model_copy(update={**_seen(ctx), **_held(status, reason, message), "retry_at": retry_at})
            wake = max(AT_ONCE, until - now) if until else None
            return _finish(run, waiting, [*deletes, *resumed], now, wake=wake)
        case policies.Create(reason=reason, message=message):
            starting = status.model_copy(update={**_held(status, reason, message), "current": None})
            wake = REFUSED_AGAIN if ctx.refusal else None
            return _finish(run, starting, [*deletes, ensure_job(run, ctx.ref), *resumed], now, wake=wake)
        case policies.Watch(view=view, phase=phase, reason=reason, message=message):
            said = {"phase": phase, "reason": reason, "message": clip(message), "retry_at": None}
            evicted = quota_lost(run.status, view)
            watched = status.model_copy(update={**_seen(ctx), **said, "preemptions": status.preemptions + len(evicted)})
            going = let_go(view) if run.status.phase == Phase.SUSPENDED else []
            return _finish(run, watched, [*deletes, *going, *resumed, *evicted], now, wake=_next_limit(ctx, view))


def _retried(ctx: policies.Context, verdict: policies.Retry) -> tuple[ITrainRunStatus, list[Emit]]:
    """Point at the next attempt; the one before is deleted by later passes."""
    status = ctx.status.model_copy(update={"start_time": _seen(ctx).get("start_time", ctx.status.start_time)})
    moved = status.model_copy(
        update={
            **moving(ctx.run, status, verdict.reason, verdict.message),
            "attempt": status.attempt + 1,
            "failures": status.failures + verdict.counted,
            "retries": status.retries + verdict.counted,
            "preemptions": status.preemptions + verdict.preempted,
            "retry_at": ctx.now + verdict.delay,
            "attempt_seconds": 0.0,
            "pending_seconds": 0.0,
            "current": None,
            "progress": Progress(),
        }
    )
    reason = EventReason.STAGE_RETRYING if verdict.counted else EventReason.STAGE_DISRUPTED
    return moved, [Emit(type="Warning" if verdict.counted else "Normal", reason=reason, message=verdict.message)]


def ensure_job(run: Run, ref: StageRef) -> EnsureJob:
    """The Job of the attempt that the run's status points at."""
    block = stage_spec(run.spec, ref.kind)
    spare = block.shards - block.quorum if isinstance(block, ShardedStage) else 0
    return EnsureJob(
        stage_input=stage_input(run, ref, run.status.attempt),
        parallelism=parallelism(run.spec, ref),
        max_failed_indexes=spare,
    )


def _finish(
    run: Run, status: ITrainRunStatus, actions: list[Action] | list[Emit], now: datetime, wake: timedelta | None = None
) -> Plan:
    """The plan with everything that follows from the status: conditions, texts, bounds, events of a new reason."""
    old = run.status
    status = status.model_copy(
        update={
            "observed_generation": max(old.observed_generation, run.generation),
            "iteration_text": iteration_text(run.spec, status),
            "progress_text": progress_text(status),
            "best_text": best_text(status),
        }
    )
    ending = any(isinstance(a, DeleteJob) or (isinstance(a, SetActive) and not a.active) for a in actions)
    wanted = wanted_conditions(run.spec, status, tearing_down=ending)
    status = status.model_copy(
        update={"conditions": merge_conditions(old.conditions, wanted, generation=run.generation, now=now)}
    )
    status = fit(status) if worth_writing(old, status) else old
    events = _reason_events(old, status)
    return Plan(actions=(*actions, *events), status=status, wake_after=wake)


def only_clocks(old: ITrainRunStatus, new: ITrainRunStatus) -> bool:
    """Whether nothing but time passed: what is not stored of it now, a later pass stores."""
    return _without_clocks(old) == _without_clocks(new)


def worth_writing(old: ITrainRunStatus, new: ITrainRunStatus) -> bool:
    """Whether more changed than the clocks, or the clocks by half a minute."""
    if not only_clocks(old, new):
        return True
    counted = ("running_seconds", "attempt_seconds", "pending_seconds", "gpu_seconds")
    return any(getattr(new, name) - getattr(old, name) >= RECORD_EVERY_S for name in counted)


def _without_clocks(status: ITrainRunStatus) -> ITrainRunStatus:
    clocks: dict[str, Any] = dict.fromkeys(("running_seconds", "attempt_seconds", "pending_seconds", "gpu_seconds"), 0)
    rest = {"gpu_hours": "", "last_observed_time": None}
    steady = status.progress.model_copy(update={"eta_seconds": None})
    return status.model_copy(update={**clocks, **rest, "progress": steady})


def _seen(ctx: policies.Context) -> dict[str, Any]:
    """What the status keeps of the Job as it was seen."""
    view = ctx.view
    if view is None or not view.ours:
        return {"current": None}
    began = view.state == JobState.ACTIVE or view.state.ended
    shown = progress(view, ctx.status.attempt_seconds)
    known = ctx.status.current is not None and ctx.status.current.uid == view.uid
    return {
        "current": current_job(view),
        # An operator that just started has not looked yet: what it had said of this Job still stands.
        "progress": ctx.status.progress if known and shown.total == 0 else shown,
        "start_time": ctx.status.start_time or (min(ctx.now, view.started or ctx.now) if began else None),
    }


def _held(status: ITrainRunStatus, reason: Reason, message: str) -> dict[str, Any]:
    """Phase and reason of a run whose attempt has no running Job."""
    phase = Phase.RUNNING if status.start_time else Phase.PENDING
    return {"phase": phase, "reason": reason, "message": clip(message)}


def _suspended(status: ITrainRunStatus) -> ITrainRunStatus:
    update = {"phase": Phase.SUSPENDED, "reason": Reason.SUSPENDED_BY_USER, "message": "spec.suspend is set"}
    return status.model_copy(update=update)


def _suspension_events(run: Run, *, suspended: bool) -> list[Emit]:
    """The event of a pause or of its end, in the pass that records it."""
    if (run.status.phase == Phase.SUSPENDED) == suspended:
        return []
    if suspended:
        return [Emit(type="Normal", reason=EventReason.SUSPENDED, message="suspended by spec.suspend")]
    text = f"going on with attempt {run.status.attempt} of {current_ref(run.status) or 'the first stage'}"
    return [Emit(type="Normal", reason=EventReason.RESUMED, message=text)]


WAITING_REASONS = (Reason.WAITING_FOR_QUOTA, Reason.WAITING_FOR_NODES, Reason.WAITING_FOR_CLEANUP)
REFUSED_REASONS = (Reason.CREATE_FORBIDDEN, Reason.CREATE_REJECTED)


def _reason_events(old: ITrainRunStatus, new: ITrainRunStatus) -> list[Emit]:
    """One event when a run begins to wait for something, or a person must act."""
    if old.reason == new.reason:
        return []
    if new.reason in WAITING_REASONS:
        return [Emit(type="Normal", reason=EventReason.WAITING, message=f"{new.reason}: {new.message}")]
    if new.reason == Reason.IMAGE_PULL_FAILED:
        return [Emit(type="Warning", reason=EventReason.WAITING, message=f"{new.reason}: {new.message}")]
    if new.reason in REFUSED_REASONS:
        return [Emit(type="Warning", reason=EventReason.CREATE_REFUSED, message=f"{new.reason}: {new.message}")]
    return []


def _next_limit(ctx: policies.Context, view: JobView) -> timedelta | None:
    """When the next deadline or budget is reached if all goes on as it is."""
    status, spec = ctx.status, ctx.run.spec
    left: list[float] = []
    if view.state == JobState.PENDING and ctx.stage.pending_deadline_seconds is not None:
        left.append(ctx.stage.pending_deadline_seconds - status.pending_seconds)
    if view.state == JobState.ACTIVE:
        if spec.active_deadline_seconds is not None:
            left.append(spec.active_deadline_seconds - status.running_seconds)
        if ctx.stage.active_deadline_seconds is not None:
            left.append(ctx.stage.active_deadline_seconds - status.attempt_seconds)
        rate = ctx.stage.gpus * max(1, view.active)
        if spec.max_gpu_hours is not None and rate:
            left.append((spec.max_gpu_hours * 3600 - status.gpu_seconds) / rate)
    return timedelta(seconds=max(0.0, min(left))) if left else None


def _leftovers(ctx: policies.Context, observed: Observed) -> list[Action]:
    """Deletions that are due whatever the verdict: earlier attempts, and live Jobs of stages completed by another."""
    done = {record.ref: record.attempt for record in ctx.status.completed}
    late = [v for v in observed.ours() if v.state.live and done.get(v.ref, v.attempt) != v.attempt]
    due = {(v.name, v.uid) for v in (*ctx.older, *late) if v.state != JobState.DELETING}
    return [DeleteJob(name=name, uid=uid) for name, uid in sorted(due)]


_RANK = (JobState.WAITING, JobState.PENDING, JobState.ACTIVE, JobState.DELETING, JobState.FAILED, JobState.COMPLETE)
_NOT_YET = datetime.max.replace(tzinfo=UTC)


def _view(observed: Observed, name: str) -> JobView | None:
    """The Job of a name. Of several observations the youngest Job counts, and of that the furthest state."""
    found = [view for view in observed.jobs if view.name == name]
    if not found:
        return None
    youngest = max(found, key=lambda v: (v.started or _NOT_YET, v.uid)).uid
    same = [view for view in found if view.uid == youngest]
    return max(same, key=lambda v: (_RANK.index(v.state), len(v.completed), v.succeeded, v.failed, v.active))


def _newest_attempt(observed: Observed, ref: StageRef) -> int:
    return max((view.attempt for view in observed.ours() if view.ref == ref), default=0)
