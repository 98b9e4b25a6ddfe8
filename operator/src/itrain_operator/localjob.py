"""What Kubernetes' Job controller decides, for local jobs: which indexes run, which failed, how the job ends. Pure.

An index is retried up to its back-off limit; exit 70 fails it at once; 64 and 65 fail the whole job; a process that
ended with the machine or with `itrain` itself is a disruption, never a failure (API document, "What the operator
creates").
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from itrain_contract.names import ExitCode
from itrain_operator.backoff import delay_s

FAIL_JOB = (ExitCode.CONFIG, ExitCode.DATA)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """One execution of an index. Times are Unix seconds."""

    code: int
    started: float
    finished: float
    disrupted: bool = False
    """It was stopped from outside (Ctrl-C, shutdown): not a failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLimits:
    """The numbers of a Job's spec."""

    shards: int
    parallelism: int
    retries_per_index: int = 0
    max_failed_indexes: int = 0
    backoff_s: float = 10.0
    max_backoff_s: float = 600.0


class IndexState(StrEnum):
    WAITING = "waiting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class Verdict(StrEnum):
    ACTIVE = "active"
    COMPLETE = "complete"
    FAILED = "failed"


def failures(ended: tuple[Ended, ...]) -> int:
    return sum(1 for e in ended if e.code != ExitCode.DONE and not e.disrupted)


def index_state(ended: tuple[Ended, ...], limits: JobLimits) -> IndexState:
    """WAITING means that the index runs or is to run (again)."""
    if any(e.code == ExitCode.DONE for e in ended):
        return IndexState.SUCCEEDED
    final = any(e.code in (ExitCode.PERMANENT, *FAIL_JOB) and not e.disrupted for e in ended)
    return IndexState.FAILED if final or failures(ended) > limits.retries_per_index else IndexState.WAITING


def ready_at(ended: tuple[Ended, ...], limits: JobLimits) -> float:
    """Unix time from which an index may start: back-off · 2^(failures − 1), bounded, after the last failure."""
    count = failures(ended)
    if not count:
        return 0.0
    last = max(e.finished for e in ended if e.code != ExitCode.DONE and not e.disrupted)
    return last + delay_s(count, first_s=limits.backoff_s, most_s=limits.max_backoff_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobVerdict:
    """How a job stands: its state, and its indexes by theirs."""

    state: Verdict
    completed: frozenset[int]
    failed: frozenset[int]
    exit_code: int | None = None
    """Of the failure that decided the job; None unless failed."""


def judge(history: tuple[tuple[Ended, ...], ...], limits: JobLimits) -> JobVerdict:
    """`history[k]` holds the executions of index k.

    A job whose every index ended is complete only without failed ones; the quorum is the planner's to judge.
    """
    states = [index_state(ended, limits) for ended in history]
    completed = frozenset(k for k, state in enumerate(states) if state == IndexState.SUCCEEDED)
    failed = frozenset(k for k, state in enumerate(states) if state == IndexState.FAILED)
    codes = [e.code for k in sorted(failed) for e in history[k][-1:]]
    fatal = [code for code in codes if code in FAIL_JOB]
    over = len(completed) + len(failed) == limits.shards
    if fatal or len(failed) > limits.max_failed_indexes or (over and failed):
        code = (fatal or [c for c in codes if c == ExitCode.PERMANENT] or codes)[0]
        return JobVerdict(state=Verdict.FAILED, completed=completed, failed=failed, exit_code=code)
    state = Verdict.COMPLETE if over else Verdict.ACTIVE
    return JobVerdict(state=state, completed=completed, failed=failed)


def to_start(
    history: tuple[tuple[Ended, ...], ...], running: frozenset[int], limits: JobLimits, now: float
) -> tuple[int, ...]:
    """Indexes to start now, lowest first, within `parallelism`; none once the job has ended."""
    if judge(history, limits).state != Verdict.ACTIVE:
        return ()
    ready = [
        k
        for k, ended in enumerate(history)
        if k not in running and index_state(ended, limits) == IndexState.WAITING and ready_at(ended, limits) <= now
    ]
    return tuple(ready[: max(0, limits.parallelism - len(running))])


def next_start(history: tuple[tuple[Ended, ...], ...], running: frozenset[int], limits: JobLimits) -> float | None:
    """Unix time at which an index's back-off ends; None when none waits for one."""
    times = [
        ready_at(ended, limits)
        for k, ended in enumerate(history)
        if k not in running and index_state(ended, limits) == IndexState.WAITING and failures(ended)
    ]
    return min(times, default=None)
