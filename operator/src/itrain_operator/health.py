"""Liveness, readiness and metrics over HTTP. The verdicts are pure.

Alive is a process whose event loop turns and whose last whole list of the cluster is not too old: a quiet cluster is
healthy, a silent watch is not. Ready is one whose caches are filled, leader or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from itrain_operator.metrics import Metrics

HEARTBEAT_S = 1.0
HEARTBEAT_LIMIT_S = 30.0
RESYNCS_MISSED = 3


@dataclass(slots=True, kw_only=True)
class Vitals:
    """Times of a clock that never runs backwards; None until it happened once."""

    started: float
    heartbeat: float
    resynced: float | None = None


def why_not_alive(vitals: Vitals, now: float, *, resync_s: float) -> str:
    """The reason to be restarted; empty while there is none."""
    behind = now - vitals.heartbeat
    if behind > HEARTBEAT_LIMIT_S:
        return f"the event loop has not turned for {behind:.0f} s"
    age = now - (vitals.resynced if vitals.resynced is not None else vitals.started)
    limit = RESYNCS_MISSED * resync_s
    if age > limit:
        return f"the last whole list of the cluster is {age:.0f} s old, allowed are {limit:.0f}"
    return ""


def why_not_ready(vitals: Vitals) -> str:
    return "" if vitals.resynced is not None else "the caches are not filled yet"


async def beat(vitals: Vitals, clock: Callable[[], float]) -> None:
    """Prove for ever that the loop turns."""
    while True:
        vitals.heartbeat = clock()
        await asyncio.sleep(HEARTBEAT_S)


class Probes:
    """Two small servers: probes on one port, metrics on the other, so that a policy can tell them apart."""

    def __init__(self, vitals: Vitals, metrics: Metrics, *, clock: Callable[[], float], resync_s: float) -> None:
        self._vitals = vitals
        self._metrics = metrics
        self._clock = clock
        self._resync_s = resync_s
        self._runners: list[web.AppRunner] = []

    async def start(self, host: str | None, *, health_port: int, metrics_port: int) -> None:
        """Raises OSError for a port that is taken."""
        health, metrics = web.Application(), web.Application()
        health.router.add_get("/healthz", self._healthz)
        health.router.add_get("/readyz", self._readyz)
        metrics.router.add_get("/metrics", self._expose)
        for application, port in ((health, health_port), (metrics, metrics_port)):
            runner = web.AppRunner(application, access_log=None)
            await runner.setup()
            self._runners.append(runner)
            await web.TCPSite(runner, host, port).start()

    async def stop(self) -> None:
        for runner in self._runners:
            await runner.cleanup()

    async def _healthz(self, request: web.Request) -> web.Response:
        return _answer(why_not_alive(self._vitals, self._clock(), resync_s=self._resync_s))

    async def _readyz(self, request: web.Request) -> web.Response:
        return _answer(why_not_ready(self._vitals))

    async def _expose(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4"})


def _answer(problem: str) -> web.Response:
    return web.Response(text=problem or "ok", status=503 if problem else 200)
