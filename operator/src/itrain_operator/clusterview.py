"""What is shown of a run in a cluster, derived from the stored run alone: stages, curve, list rows. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from itrain_contract.names import Phase, Reason
from itrain_contract.stages import StageKind, StageRef, shard_count
from itrain_operator.clusterruns import ClusterRun
from itrain_operator.localview import Live, View, build_view
from itrain_operator.points import Point, StageFigures, points
from itrain_operator.sequence import current_ref

SHOWN_GPU_S = 36.0
"""A hundredth of a GPU-hour; less would show as none."""
UNSEEN_S = 60.0
"""Seconds after which a run that no operator has touched is worth a word."""
WAITING_WORDS: Mapping[Reason, str] = {
    Reason.WAITING_FOR_QUOTA: "waiting for quota",
    Reason.WAITING_FOR_NODES: "waiting for nodes",
    Reason.WAITING_FOR_CLEANUP: "waiting until the attempt before is gone",
    Reason.IMAGE_PULL_FAILED: "an image cannot be pulled",
    Reason.CREATE_FORBIDDEN: "the operator may not create what the stage needs",
    Reason.CREATE_REJECTED: "the server rejects what the stage needs",
    Reason.FOREIGN_OBJECT: "something else bears the name",
}


def run_view(run: ClusterRun, now: datetime) -> View:
    """The same view as of a local run; where the spec cannot be read there are no stages."""
    status = run.status
    live = current_live(run, now)
    if run.spec is None:
        return View(
            name=run.name,
            phase=status.phase,
            iteration_text=status.iteration_text,
            elapsed_s=status.running_seconds,
            lines=(),
            message=status.message or "this version of itrain cannot read the spec",
        )
    view = build_view(
        name=run.name,
        spec=run.spec,
        status=status,
        figures=run_figures(run),
        live=live,
        elapsed_s=status.running_seconds + since_write(run, now),
    )
    return replace(view, message=view.message or trouble(run, now))


def trouble(run: ClusterRun, now: datetime) -> str:
    """Why nothing moves, where the status tells."""
    status = run.status
    if status.phase.terminal:
        return ""
    if not run.observed:
        age = (now - run.created).total_seconds() if run.created else 0.0
        if status.observed_generation:
            return "the operator has not seen the last edit yet"
        if age < UNSEEN_S:
            return "no operator has seen it yet"
        return f"no operator has seen it for over a minute: is one installed that watches namespace {run.namespace}?"
    words = WAITING_WORDS.get(status.reason, "")
    return f"{words}: {status.message}" if words and status.message else words


def since_write(run: ClusterRun, now: datetime) -> float:
    """Running seconds since the operator last wrote them down; none while nothing runs."""
    status = run.status
    running = status.current is not None and status.current.active > 0 and not status.phase.terminal
    if not running or status.last_observed_time is None:
        return 0.0
    return max(0.0, (now - status.last_observed_time).total_seconds())


def current_live(run: ClusterRun, now: datetime) -> Live | None:
    """The stage under way as live figures; None before its Job exists."""
    status = run.status
    ref = current_ref(status)
    if ref is None or status.current is None:
        return None
    progress = status.progress
    return Live(
        done=progress.done,
        total=progress.total,
        text=progress.text,
        seconds=status.attempt_seconds + since_write(run, now),
        paced_at=status.attempt_seconds,
        running=status.current.active,
        shards_done=status.current.succeeded,
        shards=shard_count(run.spec, ref.kind) if run.spec is not None else None,
    )


def run_figures(run: ClusterRun) -> dict[StageRef, StageFigures]:
    """Figures of the finished stages: seconds of all, metrics and counts as far as the history goes."""
    history = {entry.iteration: entry for entry in run.status.history}
    found: dict[StageRef, StageFigures] = {}
    for record in run.status.completed:
        ref, entry = record.ref, history.get(record.iteration)
        metrics: dict[str, float] = {}
        counters: dict[str, float] = {}
        if entry is not None and ref.kind == StageKind.EVALUATE:
            metrics = {metric.name: metric.value for metric in entry.metrics}
        if entry is not None and ref.kind == StageKind.ROLLOUT and (entry.pairs or entry.failed_trees):
            counters = {**entry.search, "pairs": entry.pairs, "failed_trees": entry.failed_trees}
        found[ref] = StageFigures(ref=ref, seconds=float(record.seconds), metrics=metrics, counters=counters)
    return found


def run_curve(run: ClusterRun) -> list[Point]:
    """The learning curve of the iterations that the history still holds."""
    figures = run_figures(run)
    return points(figures.values(), warmed_up=any(ref.kind == StageKind.WARMUP for ref in figures))


def facts(run: ClusterRun) -> str:
    """One line of what the stages do not tell: namespace, GPU-hours, retries, preemptions."""
    status = run.status
    parts = [f"namespace {run.namespace}"]
    if status.gpu_seconds >= SHOWN_GPU_S:
        parts.append(f"{status.gpu_hours or f'{status.gpu_seconds / 3600:.1f}'} GPU-hours")
    for count, one, many in ((status.retries, "retry", "retries"), (status.preemptions, "preemption", "preemptions")):
        if count:
            parts.append(f"{count} {one if count == 1 else many}")
    if run.spec is not None and run.spec.queue is not None:
        parts.append(f"queue {run.spec.queue.name}")
    if run.managed_by:
        parts.append(f"applied by {run.managed_by}")
    return " · ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One run of a list."""

    namespace: str
    name: str
    phase: str
    iter: str
    stage: str
    progress: str
    best: str
    age: str
    note: str


def list_row(run: ClusterRun, now: datetime) -> Row:
    status = run.status
    running = not status.phase.terminal and status.stage is not None
    shown = f"{status.progress.percent}%" if running and status.progress.total else ""
    note = status.message if status.phase == Phase.FAILED else trouble(run, now)
    reason = status.reason.value if status.phase == Phase.FAILED else ""
    return Row(
        namespace=run.namespace,
        name=run.name,
        phase=status.phase.value,
        iter=status.iteration_text,
        stage=status.stage.value if running and status.stage is not None else "",
        progress=shown,
        best="" if status.best is None else f"{status.best.value:.3f}",
        age="" if run.created is None else age_text((now - run.created).total_seconds()),
        note=f"{reason}: {note}" if reason and note else reason or note,
    )


def age_text(seconds: float) -> str:
    """`5s`, `3m`, `7h`, `12d`: as `kubectl get` shows it."""
    for size, unit, below in ((1, "s", 120), (60, "m", 120 * 60), (3600, "h", 48 * 3600)):
        if seconds < below:
            return f"{max(0, int(seconds // size))}{unit}"
    return f"{int(seconds // 86400)}d"


def resource_json(run: ClusterRun) -> dict[str, Any]:
    """The run as `kubectl get -o json` prints it, with the points of its curve; managedFields left out."""
    metadata = {key: value for key, value in run.raw["metadata"].items() if key != "managedFields"}
    curve = [{"point": point.name, "metrics": dict(point.metrics)} for point in run_curve(run)]
    return {**run.raw, "metadata": metadata, "points": curve}
