"""The whole list of runs and Jobs, now and then: what a watch lost comes to light, and the caches are filled by it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence

from itrain_contract.names import LABEL_RUN
from itrain_operator.backoff import delay_s
from itrain_operator.cache import Cache, RunKey
from itrain_operator.health import Vitals
from itrain_operator.kubeapi import JOBS, RUNS, ApiError, Cluster, pages

log = logging.getLogger(__name__)

AGAIN_S, AGAIN_MAX_S = 1.0, 30.0
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

    async def run(self) -> None:
        """For ever; a list that fails is asked for again soon."""
        failures = 0
        while True:
            try:
                await self.once()
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
        first = self._vitals.resynced is None
        for namespace in self._namespaces:
            await self._jobs(namespace)
            await self._runs(namespace)
        self._vitals.resynced = self._clock()
        spread_s = 0.0 if first else self._interval_s * SPREAD
        for key in self._cache.keys_now():
            self._enqueue(key, self._rng.uniform(0, spread_s))

    async def _runs(self, namespace: str) -> None:
        listed: set[str] = set()
        version = ""
        async for page in pages(self._cluster, RUNS, namespace):
            version = page.resource_version
            for raw in page.items:
                listed.add(raw["metadata"]["uid"])
                self._cache.put_run(raw)
        for key in self._cache.sweep_runs(listed, version, namespace):
            self._enqueue(key, 0.0)

    async def _jobs(self, namespace: str) -> None:
        listed: set[str] = set()
        version = ""
        async for page in pages(self._cluster, JOBS, namespace, labels=LABEL_RUN):
            version = page.resource_version
            for raw in page.items:
                listed.add(raw["metadata"]["uid"])
                self._cache.put_job(raw)
        self._cache.sweep_jobs(listed, version, namespace)
