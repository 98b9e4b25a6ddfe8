"""A local job as the planner sees any job: the parsing half of the local backend. Reads files, decides nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from itrain_contract.names import ExitCode
from itrain_contract.stageio import StageInput, TerminationSummary, add_counters
from itrain_operator.localjob import Ended, Verdict, judge
from itrain_operator.localstate import UNSHARDED, JobFolder, StoredJob
from itrain_operator.observed import JobState, JobView

LOG_TAIL_BYTES = 4096
LOG_TAIL_LINES = 20


def job_view(
    *,
    folder: JobFolder,
    stored: StoredJob,
    stage_input: StageInput,
    history: tuple[tuple[Ended, ...], ...],
    running: Mapping[int, float],
    deleting: bool,
) -> JobView:
    """`history[k]` holds the ended executions of index k; `running` when each index with a process started, Unix s."""
    verdict = judge(history, stored.limits)
    state = job_state(verdict.state, running=bool(running), deleting=deleting)
    over = state in (JobState.COMPLETE, JobState.FAILED)
    decisive = min(verdict.failed, default=None) if over else None
    progress = [p for shard in range(stored.limits.shards) if (p := folder.progress(shard)) is not None]
    summary = _summary(folder, stage_input, verdict.completed) if over else None
    failed = None if decisive is None else folder.termination(decisive)
    return JobView(
        name=folder.name,
        uid=stored.uid,
        ref=stage_input.ref,
        attempt=stage_input.attempt,
        digest=stage_input.digest,
        shards=stage_input.shards,
        state=state,
        active=len(running),
        succeeded=len(verdict.completed),
        failed=len(verdict.failed),
        completed=verdict.completed if stage_input.shards is not None else frozenset(),
        failed_indexes=verdict.failed if stage_input.shards is not None else frozenset(),
        started=_started(history, running),
        finished=_finished(history) if over else None,
        exit_code=verdict.exit_code if over else None,
        disrupted=over and verdict.exit_code == ExitCode.INTERRUPTED,
        reason="",
        message=failure_message(verdict.exit_code, failed, decisive, stage_input.shards) if over else "",
        summary=summary if decisive is None else summary or failed,
        log_tail="" if decisive is None else log_tail(folder.log(decisive)),
        progress_done=sum(p.done for p in progress),
        progress_total=_total([p.total for p in progress], stored.limits.shards),
        progress_text=next((p.text for p in progress if p.text), ""),
    )


def job_state(verdict: Verdict, *, running: bool, deleting: bool) -> JobState:
    """A failed job whose processes still end is active, as on a cluster (it fails once its pods are gone)."""
    if deleting:
        return JobState.DELETING
    if running:
        return JobState.ACTIVE
    return {Verdict.COMPLETE: JobState.COMPLETE, Verdict.FAILED: JobState.FAILED}.get(verdict, JobState.PENDING)


def _total(totals: list[int], shards: int) -> int:
    """All shards' items; shards that have not reported yet count as the mean of those that have."""
    return round(sum(totals) / len(totals) * shards) if totals else 0


def _started(history: Iterable[tuple[Ended, ...]], running: Mapping[int, float]) -> datetime | None:
    """Of the present execution: after an interruption, the restart."""
    times = list(running.values()) or [ended.started for index in history for ended in index[-1:]]
    return datetime.fromtimestamp(min(times), tz=UTC) if times else None


def _finished(history: Iterable[tuple[Ended, ...]]) -> datetime | None:
    times = [ended.finished for index in history for ended in index]
    return datetime.fromtimestamp(max(times), tz=UTC) if times else None


def _summary(folder: JobFolder, stage_input: StageInput, completed: frozenset[int]) -> TerminationSummary | None:
    """The process's own message; of a sharded stage, its completed shards' counters added up."""
    if stage_input.shards is None:
        return folder.termination(UNSHARDED)
    parts = [found for shard in sorted(completed) if (found := folder.termination(shard)) is not None]
    if not parts:
        return None
    counters = add_counters(part.counters for part in parts)
    seconds = max(part.seconds for part in parts)
    return TerminationSummary(digest=stage_input.digest, exit_code=0, counters=counters, seconds=seconds)


def failure_message(code: int | None, summary: TerminationSummary | None, shard: int | None, shards: int | None) -> str:
    """One line on why a job failed, from the process's own words where it left any."""
    if code is None:
        return ""
    words = summary.message if summary is not None else ""
    if not words and code == ExitCode.KILLED:
        words = "killed by SIGKILL, most often by the kernel for lack of memory"
    where = "" if shards is None else f"shard {shard}: "
    return f"{where}exit code {code}" + (f": {words}" if words else "")


def log_tail(path: Path) -> str:
    """The last lines of a log, whole lines only."""
    if not path.exists():
        return ""
    with path.open("rb") as log:
        size = log.seek(0, os.SEEK_END)
        log.seek(max(0, size - LOG_TAIL_BYTES))
        text = log.read().decode(errors="replace")
    return "\n".join(text.splitlines()[-LOG_TAIL_LINES:])
