"""What a local run shows: its stages as lines, derived from spec, status and the current job. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from itrain_contract.names import Phase, Reason
from itrain_contract.spec import ITrainRunSpec
from itrain_contract.stages import StageKind, StageRef, stage_sequence
from itrain_contract.status import ITrainRunStatus
from itrain_operator.points import StageFigures, points
from itrain_operator.progress import remaining_s
from itrain_operator.sequence import current_ref


class LineState(StrEnum):
    PLANNED = "planned"
    RUNNING = "running"
    WAITING = "waiting"
    DONE = "done"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """The current job as its processes report it. Seconds of running time, this execution's."""

    done: int = 0
    total: int = 0
    text: str = ""
    seconds: float = 0.0
    paced_at: float = 0.0
    """Seconds at which `done` was reached; between two steps the remaining time runs down from there."""
    running: int = 0
    """Processes at the moment."""
    shards_done: int = 0
    shards: int | None = None

    @property
    def eta_s(self) -> float | None:
        """By the pace so far; None before there is one."""
        left = remaining_s(self.paced_at, self.done, self.total) if self.done < self.total else None
        return None if left is None else max(0.0, left - (self.seconds - self.paced_at))


@dataclass(frozen=True, slots=True, kw_only=True)
class StageLine:
    ref: StageRef
    state: LineState
    attempt: int = 1
    seconds: float = 0.0
    live: Live = field(default_factory=Live)
    note: str = ""

    @property
    def title(self) -> str:
        kind = {StageKind.WARMUP: "warm-up"}.get(self.ref.kind, self.ref.kind.value)
        if self.ref.iteration:
            return f"{self.ref.iteration} · {kind}"
        return f"{kind} base, warm-up" if self.ref.kind == StageKind.EVALUATE else kind

    @property
    def plain_title(self) -> str:
        return f"iteration {self.title}".replace(" · ", ": ") if self.ref.iteration else self.title


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    name: str
    phase: Phase
    iteration_text: str
    elapsed_s: float
    lines: tuple[StageLine, ...]
    message: str = ""


def build_view(
    *,
    name: str,
    spec: ITrainRunSpec,
    status: ITrainRunStatus,
    figures: Mapping[StageRef, StageFigures],
    live: Live | None,
    elapsed_s: float,
    stopping: bool = False,
) -> View:
    """One line per stage of the run's order; what an early stop leaves out is not shown."""
    done = {record.ref: record for record in status.completed}
    current = current_ref(status)
    lines = []
    for ref in stage_sequence(spec, last_iteration=status.last_iteration):
        if ref in done:
            seconds = figures[ref].seconds if ref in figures else float(done[ref].seconds)
            note = stage_note(ref, figures.get(ref))
            line = StageLine(ref=ref, state=LineState.DONE, attempt=done[ref].attempt, seconds=seconds, note=note)
        elif ref == current:
            line = _current_line(ref, status, live, stopping)
        else:
            line = StageLine(ref=ref, state=LineState.PLANNED)
        lines.append(line)
    return View(
        name=name,
        phase=status.phase,
        iteration_text=status.iteration_text,
        elapsed_s=elapsed_s,
        lines=tuple(lines),
        message=_message(status),
    )


def _message(status: ITrainRunStatus) -> str:
    """What a person would ask about: why it failed or stands still, and when the next attempt comes."""
    if status.phase in (Phase.FAILED, Phase.SUSPENDED):
        return status.message
    if status.reason == Reason.STAGE_RETRYING and status.retry_at is not None:
        return f"{status.message}; attempt {status.attempt} starts at {status.retry_at:%H:%M:%S} UTC"
    return ""


