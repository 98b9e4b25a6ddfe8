"""From a finished stage to the next: latch what it brought, then point at what comes after it. Pure."""

from __future__ import annotations

import re
from datetime import datetime

from itrain_contract.names import Phase, Reason
from itrain_contract.stages import EXPORT, StageKind, StageRef
from itrain_contract.status import ITrainRunStatus, Progress
from itrain_operator.actions import Emit, EventReason
from itrain_operator.earlystop import judge
from itrain_operator.observed import JobView, Observed, Run
from itrain_operator.progress import (
    STATUS_METRICS,
    add_history,
    clip,
    record,
    select_metrics,
    shown_iteration,
)
from itrain_operator.sequence import adapter_uri, completed_refs, newest_iteration, next_ref, stage_input

DIGEST = re.compile(r"[0-9a-f]{16,64}")


def latch(
    run: Run, ref: StageRef, status: ITrainRunStatus, view: JobView, now: datetime
) -> tuple[ITrainRunStatus, list[Emit]]:
    """The status with a stage that succeeded: its record, its history, and what an evaluation decides.

    The record carries the digest that the Job ran with, which an edit of the spec may have left behind.
    """
    if ref in completed_refs(status):
        return status, []
    seconds, attempt = status.attempt_seconds, status.attempt
    known = view.digest is not None and DIGEST.fullmatch(view.digest)
    digest = view.digest if known and view.digest else stage_input(run, ref, attempt).digest
    done = record(run.spec, ref, view, attempt=attempt, digest=digest, seconds=seconds)
    shown = shown_iteration(ref, newest_iteration(status))
    latched = status.model_copy(
        update={
            "completed": [*status.completed, done],
            "start_time": status.start_time or min(now, view.started or now),
            "history": add_history(
                status.history,
                ref,
                view,
                iteration=shown,
                seconds=seconds,
                first_metric=run.spec.metric,
                limit=run.spec.history_limit,
            ),
        }
    )
    if ref == EXPORT:
        report = run.identity.layout.attempt(ref, attempt) + "report.html"
        latched = latched.model_copy(update={"report_uri": report})
    shards = f", {len(view.completed)} of {view.shards} shards" if view.shards is not None else ""
    events = [_normal(EventReason.STAGE_SUCCEEDED, f"{ref} succeeded in {seconds:.0f} s (attempt {attempt}{shards})")]
    if ref.kind == StageKind.EVALUATE:
        latched, more = _evaluated(run, ref, latched, view)
        events += more
    return latched, events


def _evaluated(run: Run, ref: StageRef, status: ITrainRunStatus, view: JobView) -> tuple[ITrainRunStatus, list[Emit]]:
    """What an evaluation changes: metrics, the best iteration, the early stop."""
    metrics = view.summary.metrics if view.summary is not None else {}
    verdict = judge(
        status,
        run.spec.iterations,
        metric=run.spec.metric,
        iteration=ref.iteration,
        metrics=metrics,
        adapter_uri=adapter_uri(run, status.completed, ref.iteration),
    )
    update: dict[str, object] = {"best": verdict.best, "without_gain": verdict.without_gain}
    if metrics:
        update["metrics"] = select_metrics(metrics, run.spec.metric, STATUS_METRICS)
    events: list[Emit] = []
    if verdict.missing:
        some = ", ".join(sorted(metrics)[:5]) or "none at all"
        text = f"{ref} has no metric {run.spec.metric!r}: best and stopWhen cannot judge it; it has {some}"
        events.append(Emit(type="Warning", reason=EventReason.METRIC_MISSING, message=text))
    if verdict.stop and status.last_iteration is None and ref.iteration < run.spec.iterations.max:
        update["last_iteration"] = ref.iteration
        text = (
            f"{run.spec.metric} gained too little {verdict.without_gain} times in a row: "
            f"no iteration after {ref.iteration} of {run.spec.iterations.max}"
        )
        events.append(_normal(EventReason.STOPPED_EARLY, text))
    return status.model_copy(update=update), events


def advance(run: Run, observed: Observed, status: ITrainRunStatus, now: datetime) -> tuple[ITrainRunStatus, list[Emit]]:
    """Point at the stage after the last completed one; without one the run succeeded.

    The first stage has an event of its own; that a later one starts is said by the success of the one before.
    Starting export fixes the last iteration: `iterations.max` raised afterwards comes too late. Attempts that exist
    already (the status was lost) are adopted.
    """
    ref = next_ref(run.spec, status)
    newest = newest_iteration(status)
    over = [] if ref is not None and ref.iteration == newest else _iteration_over(status, newest)
    if ref is None:
        ended, events = _succeeded(run, status, newest, now)
        return ended, [*over, *events]
    attempt = max((view.attempt for view in observed.ours() if view.ref == ref), default=0) or 1
    text = f"attempt {attempt} of {ref}"
    started = [] if status.completed else [_normal(EventReason.STAGE_STARTED, text)]
    update: dict[str, object] = {
        "stage": ref.kind,
        "iteration": shown_iteration(ref, newest),
        "attempt": attempt,
        "failures": 0,
        "retry_at": None,
        "attempt_seconds": 0.0,
        "pending_seconds": 0.0,
        "current": None,
        "progress": Progress(),
        **moving(run, status, Reason.STAGE_STARTING, f"starting {text}"),
    }
    if ref == EXPORT and status.last_iteration is None:
        update["last_iteration"] = newest
    return status.model_copy(update=update), [*over, *started]


def moving(run: Run, status: ITrainRunStatus, reason: Reason, message: str) -> dict[str, object]:
    """Phase, reason and message of a run between two attempts; a pause goes on through it."""
    if run.spec.suspend and status.phase == Phase.SUSPENDED:
        return {}
    phase = Phase.RUNNING if status.start_time else Phase.PENDING
    return {"phase": phase, "reason": reason, "message": clip(message)}


def _succeeded(run: Run, status: ITrainRunStatus, newest: int, now: datetime) -> tuple[ITrainRunStatus, list[Emit]]:
    early = newest < run.spec.iterations.max
    best = (
        f"; best: iteration {status.best.iteration}, {status.best.metric} {status.best.value:.4g}"
        if status.best
        else ""
    )
    text = f"completed {newest} of {run.spec.iterations.max} iterations{best}"
    ended = status.model_copy(
        update={
            "phase": Phase.SUCCEEDED,
            "reason": Reason.STOPPED_EARLY if early else Reason.RUN_COMPLETED,
            "message": clip(text),
            "completion_time": now,
            "current": None,
            "retry_at": None,
            "progress": Progress(done=1, total=1, percent=100),
        }
    )
    return ended, [_normal(EventReason.SUCCEEDED, text)]


def _iteration_over(status: ITrainRunStatus, iteration: int) -> list[Emit]:
    """The event of a finished iteration, in the pass that leaves it."""
    if not iteration or not status.completed or status.completed[-1].iteration != iteration:
        return []
    return [_normal(EventReason.ITERATION_COMPLETED, f"iteration {iteration} completed")]


def _normal(reason: EventReason, message: str) -> Emit:
    return Emit(type="Normal", reason=reason, message=message)
