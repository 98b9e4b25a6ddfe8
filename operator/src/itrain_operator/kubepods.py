"""What the pods of one Job say: why they wait, how they ended, how far they are. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from pydantic import ValidationError

from itrain_contract.names import ExitCode
from itrain_contract.stageio import TerminationSummary, add_counters
from itrain_operator.kubeapi import Raw
from itrain_operator.kubeobserve import DISRUPTION, JobDetails, JobRecord, indexes, parse_time
from itrain_operator.observed import JobState
from itrain_operator.policies import IMAGE_REASONS, OUT_OF_MEMORY

LABEL_INDEX = "batch.kubernetes.io/job-completion-index"
UNSCHEDULABLE = "Unschedulable"
UNREMARKABLE = ("ContainerCreating", "PodInitializing")
"""Waiting reasons of a container about to start."""
PROGRESS_LINE = re.compile(r" itrain_pipeline\.progress: (\d+)/(\d+) ?(.*)$")
TELLING = (ExitCode.CONFIG, ExitCode.DATA, ExitCode.PERMANENT)
_LATEST = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class PodFacts:
    """One pod."""

    name: str
    index: int | None = None
    phase: str = ""
    exit_code: int | None = None
    reason: str = ""
    """Why it waits, or how its container ended."""
    message: str = ""
    """The words that go with the reason while it waits."""
    said: str = ""
    """The termination message."""
    started: datetime | None = None
    finished: datetime | None = None
    disrupted: bool = False


def parse_pod(raw: Raw) -> PodFacts:
    """The facts of a pod with one container that matters, the first one."""
    metadata, status = raw["metadata"], raw.get("status", {})
    label = (metadata.get("labels") or {}).get(LABEL_INDEX, "")
    conditions = status.get("conditions") or []
    facts = PodFacts(
        name=metadata["name"],
        index=int(label) if label.isdecimal() else None,
        phase=status.get("phase", ""),
        disrupted=any(c.get("type") == DISRUPTION and c.get("status") == "True" for c in conditions),
    )
    containers = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    for container in containers:
        waiting = (container.get("state") or {}).get("waiting")
        if waiting and waiting.get("reason", "") not in UNREMARKABLE:
            return replace(facts, reason=waiting.get("reason", ""), message=waiting.get("message", ""))
    ended = _terminated(status)
    if ended is not None:
        return replace(
            facts,
            exit_code=ended.get("exitCode"),
            reason=ended.get("reason", ""),
            said=ended.get("message", ""),
            started=parse_time(ended.get("startedAt")),
            finished=parse_time(ended.get("finishedAt")),
        )
    unscheduled = next((c for c in conditions if c.get("type") == "PodScheduled" and c.get("status") == "False"), None)
    if unscheduled is not None:
        return replace(facts, reason=unscheduled.get("reason", ""), message=unscheduled.get("message", ""))
    return replace(facts, reason=status.get("reason", ""), message=status.get("message", ""))


def _terminated(status: Raw) -> Raw | None:
    for container in status.get("containerStatuses") or []:
        found: Raw | None = (container.get("state") or {}).get("terminated")
        if found is not None:
            return found
    return None


def pending_details(pods: Iterable[PodFacts], refused: str = "") -> JobDetails:
    """Why pods do not start; `refused` is what the API server said to their creation (a quota)."""
    waiting = [pod for pod in pods if pod.phase == "Pending" and pod.reason]
    ranked = sorted(waiting, key=lambda pod: (pod.reason not in IMAGE_REASONS, pod.reason == UNSCHEDULABLE, pod.name))
    if ranked:
        return JobDetails(reason=ranked[0].reason, message=ranked[0].message)
    if refused:
        return JobDetails(reason="FailedCreate", message=refused)
    return JobDetails()


def ended_details(record: JobRecord, pods: list[PodFacts]) -> tuple[JobDetails, str]:
    """How a Job ended, and the name of the pod that decided it (empty where none did, or it is gone)."""
    failed = record.state() == JobState.FAILED
    decisive = decisive_pod(record, pods) if failed else None
    summary = _shard_summary(record, pods) if record.shards is not None else _own_summary(pods)
    details = JobDetails(
        summary=summary,
        started=min((pod.started for pod in pods if pod.started), default=None),
        finished=max((pod.finished for pod in pods if pod.finished), default=None),
    )
    if decisive is None:
        return details, ""
    told = parse_summary(decisive.said)
    return (
        replace(
            details,
            exit_code=decisive.exit_code,
            disrupted=decisive.disrupted,
            reason=decisive.reason if decisive.reason not in ("", "Error") else record.reason,
            message=failure_message(decisive, told, sharded=record.shards is not None),
            summary=(summary if record.shards is not None else None) or told,
        ),
        decisive.name,
    )


def told_everything(record: JobRecord, pods: list[PodFacts]) -> bool:
    """Whether pods seen by a watch are all that there is to know of an ended Job.

    What a pod that succeeded said never changes, so a completed Job is known once they are all there. Of a failed one a
    watch that is behind may lack the pod that matters.
    """
    if record.state() != JobState.COMPLETE:
        return False
    done = [pod for pod in pods if pod.phase == "Succeeded"]
    if record.shards is None:
        return len(done) >= record.completions
    return len(done) >= record.succeeded and indexes(record.completed) <= {pod.index for pod in done}


def decisive_pod(record: JobRecord, pods: list[PodFacts]) -> PodFacts | None:
    """The failed pod that tells most: a final exit code before others, lack of memory before a plain kill.

    Pods that were only stopped along with the others (143) and disrupted ones come last; of equals the first to end.
    """
    given_up = indexes(record.failed_indexes) if record.shards is not None else frozenset()
    failed = [pod for pod in pods if pod.phase == "Failed"]
    relevant = [pod for pod in failed if pod.index in given_up] if given_up else failed
    fatal = [pod for pod in failed if pod.exit_code in TELLING[:2] and not pod.disrupted]

    def rank(pod: PodFacts) -> tuple[int, datetime, str]:
        code = pod.exit_code
        if pod.disrupted:
            order = 5
        elif code in TELLING:
            order = TELLING.index(ExitCode(code))
        elif pod.reason == OUT_OF_MEMORY:
            order = 3
        else:
            order = 6 if code == ExitCode.INTERRUPTED else 4
        return (order, pod.finished or _LATEST, pod.name)

    return min(fatal or relevant or failed, key=rank, default=None)


def failure_message(pod: PodFacts, told: TerminationSummary | None, *, sharded: bool) -> str:
    """One line: which shard, the exit code, the process's own words."""
    words = (told.message if told is not None else "") or pod.message
    where = f"shard {pod.index}: " if sharded and pod.index is not None else ""
    code = "no exit code" if pod.exit_code is None else f"exit code {pod.exit_code}"
    return f"{where}{code}" + (f": {words}" if words else "")


