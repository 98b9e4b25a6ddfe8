"""A node without a kubelet on a real API server: pods that the scheduler binds to it "run" by their status alone.

Everything else is real: scheduler, Job controller, garbage collector. What a pod does, and what its log says, is up to
a script; the API server asks this process for logs as it would ask a kubelet.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from aiohttp import web
from kubernetes.aio import client

from itrain_contract.names import LABEL_ATTEMPT, LABEL_ITERATION, LABEL_STAGE
from itrain_contract.stages import StageKind, StageRef
from itrain_operator.kube import KubeCluster, load_configuration
from itrain_operator.kubeapi import PODS, ApiError, ConflictError, NotFoundError, Raw, pages
from itrain_operator.kubepods import LABEL_INDEX
from itrain_testing.cluster.pki import Authority, KeyPair
from itrain_testing.daemons import free_port
from itrain_testing.kubeclient import open_cluster
from itrain_testing.podstatus import (
    CAPACITY,
    PodRun,
    build_ended,
    build_node_status,
    build_running,
    build_waiting,
    ready_condition,
    with_conditions,
)

POLL_S = 0.1
HEARTBEAT_S = 5.0


PodScript = Callable[[StageRef, int, int], PodRun]
"""By stage, attempt and completion index (0 for an unsharded stage)."""


def all_done(ref: StageRef, attempt: int, index: int) -> PodRun:
    return PodRun()


class SimulatedNode:
    """Runs in a thread of its own between `start` and `stop`. `script` may be exchanged at any time; so may
    `lingering_s`, how long a deleted pod that has ended is still there, as under a kubelet with much to do."""

    def __init__(
        self,
        kubeconfig: Path,
        folder: Path,
        *,
        name: str = "simulated",
        script: PodScript = all_done,
        labels: Mapping[str, str] = MappingProxyType({}),
        taints: Sequence[Raw] = (),
        capacity: Mapping[str, str] = CAPACITY,
    ) -> None:
        """`folder` is for the certificate of its log server."""
        self._kubeconfig = kubeconfig
        self.name = name
        self._labels, self._taints, self._capacity = labels, taints, capacity
        self.script = script
        self.lingering_s = 0.0
        self._port = free_port()
        self._pair = Authority(folder).server(name, ["127.0.0.1"])
        self._logs: dict[str, str] = {}
        self.log_requests = 0
        self._stop = threading.Event()
        self._started: dict[str, tuple[float, PodRun]] = {}
        self._ended: dict[str, float] = {}
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def release(self) -> None:
        """The pods that run now end, as their scripts say, without serving their time."""
        for uid, (started, run) in list(self._started.items()):
            self._started[uid] = (started, replace(run, seconds=0.0))

    async def _main(self) -> None:
        configuration = await load_configuration(str(self._kubeconfig))
        cluster = await open_cluster(self._kubeconfig)
        logs = await serve_logs(self._pair, self._port, self._log)
        async with client.ApiClient(configuration) as api_client:
            api = client.CoreV1Api(api_client)
            await self._register(api)
            beaten = 0.0
            while not self._stop.is_set():
                now = time.monotonic()
                try:
                    if now - beaten >= HEARTBEAT_S:
                        await api.patch_node_status(self.name, {"status": {"conditions": [ready_condition()]}})
                        beaten = now
                    await self._round(cluster, api, now)
                except (ApiError, client.ApiException, OSError):
                    await asyncio.sleep(1.0)  # an API server that a test stopped
                await asyncio.sleep(POLL_S)
        await cluster.close()
        await logs.cleanup()

    async def _register(self, api: Any) -> None:
        status = build_node_status(self._port, self._capacity)
        metadata = {"name": self.name, "labels": dict(self._labels)}
        try:
            await api.create_node({"metadata": metadata, "spec": {"taints": list(self._taints)}, "status": status})
        except client.ApiException as error:
            if error.status != 409:
                raise
        await api.patch_node_status(self.name, {"status": status})

    def _log(self, pod: str) -> str:
        self.log_requests += 1
        return self._logs.get(pod, "")

    async def _round(self, cluster: KubeCluster, api: Any, now: float) -> None:
        async for page in pages(cluster, PODS, "", fields=f"spec.nodeName={self.name}"):
            for pod in page.items:
                await self._care(cluster, api, pod, now)

    async def _care(self, cluster: KubeCluster, api: Any, pod: Raw, now: float) -> None:
        uid, ended = pod["metadata"]["uid"], pod["status"]["phase"] in ("Succeeded", "Failed")
        if "deletionTimestamp" in pod["metadata"]:
            if not ended:
                await self._patch(cluster, pod, build_ended(pod, PodRun(exit_code=143, message="terminated")))
            if now - self._ended.setdefault(uid, now) >= self.lingering_s:
                await self._remove(api, pod)
        elif ended:
            return
        elif uid not in self._started:
            run = self.script(*_identity(pod))
            if run.stuck:
                await self._patch(cluster, pod, build_waiting())
                return
            self._started[uid] = (now, run)
            self._logs[pod["metadata"]["name"]] = run.log
            await self._patch(cluster, pod, build_running())
        elif now - self._started[uid][0] >= self._started[uid][1].seconds:
            await self._patch(cluster, pod, build_ended(pod, self._started[uid][1]))

    async def _patch(self, cluster: KubeCluster, pod: Raw, status: Raw) -> None:
        metadata = pod["metadata"]
        patch = {"status": with_conditions(pod, status)}
        with suppress(NotFoundError, ConflictError):
            await cluster.merge_patch(PODS, metadata["namespace"], metadata["name"], patch, subresource="status")

    async def _remove(self, api: Any, pod: Raw) -> None:
        metadata = pod["metadata"]
        try:
            await api.delete_namespaced_pod(metadata["name"], metadata["namespace"], grace_period_seconds=0)
        except client.ApiException as error:
            if error.status not in (404, 409):
                raise


async def serve_logs(pair: KeyPair, port: int, log_of: Callable[[str], str]) -> web.AppRunner:
    """A kubelet's way to logs, nothing else of it: `log_of` a pod's name. `cleanup` of what is returned ends it."""

    async def answer(request: web.Request) -> web.Response:
        lines = log_of(request.match_info["pod"]).splitlines(keepends=True)
        return web.Response(text="".join(lines[-int(request.query.get("tailLines", "1000")) :]))

    application = web.Application()
    application.router.add_get("/containerLogs/{namespace}/{pod}/{container}", answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.certificate, pair.key)
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context).start()
    return runner


def _identity(pod: Raw) -> tuple[StageRef, int, int]:
    labels = pod["metadata"]["labels"]
    ref = StageRef(kind=StageKind(labels[LABEL_STAGE]), iteration=int(labels[LABEL_ITERATION]))
    return ref, int(labels[LABEL_ATTEMPT]), int(labels.get(LABEL_INDEX, 0))
