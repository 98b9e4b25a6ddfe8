"""One run followed through watches that break, servers that restart, and its own deletion."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from itrain_operator.clusteraccess import Access, explain
from itrain_operator.clusterruns import ClusterRun, read_run
from itrain_operator.kubeapi import RUNS, ApiError, ExpiredError, NotFoundError, RefusedError, watch

WATCH_S = 45
"""A watch is asked to end after this long; the next one starts from a fresh read."""
SILENCE_S = 60.0
AGAIN_S = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Pauses after one, two, … failures in a row; the last one from then on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """The server cannot be asked at the moment; it is tried again."""

    message: str


class Gone:
    """The run was deleted, or replaced by another one of the same name."""


Seen = ClusterRun | Lost | Gone


async def follow(access: Access, name: str) -> AsyncGenerator[Seen]:
    """The run as it is now, then each time it changed; ends with `Gone`. The caller leaves when it has seen enough.

    Raises ClusterError when the first read is refused; later refusals of a server that restarts are `Lost`.
    """
    failures, uid, version = 0, "", ""
    while True:
        try:
            raw = await access.cluster.get(RUNS, access.namespace, name)
            run = read_run(raw)
            if uid not in ("", run.uid):
                yield Gone()
                return
            failures, uid = 0, run.uid
            if raw["metadata"]["resourceVersion"] != version:
                version = raw["metadata"]["resourceVersion"]
                yield run
            try:
                async with aclosing(_watch(access, name, version)) as events:
                    async for event in events:
                        if event is None or event.uid != uid:
                            yield Gone()
                            return
                        version = event.raw["metadata"]["resourceVersion"]
                        yield event
            except ExpiredError:
                pass  # too far behind: it is read anew
            await asyncio.sleep(AGAIN_S[0])
        except NotFoundError as error:
            if not uid:
                raise explain(error, access, name) from error
            yield Gone()
            return
        except ApiError as error:
            refused = isinstance(error, RefusedError) and failures > len(AGAIN_S)
            if not uid or refused:
                raise explain(error, access, name) from error
            yield Lost(message=str(error))
            await asyncio.sleep(AGAIN_S[min(failures, len(AGAIN_S) - 1)])
            failures += 1


async def _watch(access: Access, name: str, version: str) -> AsyncGenerator[ClusterRun | None]:
    """Changes after `version`; None for the deletion. Ends when the server ends it; raises ApiError."""
    changes = watch(
        access.cluster,
        RUNS,
        access.namespace,
        version=version,
        silence_s=SILENCE_S,
        fieldSelector=f"metadata.name={name}",
        timeoutSeconds=str(WATCH_S),
    )
    async with aclosing(changes) as events:
        async for kind, raw in events:
            if kind == "DELETED":
                yield None
                return
            if kind in ("ADDED", "MODIFIED"):
                yield read_run(raw)
