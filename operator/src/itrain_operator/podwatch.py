"""Watches the pods of all Jobs of ours, and nothing else of a cluster's pods: the server sorts them out by label.

Not by kopf, which keeps a task and several copies for every object (ADR 10).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Protocol

from itrain_contract.names import LABEL_RUN
from itrain_operator.backoff import delay_s
from itrain_operator.kubeapi import PODS, ApiError, Cluster, ExpiredError, Streams, pages, watch
from itrain_operator.podcache import PodCache, read_pod

log = logging.getLogger(__name__)

WATCH_S, SILENCE_S = 40, 50.0
"""A watch is asked to end after so long and goes on where it was: one that has died in silence is noticed before a
pending pod's reason is a minute old."""
AGAIN_S, AGAIN_MAX_S = 1.0, 60.0


class Watched(Cluster, Streams, Protocol):
    """A cluster that can be watched."""


class PodWatch:
    """One namespace's, or of all of them (""). While it is broken the cache says that it knows nothing."""

    def __init__(
        self,
        cluster: Watched,
        cache: PodCache,
        namespace: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._cluster = cluster
        self._cache = cache
        self._namespace = namespace
        self._clock, self._sleep = clock, sleep

    async def run(self) -> None:
        """For ever."""
        failures = 0
        while True:
            began = self._clock()
            try:
                version = await self._list()
                while True:
                    version = await self._follow(version)
                    failures = 0
                    began = await self._paced(began)
            except ExpiredError:
                log.info("the watch of pods is too far behind; they are listed again")
                await self._paced(began)
            except ApiError as error:
                failures += 1
                delay = delay_s(failures, first_s=AGAIN_S, most_s=AGAIN_MAX_S)
                log.warning(
                    "pods cannot be watched and are asked for one Job at a time; again in %.0f s: %s", delay, error
                )
                self._cache.doubt(self._namespace)
                await self._sleep(delay)

    async def _paced(self, began: float) -> float:
        """A server that ends every watch at once is asked once in AGAIN_S; the moment at which it may be."""
        await self._sleep(max(0.0, began + AGAIN_S - self._clock()))
        return self._clock()

    async def _list(self) -> str:
        """The version of the list."""
        found = []
        version = ""
        async for page in pages(self._cluster, PODS, self._namespace, labels=LABEL_RUN):
            version = page.resource_version
            found += [read_pod(raw) for raw in page.items]
        self._cache.fill(self._namespace, found)
        return version

    async def _follow(self, version: str) -> str:
        """Until the server ends the watch; the version that the next one starts from."""
        changes = watch(
            self._cluster,
            PODS,
            self._namespace,
            version=version,
            silence_s=SILENCE_S,
            labelSelector=LABEL_RUN,
            timeoutSeconds=str(WATCH_S),
        )
        async with aclosing(changes) as events:
            async for kind, raw in events:
                version = raw["metadata"]["resourceVersion"]
                if kind == "DELETED":
                    self._cache.remove(self._namespace, raw)
                elif kind != "BOOKMARK":
                    self._cache.put(self._namespace, raw)
        return version
