"""The whole list of runs and Jobs, now and then: what a watch lost comes to light, and the caches are filled by it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from itrain_contract.names import LABEL_RUN, Phase
from itrain_operator.backoff import delay_s
from itrain_operator.cache import Cache, RunKey
from itrain_operator.health import Vitals
from itrain_operator.kubeapi import JOBS, RUNS, ApiError, Cluster, pages

log = logging.getLogger(__name__)

AGAIN_S, AGAIN_MAX_S = 1.0, 30.0
PACE_S = 0.01
"""So long a run with a Job under way is given its first pass after the one before: a thousand want nothing at once."""
LEADER_FIRST_S = 2.0
"""Until a process that does not lead by then lists for itself: a leader lists anyway, and each list costs seconds."""
NEVER = datetime.min.replace(tzinfo=UTC)
TERMINAL_PHASES = frozenset(phase.value for phase in Phase if phase.terminal)
SPREAD = 0.1
"""Share of the interval over which the runs are looked at, and by which the interval itself varies."""


class Resync:
    """`enqueue(key, delay)` asks for a pass. `namespaces` empty means all."""

    def __init__(
        self,
        cluster: Cluster,
        cache: Cache,
        vitals: Vitals,
        *,
        namespaces: Sequence[str],
        interval_s: float,
        enqueue: Callable[[RunKey, float], None],
        clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._cluster = cluster
        self._cache = cache
        self._vitals = vitals
        self._namespaces = tuple(namespaces) or ("",)
        self._interval_s = interval_s
        self._enqueue = enqueue
        self._clock = clock
        self._rng = rng
        self._listing = asyncio.Lock()

    async def run(self) -> None:
        """For ever; a list that fails is asked for again soon. Who leads at once has listed everything meanwhile."""
        await asyncio.sleep(LEADER_FIRST_S)
        failures = 0
        while True:
            try:
                await self._again()
            except ApiError as error:
                failures += 1
                delay = delay_s(failures, first_s=AGAIN_S, most_s=AGAIN_MAX_S)
                log.warning("the list of runs and Jobs failed, again in %.0f s: %s", delay, error)
            else:
                failures = 0
                delay = self._interval_s * (1 + SPREAD * self._rng.uniform(-1, 1))
            await asyncio.sleep(delay)

    async def once(self) -> None:
        """List everything, mend the cache, ask for a pass over every run. Raises ApiError."""
        async with self._listing:
            await self._list()

    async def _again(self) -> None:
        """The same, unless a list that is no older than the pause between two of them has come in between."""
        async with self._listing:
            last = self._vitals.resynced
            if last is None or self._clock() - last >= self._interval_s * (1 - SPREAD):
                await self._list()

    async def _list(self) -> None:
        for namespace in self._namespaces:
            listed = await self._runs(namespace)
            await self._jobs(namespace)
            for key, version in listed.items():
                self._cache.note_complete(key, version)
        self._vitals.resynced = self._clock()
        self._enqueue_all()

    def _enqueue_all(self) -> None:
        """Runs without a Job under way first, the one that waits longest before the others; the rest one by one."""
        idle, rest = by_need(self._cache)
        for key in idle:
            self._enqueue(key, 0.0)
        over_s = min(self._interval_s * SPREAD, len(rest) * PACE_S)
        for key in rest:
            self._enqueue(key, self._rng.uniform(0, over_s))

    async def _runs(self, namespace: str) -> dict[RunKey, str]:
        """The runs as listed, with their versions."""
        listed: dict[RunKey, str] = {}
        uids: set[str] = set()
        version = ""
        async for page in pages(self._cluster, RUNS, namespace):
            version = page.resource_version
            for raw in page.items:
                metadata = raw["metadata"]
                uids.add(metadata["uid"])
                listed[RunKey(namespace=metadata["namespace"], name=metadata["name"])] = metadata["resourceVersion"]
                self._cache.put_run(raw)
        for key in self._cache.sweep_runs(uids, version, namespace):
            self._enqueue(key, 0.0)
        return listed

    async def _jobs(self, namespace: str) -> None:
        listed: set[str] = set()
        version = ""
        async for page in pages(self._cluster, JOBS, namespace, labels=LABEL_RUN):
            version = page.resource_version
            for raw in page.items:
                listed.add(raw["metadata"]["uid"])
                self._cache.put_job(raw)
        self._cache.sweep_jobs(listed, version, namespace)


def by_need(cache: Cache) -> tuple[list[RunKey], list[RunKey]]:
    """The keys of runs that may want a Job now, by how long they have waited, and all the others."""
    waiting: list[tuple[datetime, RunKey]] = []
    rest: list[RunKey] = []
    for key in cache.keys_now():
        record, jobs = cache.run(key), cache.jobs(key)
        assert record is not None
        ended = record.phase in TERMINAL_PHASES
        if ended or record.deleting or not all(job.state().ended for job in jobs):
            rest.append(key)
            continue
        since = [time for time in (record.created, *(job.finished for job in jobs)) if time is not None]
        waiting.append((max(since, default=NEVER), key))
    return [key for _, key in sorted(waiting)], rest
