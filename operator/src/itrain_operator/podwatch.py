"""Watches the pods of all Jobs of ours, and nothing else of a cluster's pods: the server sorts them out by label.

Not by kopf, which keeps a task and several copies for every object (ADR 10).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Protocol

from itrain_contract.names import LABEL_RUN
from itrain_operator.kubeapi import PODS, ApiError, Cluster, ExpiredError, pages, watch_event
from itrain_operator.podcache import PodCache, read_pod

log = logging.getLogger(__name__)

WATCH_S, SILENCE_S = 40, 50.0
"""A watch is asked to end after so long and goes on where it was: one that has died in silence is noticed before a
pending pod's reason is a minute old."""
AGAIN_S, AGAIN_MAX_S = 1.0, 60.0


class Streams(Cluster, Protocol):
    """A cluster that can be watched."""

    def lines(self, path: str, *, query: Sequence[tuple[str, str]], silence_s: float) -> AsyncGenerator[str]:
        """The lines of an answer without end; raises ApiError, also after a long silence."""


class PodWatch:
    """One namespace's, or of all of them (""). While it is broken the cache says that it knows nothing."""

    def __init__(self, cluster: Streams, cache: PodCache, namespace: str) -> None:
        self._cluster = cluster
        self._cache = cache
        self._namespace = namespace

    async def run(self) -> None:
        """For ever."""
        failures = 0
        while True:
            try:
                version = await self._list()
                while True:
                    version = await self._follow(version)
                    failures = 0
            except ExpiredError:
                log.info("the watch of pods is too far behind; they are listed again")
            except ApiError as error:
                delay = min(AGAIN_MAX_S, AGAIN_S * 2.0 ** min(failures, 10))
                failures += 1
                log.warning(
                    "pods cannot be watched and are asked for one Job at a time; again in %.0f s: %s", delay, error
                )
                self._cache.doubt(self._namespace)
                await asyncio.sleep(delay)

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
        query = [
            ("watch", "1"),
            ("allowWatchBookmarks", "true"),
            ("labelSelector", LABEL_RUN),
            ("resourceVersion", version),
            ("timeoutSeconds", str(WATCH_S)),
        ]
        path = PODS.path(self._namespace)
        async with aclosing(self._cluster.lines(path, query=query, silence_s=SILENCE_S)) as lines:
            async for line in lines:
                kind, raw = watch_event(line)
                version = raw["metadata"]["resourceVersion"]
                if kind == "DELETED":
                    self._cache.remove(self._namespace, raw)
                elif kind != "BOOKMARK":
                    self._cache.put(self._namespace, raw)
        return version
