"""The operator put together: caches, workers, leadership, probes. `handlers` feeds it, `__main__` starts it."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import time
import uuid
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

from itrain_operator.cache import Cache, RunKey
from itrain_operator.children import ChildKeeper
from itrain_operator.events import EventPoster
from itrain_operator.health import Probes, Vitals, beat
from itrain_operator.kube import Configuration, KubeCluster
from itrain_operator.kubeapi import ApiError, Raw
from itrain_operator.kubedetails import Inspector
from itrain_operator.lease import Leadership, LeaseTimes
from itrain_operator.metrics import Metrics
from itrain_operator.podcache import PodCache
from itrain_operator.podwatch import PodWatch
from itrain_operator.ratelimit import TokenBucket
from itrain_operator.reconcile import Reconciler
from itrain_operator.resync import Resync
from itrain_operator.settings import OperatorSettings
from itrain_operator.workloads import WorkloadReader
from itrain_operator.workqueue import WorkerPool

log = logging.getLogger(__name__)

SERVICE_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
ENV_NAMESPACE = "POD_NAMESPACE"
ENV_POD_UID = "POD_UID"
PASSES_PER_SECOND, PASSES_AT_ONCE = 200.0, 200
ACT_AGAIN_S = 1.0


def boot_clock() -> float:
    """Seconds that go on while the machine sleeps: a lease does too."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def own_namespace(environ: Mapping[str, str]) -> str:
    """The namespace of this pod; `default` outside a cluster."""
    if environ.get(ENV_NAMESPACE):
        return environ[ENV_NAMESPACE]
    return SERVICE_ACCOUNT_NAMESPACE.read_text().strip() if SERVICE_ACCOUNT_NAMESPACE.exists() else "default"


def own_identity(environ: Mapping[str, str]) -> str:
    """This process among the candidates for the Lease.

    In a pod that knows its UID it is the pod: a container that was started again has its predecessor's Lease at once,
    for a pod never has two of them. Elsewhere two processes may share a host, and each is somebody else.
    """
    return f"{socket.gethostname()}_{environ.get(ENV_POD_UID) or uuid.uuid4().hex[:8]}"