def _current_line(ref: StageRef, status: ITrainRunStatus, live: Live | None, stopping: bool) -> StageLine:
    live = live or Live()
    if status.phase == Phase.FAILED:
        state = LineState.FAILED
    elif stopping:
        state = LineState.INTERRUPTED
    else:
        state = LineState.RUNNING if live.running else LineState.WAITING
    note = live.text
    if live.shards is not None and live.shards > 1:
        shards = f"{live.shards_done}/{live.shards} shards"
        note = f"{note}, {shards}" if note else shards
    attempt = max(1, status.attempt)
    return StageLine(ref=ref, state=state, attempt=attempt, seconds=live.seconds, live=live, note=note)


NOTES: Mapping[StageKind, tuple[tuple[str, str], ...]] = {
    StageKind.PREPARE: (("train", "train"), ("dev", "dev"), ("rejected", "rejected")),
    StageKind.WARMUP: (("examples", "examples"), ("steps", "steps")),
    StageKind.SCORE: (("rows", "rows"), ("scored", "scored"), ("selected", "selected")),
    StageKind.ROLLOUT: (("pairs", "pairs"), ("trees", "trees"), ("failed_trees", "failed trees")),
    StageKind.TRAIN: (("pairs", "pairs"), ("steps", "steps")),
}
"""Counters shown behind a finished stage: name and word; an absent one is left out."""


def stage_note(ref: StageRef, figures: StageFigures | None) -> str:
    """The result of a finished stage in a few words."""
    if figures is None:
        return ""
    if ref.kind == StageKind.EVALUATE:
        curve = points([figures])
        shown = [_score(point.metrics, "dev/call_accuracy") for point in curve]
        return "dev calls " + " → ".join(shown) if any(shown) else ""
    words = [f"{int(figures.counters[k]):,} {word}" for k, word in NOTES.get(ref.kind, ()) if k in figures.counters]
    if "loss" in figures.metrics:
        words.append(f"loss {figures.metrics['loss']:.3f}")
    return ", ".join(words)


def _score(metrics: Mapping[str, float], name: str) -> str:
    if name not in metrics:
        return ""
    se = metrics.get(f"{name}_se")
    return f"{metrics[name]:.3f}" + (f" ± {se:.3f}" if se is not None else "")


def duration(seconds: float) -> str:
    """`<1s`, `7s`, `3m04s`, `2h05m`."""
    whole = max(0, round(seconds))
    if whole < 1:
        return "<1s"
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def plain_lines(before: View | None, after: View, *, progress: bool) -> list[str]:
    """Lines for a log: one per transition; when `progress` asks for it, how far the stage is since `before`."""
    known = {line.ref: line for line in before.lines} if before else {}
    out: list[str] = []
    done = sum(line.state == LineState.DONE for line in after.lines)
    if before is None and done:
        out.append(f"{done} of {len(after.lines)} stages are done")
        known = {line.ref: line for line in after.lines if line.state == LineState.DONE}
    for line in after.lines:
        was = known.get(line.ref)
        same = was is not None and was.state == line.state and was.attempt == line.attempt
        moved = was is None or (was.live.done, was.note) != (line.live.done, line.note)
        if line.state == LineState.RUNNING and ((progress and moved) or not same):
            out.append(f"{line.plain_title}: {'running' if same else _started(line)}{_progress_words(line)}")
        elif not same and line.state in (LineState.DONE, LineState.FAILED, LineState.INTERRUPTED):
            took = f" in {duration(line.seconds)}" if line.state == LineState.DONE else ""
            note = f": {line.note}" if line.note else ""
            out.append(f"{line.plain_title}: {line.state.value}{took}{note}")
    if after.message and (before is None or before.message != after.message):
        out.append(after.message)
    return out


def _started(line: StageLine) -> str:
    return "started" if line.attempt <= 1 else f"started, attempt {line.attempt}"


def _progress_words(line: StageLine) -> str:
    live = line.live
    words = f" {live.done}/{live.total} ({100 * live.done // live.total}%)" if live.total else ""
    words += f" {line.note}" if line.note else ""
    return words + (f", {duration(live.eta_s)} left" if live.eta_s is not None else "")
