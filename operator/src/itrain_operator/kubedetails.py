"""Looks at the pods of the Job under way: while it waits, once when it has ended, and now and then for the progress
line in its log. Pods come from the watch; the server is asked for them while that is broken, and where a Job failed.

Nothing here decides; what was found is remembered per Job for as long as it is news, so that the passes in between cost
no request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from itrain_operator.kubeapi import EVENTS, PODS, ApiError, Cluster, NotFoundError, pages
from itrain_operator.kubeobserve import NO_DETAILS, JobDetails, JobRecord
from itrain_operator.kubepods import (
    PodFacts,
    ended_details,
    parse_pod,
    parse_progress,
    pending_details,
    told_everything,
)
from itrain_operator.observed import JobState
from itrain_operator.podcache import LABEL_JOB_UID, PodCache
from itrain_operator.ratelimit import TokenBucket

log = logging.getLogger(__name__)

PENDING_AGAIN_S = 20.0
"""A waiting Job is looked at this often: its reason shows within a minute."""
FIRST_LOOK_S = 5.0
"""A Job that was just made gets this long to start before anybody asks why it has not."""
PENDING_PODS = 20
ENDED_PODS = 100
SHARD_PAGES = 40
LOG_TAIL_LINES, LOG_TAIL_BYTES = 20, 4096
PROGRESS_LINES, PROGRESS_BYTES = 10, 2048
LOG_TIMEOUT_S = 10.0
"""A node that does not answer must not hold a worker for long."""


@dataclass(slots=True)
class _Seen:
    """What is known of one Job."""

    state: JobState
    details: JobDetails = NO_DETAILS
    next_look: float = 0.0
    """Clock time before which there is no need to look again; infinite once everything is known."""
    pod: str = ""
    """Whose log tells the progress."""
    idle_since: float | None = None
    """When the Job was first seen without a ready pod after it had one."""


class Inspector:
    """Details of Jobs, by UID. `clock` gives seconds that never run backwards."""

    def __init__(
        self,
        cluster: Cluster,
        pods: PodCache,
        *,
        clock: Callable[[], float],
        progress_interval_s: float,
        progress_rate: TokenBucket,
    ) -> None:
        self._cluster = cluster
        self._pods = pods
        self._clock = clock
        self._interval_s = progress_interval_s
        self._rate = progress_rate
        self._seen: dict[str, _Seen] = {}

    async def details(self, record: JobRecord) -> JobDetails:
        """What the Job's pods say; raises ApiError when an ended Job's pods cannot be read."""
        now = self._clock()
        seen = self._seen.get(record.uid)
        state = self._settled(record.state(), seen, now)
        if seen is None or seen.state != state:
            kept = seen.details if seen is not None and state == JobState.ACTIVE else NO_DETAILS
            seen = self._seen[record.uid] = _Seen(state, details=replace(kept, reason="", message=""))
            if state == JobState.PENDING:
                seen.next_look = now + FIRST_LOOK_S
        if now >= seen.next_look:
            await self._look(record, seen, now)
        return replace(seen.details, state=state)

    def _settled(self, state: JobState, seen: _Seen | None, now: float) -> JobState:
        """The Job's state, but for moments: between a pod's end and the count of it a Job looks as if it waited."""
        if seen is None or seen.state != JobState.ACTIVE or state != JobState.PENDING:
            if seen is not None:
                seen.idle_since = None
            return state
        if seen.idle_since is None:
            seen.idle_since = now
        if now - seen.idle_since >= FIRST_LOOK_S:
            return state
        seen.next_look = min(seen.next_look, seen.idle_since + FIRST_LOOK_S)
        return JobState.ACTIVE

    def wake_s(self, record: JobRecord) -> float | None:
        """Seconds until it is worth looking again although no event came; None when only an event matters."""
        seen = self._seen.get(record.uid)
        if seen is None or seen.next_look == float("inf"):
            return None
        return max(0.0, seen.next_look - self._clock())

    def forget(self, keep: frozenset[str], among: frozenset[str]) -> None:
        """Drop what is known of the Jobs `among`, those to `keep` excepted."""
        for uid in among - keep:
            self._seen.pop(uid, None)

    async def _look(self, record: JobRecord, seen: _Seen, now: float) -> None:
        if seen.state.ended:
            seen.details = await self._ended(record)
            seen.next_look = float("inf")
        elif seen.state == JobState.PENDING:
            seen.details = await self._pending(record)
            seen.next_look = now + PENDING_AGAIN_S
        elif seen.state == JobState.ACTIVE and record.shards is None:
            seen.next_look = now + self._spacing_s()
            if self._rate.take(now):
                seen.details = await self._progress(record, seen)
        else:
            seen.next_look = float("inf")

    def _spacing_s(self) -> float:
        """Time between two looks at a Job's progress: as long as it takes to look at all the others in between.

        Runs that came up more often would be turned away, each time at the price of a pass.
        """
        return max(self._interval_s, len(self._seen) / self._rate.rate)

    async def _pending(self, record: JobRecord) -> JobDetails:
        """Best effort: a run must not stand still because its reason cannot be read."""
        try:
            found = pending_details(await self._pods_in(record, "Pending", PENDING_PODS))
            if found.reason or record.active:
                return found
            return pending_details((), await self._refusal(record))
        except ApiError as error:
            log.warning("why %s/%s waits cannot be read: %s", record.namespace, record.name, error)
            return NO_DETAILS

    async def _refusal(self, record: JobRecord) -> str:
        """What the API server said to the Job controller about new pods (quota, admission): only an event tells."""
        fields = f"involvedObject.uid={record.uid},reason=FailedCreate"
        page = await self._cluster.list(EVENTS, record.namespace, fields=fields, limit=PENDING_PODS)
        last = max(page.items, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime")), default={})
        return str(last.get("message", ""))

    async def _ended(self, record: JobRecord) -> JobDetails:
        known = self._pods.of(record.namespace, record.uid)
        pods = known if known is not None and told_everything(record, known) else await self._ended_pods(record)
        details, decisive = ended_details(record, pods)
        if decisive:
            details = replace(details, log_tail=await self._log(record, decisive, LOG_TAIL_LINES, LOG_TAIL_BYTES))
        return details

    async def _pods_in(self, record: JobRecord, phase: str, limit: int) -> list[PodFacts]:
        """Pods of the Job in a phase; when the server must be asked, `limit` of them."""
        known = self._pods.of(record.namespace, record.uid)
        if known is not None:
            return [pod for pod in known if pod.phase == phase]
        fields = f"status.phase={phase}"
        page = await self._cluster.list(PODS, record.namespace, labels=_selector(record), fields=fields, limit=limit)
        return [parse_pod(raw) for raw in page.items]

    async def _ended_pods(self, record: JobRecord) -> list[PodFacts]:
        """Pods of an ended Job: all of them where their counters are summed, as far as the bound goes."""
        found: list[PodFacts] = []
        left = SHARD_PAGES if record.shards is not None else 1
        async for page in pages(self._cluster, PODS, record.namespace, labels=_selector(record), limit=ENDED_PODS * 2):
            found += [parse_pod(raw) for raw in page.items]
            left -= 1
            if left <= 0:
                break
        return found

    async def _progress(self, record: JobRecord, seen: _Seen) -> JobDetails:
        """The newest progress line of the (first) pod's log; best effort."""
        try:
            if not seen.pod:
                seen.pod = await self._running_pod(record)
            if not seen.pod:
                return seen.details
            text = await self._log(record, seen.pod, PROGRESS_LINES, PROGRESS_BYTES)
        except ApiError as error:
            log.warning("progress of %s/%s cannot be read: %s", record.namespace, record.name, error)
            return seen.details
        found = parse_progress(text)
        if found is None:
            seen.pod = seen.pod if text else ""
            return seen.details
        done, total, said = found
        return replace(seen.details, progress_done=done, progress_total=total, progress_text=said)

    async def _running_pod(self, record: JobRecord) -> str:
        running = await self._pods_in(record, "Running", ENDED_PODS)
        pods = sorted(running, key=lambda pod: (pod.index or 0, pod.name))
        return pods[0].name if pods else ""

    async def _log(self, record: JobRecord, pod: str, lines: int, size: int) -> str:
        """The end of a pod's log; empty when it is gone, or its node is and nobody can read it."""
        try:
            async with asyncio.timeout(LOG_TIMEOUT_S):
                return await self._cluster.pod_log(record.namespace, pod, tail_lines=lines, limit_bytes=size)
        except NotFoundError:
            return ""
        except (ApiError, TimeoutError) as error:
            log.warning("the log of %s/%s cannot be read: %s", record.namespace, pod, error)
            return ""


def _selector(record: JobRecord) -> str:
    return f"{LABEL_JOB_UID}={record.uid}"