class App:
    """One process. Built inside the event loop in which it runs."""

    def __init__(
        self,
        settings: OperatorSettings,
        configuration: Configuration,
        *,
        namespace: str,
        identity: str,
        host: str = "",
    ) -> None:
        """`namespace` is the operator's own; `host` the address that probes and metrics listen on, all by default."""
        self.settings = settings
        self.configuration = configuration
        self.stopped = asyncio.Event()
        self.failure: BaseException | None = None
        self._host = host or None
        self._acting = False
        self._tasks: list[asyncio.Task[None]] = []
        self._vitals = Vitals(started=boot_clock(), heartbeat=boot_clock())
        self.cache = Cache()
        self.pods = PodCache()
        self.metrics = Metrics(
            phases=self.cache.phases,
            queue_depth=lambda: self._pool.depth(),
            resync_age_s=self._resync_age_s,
            leading=lambda: float(self._leads()),
        )
        self._cluster = KubeCluster(
            configuration,
            qps=settings.api_qps,
            burst=settings.api_burst,
            timeout_s=settings.request_timeout_seconds,
            clock=boot_clock,
            on_request=self.metrics.request,
            may_write=self._leads,
        )
        self._pool: WorkerPool[RunKey] = WorkerPool(
            self._reconcile,
            workers=settings.workers,
            clock=boot_clock,
            on_failure=self._failed,
            rate=TokenBucket(rate=PASSES_PER_SECOND, burst=PASSES_AT_ONCE, now=boot_clock()),
        )
        self._leadership = self._build_leadership(namespace, identity)
        self._reconciler = self._build_reconciler(identity)
        self._resync = Resync(
            self._cluster,
            self.cache,
            self._vitals,
            namespaces=settings.namespaces,
            interval_s=settings.resync_seconds,
            enqueue=self._pool.add,
            clock=boot_clock,
            rng=random.Random(),
        )
        self._probes = Probes(self._vitals, self.metrics, clock=boot_clock, resync_s=settings.resync_seconds)

    def _build_leadership(self, namespace: str, identity: str) -> Leadership | None:
        lease = self.settings.lease
        if not lease.enabled:
            return None
        return Leadership(
            self._cluster,
            namespace=lease.namespace or namespace,
            name=lease.name,
            identity=identity,
            times=LeaseTimes(
                duration_s=lease.duration_seconds, renew_s=lease.renew_seconds, retry_s=lease.retry_seconds
            ),
            clock=boot_clock,
            wall_clock=time.time,
        )

    def _build_reconciler(self, identity: str) -> Reconciler:
        progress = self.settings.progress
        rate = progress.requests_per_second

        def per_second() -> TokenBucket:
            return TokenBucket(rate=rate, burst=max(1, round(rate)), now=boot_clock())

        return Reconciler(
            cluster=self._cluster,
            cache=self.cache,
            inspector=Inspector(
                self._cluster,
                self.pods,
                clock=boot_clock,
                progress_interval_s=progress.interval_seconds,
                progress_rate=per_second(),
            ),
            workloads=WorkloadReader(self._cluster, enabled=self.settings.kueue.enabled, clock=boot_clock),
            children=ChildKeeper(self._cluster, self.cache, self.settings),
            poster=EventPoster(
                self._cluster,
                instance=identity,
                clock=boot_clock,
                wall_clock=time.time,
                on_dropped=self.metrics.events_dropped.inc,
            ),
            clock=boot_clock,
            wall_clock=time.time,
            on_written=self.metrics.written,
            clock_writes=per_second(),
        )

    # Life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen, fill the caches, and stand for leadership, all in the background. Raises OSError for a taken port."""
        await self._probes.start(
            self._host, health_port=self.settings.health_port, metrics_port=self.settings.metrics_port
        )
        self._spawn(beat(self._vitals, boot_clock), "heartbeat")
        self._spawn(self._resync.run(), "resync")
        for watched in self.settings.namespaces or ("",):
            self._spawn(PodWatch(self._cluster, self.pods, watched).run(), f"watch of pods {watched}")
        self._spawn(self._act() if self._leadership is None else self._leadership.run(self._act), "leadership")

    async def stop(self) -> None:
        """Stop acting first, then let a standby take over at once."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._leadership is not None:
            await self._leadership.release()
        await self._probes.stop()
        await self._cluster.close()

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A background task never ends by itself: if one does, the process must, to be started again."""
        if task.cancelled():
            return
        self.failure = task.exception()
        log.critical("%s ended: %s", task.get_name(), self.failure, exc_info=self.failure)
        self.stopped.set()

    async def _act(self) -> None:
        """What the leader does. It lists everything first: as a standby it may have missed what others did."""
        while True:
            try:
                await self._resync.once()
            except ApiError as error:
                log.warning("the first list as leader failed: %s", error)
                await asyncio.sleep(ACT_AGAIN_S)
            else:
                break
        try:
            self._acting = True
            await self._pool.run()
        finally:
            self._acting = False

    def _leads(self) -> bool:
        return self._leadership is None or self._leadership.leading

    def _resync_age_s(self) -> float:
        last = self._vitals.resynced
        return boot_clock() - (last if last is not None else self._vitals.started)

    # Work --------------------------------------------------------------------------------------------------------

    def see_run(self, raw: Raw, *, deleted: bool) -> None:
        self._seen(self.cache.remove_run(raw) if deleted else self.cache.put_run(raw), gone=deleted)

    def see_job(self, raw: Raw, *, deleted: bool) -> None:
        self._seen(self.cache.remove_job(raw) if deleted else self.cache.put_job(raw))

    def _seen(self, key: RunKey | None, *, gone: bool = False) -> None:
        """Who begins to act asks for a pass over every run; those that are gone by then it would never hear of."""
        if key is not None and (self._acting or gone):
            self._pool.add(key)

    async def _reconcile(self, key: RunKey) -> float | None:
        began = boot_clock()
        result = "error"
        try:
            wake_s = await self._reconciler.reconcile(key)
            result = "ok"
        finally:
            self.metrics.pass_seconds.labels(result=result).observe(boot_clock() - began)
        return wake_s

    def _failed(self, key: RunKey, error: Exception, delay_s: float) -> None:
        self.metrics.errors.labels(kind=type(error).__name__).inc()
        expected = isinstance(error, ApiError)
        log.warning("run %s: again in %.1f s: %s", key, delay_s, error, exc_info=None if expected else error)
