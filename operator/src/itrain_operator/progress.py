"""What the status tells of the stage under way and of the stages behind: progress, current Job, history. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from itrain_contract.layout import format_indexes
from itrain_contract.spec import ITrainRunSpec
from itrain_contract.stageio import printable
from itrain_contract.stages import StageKind, StageRef, shard_count
from itrain_contract.status import (
    INDEXES_LIMIT,
    CurrentJob,
    IterationHistory,
    ITrainRunStatus,
    Metric,
    Progress,
    StageRecord,
    record_indexes,
)
from itrain_operator.observed import JobView

METRIC_NAME_LIMIT = 63
STATUS_METRICS = 64
HISTORY_METRICS = 32
SEARCH_COUNTERS = (
    "trees",
    "trees_without_pair",
    "requests",
    "judge_calls",
    "memo_hits",
    "merged_actions",
    "extra_simulations",
    "prefill_computed",
    "prefill_cached",
    "decoded",
    "limit_tokens",
    "duplicate_requests",
    "lost_trees",
    "retried_requests",
)
"""Of a rollout's counters, those that an iteration's history keeps; the whole of them is in its results."""
TEXT_LIMIT = 128
MESSAGE_LIMIT = 512
TABLE_LIMIT = 40
"""Of a cell in `kubectl get`, so that a row stays a line."""
PACE_FROM = 0.05
"""Share of the work from which on the pace so far says something: before it, loading a model is most of the time."""


def progress(view: JobView, attempt_seconds: float) -> Progress:
    """How far the stage is: as it reports itself, else by its completed shards.

    The remaining time is the running time so far, carried on at the same rate; none is told while that says nothing.
    """
    done, total = view.progress_done, view.progress_total
    if total <= 0 and view.shards is not None:
        done, total = len(view.completed), view.shards
    total = max(0, total)
    done = min(max(0, done), total)
    left = remaining_s(attempt_seconds, done, total)
    return Progress(
        done=done,
        total=total,
        percent=100 * done // total if total else 0,
        eta_seconds=None if left is None else round(left),
        text=printable(view.progress_text)[:TEXT_LIMIT],
    )


def remaining_s(seconds: float, done: int, total: int) -> float | None:
    """The time for what is left at the pace of what was done in `seconds`; None before there is a pace."""
    if seconds <= 0 or done <= 0 or done < PACE_FROM * total:
        return None
    return seconds * (total - done) / done


def current_job(view: JobView) -> CurrentJob:
    return CurrentJob(
        job_name=view.name[:64],
        uid=view.uid[:64],
        active=max(0, view.active),
        succeeded=max(0, view.succeeded),
        failed=max(0, view.failed),
        completed_indexes=clip_indexes(view.completed),
        failed_indexes=clip_indexes(view.failed_indexes),
        start_time=view.started if view.state.live else None,
    )


def clip_indexes(indexes: frozenset[int]) -> str:
    """As many intervals as fit, `…` at the end when some do not."""
    text = format_indexes(indexes)
    if len(text) <= INDEXES_LIMIT:
        return text
    return text[: INDEXES_LIMIT - 2].rpartition(",")[0] + ",…"


def record(
    spec: ITrainRunSpec, ref: StageRef, view: JobView, *, attempt: int, digest: str, seconds: float
) -> StageRecord:
    """What later stages must know of a stage that succeeded."""
    shards = view.shards if view.shards is not None else shard_count(spec, ref.kind)
    return StageRecord(
        kind=ref.kind,
        iteration=ref.iteration,
        attempt=attempt,
        digest=digest,
        shards=None if shards is None else record_indexes(view.completed or frozenset(range(shards))),
        seconds=round(seconds),
    )


def iteration_text(spec: ITrainRunSpec, status: ITrainRunStatus) -> str:
    """`2/3`: the iteration under way of those that are to run."""
    last = spec.iterations.max if status.last_iteration is None else status.last_iteration
    return f"{status.iteration}/{last}"


def progress_text(status: ITrainRunStatus) -> str:
    """`46% loss 0.65`, `1/2` where only shards count; empty once nothing is under way."""
    shown = status.progress
    if status.phase.terminal:
        return ""
    if not shown.total:
        return shown.text[:TABLE_LIMIT]
    words = f"{shown.percent}% {shown.text}" if shown.text else f"{shown.done}/{shown.total}"
    return words[:TABLE_LIMIT]


def best_text(status: ITrainRunStatus) -> str:
    """`0.624 i1`: the best value of the deciding metric, and the iteration that reached it."""
    return "" if status.best is None else f"{status.best.value:.4g} i{status.best.iteration}"


def select_metrics(metrics: Mapping[str, float], first: str, limit: int) -> list[Metric]:
    """At most `limit` metrics: the deciding one and its standard error, then whole benchmarks, then the rest."""
    usable = {name: value for name, value in metrics.items() if name and len(name) <= METRIC_NAME_LIMIT}

    def rank(name: str) -> tuple[int, int, str]:
        return (0 if name in (first, f"{first}_se") else 1, name.count("/"), name)

    return [Metric(name=name, value=usable[name]) for name in sorted(usable, key=rank)[:limit]]


def add_history(
    history: list[IterationHistory],
    ref: StageRef,
    view: JobView,
    *,
    iteration: int,
    seconds: float,
    first_metric: str,
    limit: int,
) -> list[IterationHistory]:
    """The history with one more finished stage; the newest `limit` iterations stay."""
    by_iteration = {entry.iteration: entry for entry in history}
    entry = by_iteration.get(iteration, IterationHistory(iteration=iteration))
    update: dict[str, object] = {"stage_seconds": {**entry.stage_seconds, ref.kind.value: round(seconds)}}
    if ref.kind == StageKind.EVALUATE and view.summary is not None:
        update["metrics"] = select_metrics(view.summary.metrics, first_metric, HISTORY_METRICS)
    if ref.kind == StageKind.ROLLOUT and view.summary is not None:
        update["pairs"] = int(view.summary.counters.get("pairs", 0))
        update["failed_trees"] = int(view.summary.counters.get("failed_trees", 0))
        counted = view.summary.counters
        update["search"] = {name: int(counted[name]) for name in SEARCH_COUNTERS if name in counted}
    by_iteration[iteration] = entry.model_copy(update=update)
    return [by_iteration[key] for key in sorted(by_iteration)][-limit:]


def clip(text: str) -> str:
    """Text within the bound of a status message."""
    return text if len(text) <= MESSAGE_LIMIT else text[: MESSAGE_LIMIT - 1] + "…"


def shown_iteration(ref: StageRef, newest: int) -> int:
    """The iteration to show for a stage: export belongs to the last one."""
    return newest if ref.kind == StageKind.EXPORT else ref.iteration