def parse_summary(said: str) -> TerminationSummary | None:
    """The termination message of a stage; None for anything else that a container may leave there."""
    try:
        return TerminationSummary.model_validate_json(said) if said else None
    except ValidationError:
        return None


def _own_summary(pods: list[PodFacts]) -> TerminationSummary | None:
    """Of an unsharded stage that succeeded; of several nodes the first one speaks."""
    done = sorted((pod for pod in pods if pod.phase == "Succeeded"), key=lambda pod: (pod.index or 0, pod.name))
    return next((found for pod in done if (found := parse_summary(pod.said)) is not None), None)


def _shard_summary(record: JobRecord, pods: list[PodFacts]) -> TerminationSummary | None:
    """The counters of the completed shards, added up; each index counts once."""
    by_index = {pod.index: pod for pod in pods if pod.phase == "Succeeded" and pod.index is not None}
    parts = [found for pod in by_index.values() if (found := parse_summary(pod.said)) is not None]
    if not parts:
        return None
    counters = add_counters(part.counters for part in parts)
    return TerminationSummary(exit_code=0, counters=counters, seconds=max(part.seconds for part in parts))


def parse_progress(log: str) -> tuple[int, int, str] | None:
    """Done, total and text of the newest progress line in a piece of a stage's log."""
    for line in reversed(log.splitlines()):
        found = PROGRESS_LINE.search(line)
        if found:
            return int(found.group(1)), int(found.group(2)), found.group(3)
    return None
