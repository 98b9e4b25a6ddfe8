"""The bench's node: binds pods, runs them by their status, ends one when it is told to. Driven by a watch.

With thousands of pods a node that lists them all (`itrain_testing.simkubelet`) would take the time of what is measured.
Pods are bound here and not by a scheduler; the Jobs' statuses are the real Job controller's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from random import Random

from aiohttp import web

from itrain_bench.controller.errands import Errands
from itrain_operator.kube import KubeCluster
from itrain_operator.kubeapi import PODS, ConflictError, NotFoundError, Raw, Resource
from itrain_testing.cluster.pki import Authority
from itrain_testing.daemons import free_port
from itrain_testing.podstatus import (
    PodRun,
    build_ended,
    build_node_status,
    build_running,
    ready_condition,
    stamp,
    with_conditions,
)
from itrain_testing.simkubelet import serve_logs

NODES = Resource(api_version="v1", plural="nodes")
BINDINGS = Resource(api_version="v1", plural="bindings")
HEARTBEAT_S = 10.0
AT_ONCE = 8
"""Pods that are started at a time."""


class BenchNode:
    """Use it in one event loop: `register`, then `see` every pod; cancelling `beat` is the end of the node."""

    def __init__(self, cluster: KubeCluster, folder: Path, *, clock: Callable[[], float], name: str = "bench") -> None:
        self._cluster = cluster
        self._name = name
        self._clock = clock
        self._port = free_port()
        self._pair = Authority(folder).server(name, ["127.0.0.1"])
        self._running: list[Raw] = []
        self._known: set[str] = set()
        self._since: dict[str, float] = {}
        self._turns = asyncio.Semaphore(AT_ONCE)
        self.errands = Errands()
        self._more = asyncio.Event()

    @property
    def running(self) -> int:
        """Pods that could be ended now."""
        return len(self._running)

    async def register(self) -> web.AppRunner:
        """The Node object and its log server, which the caller cleans up."""
        status = build_node_status(self._port)
        await self._cluster.create(NODES, "", {"metadata": {"name": self._name}, "status": status})
        await self._cluster.merge_patch(NODES, "", self._name, {"status": status}, subresource="status")
        return await serve_logs(self._pair, self._port, self._log)

    async def beat(self) -> None:
        """Stay Ready, for ever: pods of a node that falls silent are evicted."""
        while True:
            patch = {"status": {"conditions": [ready_condition()]}}
            await self._cluster.merge_patch(NODES, "", self._name, patch, subresource="status")
            await asyncio.sleep(HEARTBEAT_S)

    def see(self, pod: Raw, deleted: bool, at: float) -> None:
        """Start a pod that nobody has started."""
        uid = pod["metadata"]["uid"]
        if deleted or uid in self._known or "deletionTimestamp" in pod["metadata"]:
            return
        self._known.add(uid)
        self.errands.run(self._start(pod))

    async def end_one(self, rng: Random) -> None:
        """End a running pod, any of them with equal probability; wait for one when none runs."""
        while not self._running:
            self._more.clear()
            await self._more.wait()
        place = rng.randrange(len(self._running))
        self._running[place], self._running[-1] = self._running[-1], self._running[place]
        pod = self._running.pop()
        self._since.pop(pod["metadata"]["name"], None)
        await self._patch(pod, build_ended(pod, PodRun(metrics={"dev/call_accuracy": rng.random()})))

    async def _start(self, pod: Raw) -> None:
        metadata = pod["metadata"]
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": metadata["name"]},
            "target": {"apiVersion": "v1", "kind": "Node", "name": self._name},
        }
        async with self._turns:
            try:
                await self._cluster.create(BINDINGS, metadata["namespace"], binding)
                started = await self._patch(pod, build_running())
            except (NotFoundError, ConflictError):
                return  # deleted meanwhile
        self._since[metadata["name"]] = self._clock()
        self._running.append(started)
        self._more.set()

    async def _patch(self, pod: Raw, status: Raw) -> Raw:
        metadata, patch = pod["metadata"], {"status": with_conditions(pod, status)}
        return await self._cluster.merge_patch(
            PODS, metadata["namespace"], metadata["name"], patch, subresource="status"
        )

    def _log(self, pod: str) -> str:
        """A training that moves on one step a second."""
        steps = round(self._clock() - self._since.get(pod, self._clock()))
        return f"{stamp()} INFO    itrain_pipeline.progress: {steps}/10000 step, loss 0.41\n"
