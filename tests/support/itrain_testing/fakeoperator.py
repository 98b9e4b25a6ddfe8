"""The real reconciler on the in-memory cluster: watch events, passes and ticks in a row, without real time.

`kill` forgets everything that a process forgets; the next `live` starts from a list, as a new process does.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from itrain_contract.status import ITrainRunStatus
from itrain_operator.cache import Cache, RunKey
from itrain_operator.children import ChildKeeper
from itrain_operator.events import EventPoster
from itrain_operator.health import Vitals
from itrain_operator.kubeapi import JOBS, RUNS, ApiError, Raw
from itrain_operator.kubedetails import Inspector
from itrain_operator.podcache import PodCache
from itrain_operator.ratelimit import TokenBucket
from itrain_operator.reconcile import Reconciler
from itrain_operator.resync import Resync
from itrain_operator.settings import OperatorSettings
from itrain_operator.workloads import WorkloadReader
from itrain_operator.workqueue import WorkQueue
from itrain_testing.fakecluster import FakeCluster, FakeServer
from itrain_testing.fakejobs import TICK_S, JobWorld

PASSES_A_TICK = 30


class KilledError(BaseException):
    """SIGKILL: nothing of the process runs after it."""


class FakeOperator:
    """One operator after the other on one server; the world's clock is everybody's."""

    def __init__(
        self, server: FakeServer, world: JobWorld, settings: OperatorSettings, rng: random.Random | None = None
    ) -> None:
        """`rng`: see FakeCluster."""
        self.server = server
        self._rng = rng
        self.world = world
        self._settings = settings
        self.errors: list[str] = []
        self.deaths = 0
        self.wall_clock_error_s = 0.0
        """Of this operator's wall clock alone: a test sets it to let the clock jump."""
        self.kill()

    def kill(self) -> None:
        """A new process: empty caches, an empty queue, no memory."""
        cluster = FakeCluster(self.server, self._rng)
        self.cache = Cache()
        self._heard = len(self.server.events)
        self._queue: WorkQueue[RunKey] = WorkQueue()
        self._listed = False
        self._resync = Resync(
            cluster,
            self.cache,
            Vitals(started=0.0, heartbeat=0.0),
            namespaces=(),
            interval_s=300.0,
            enqueue=lambda key, delay_s: self._queue.add(key, self._clock(), delay_s),
            clock=self._clock,
            rng=random.Random(0),
        )
        self._reconciler = Reconciler(
            cluster=cluster,
            cache=self.cache,
            inspector=Inspector(
                cluster,
                PodCache(),
                clock=self._clock,
                progress_interval_s=15.0,
                progress_rate=TokenBucket(rate=2.0, burst=2, now=self._clock()),
            ),
            workloads=WorkloadReader(cluster, enabled=self._settings.kueue.enabled, clock=self._clock),
            children=ChildKeeper(cluster, self.cache, self._settings),
            poster=EventPoster(
                cluster, instance="test", clock=self._clock, wall_clock=self._clock, on_dropped=lambda: None
            ),
            clock=self._clock,
            wall_clock=lambda: self._clock() + self.wall_clock_error_s,
            on_written=lambda old, new: None,
            clock_writes=TokenBucket(rate=2.0, burst=2, now=self._clock()),
        )

    def _clock(self) -> float:
        return self.server.now.timestamp()

    def live(self, ticks: int, *, until: Callable[[], bool] = lambda: False, deaf: bool = False) -> None:
        """Passes until nothing is due, then a tick, `ticks` times; `deaf` withholds the watch events."""
        for _ in range(ticks):
            self._turn(deaf)
            if until():
                return
            self.world.tick()
        self._turn(deaf)

    def _turn(self, deaf: bool) -> None:
        try:
            asyncio.run(self.passes(deaf))
        except KilledError:
            self.deaths += 1
            self.kill()

    async def passes(self, deaf: bool = False) -> None:
        """Passes until nothing is due."""
        if not self._listed:
            try:
                await self._resync.once()
            except ApiError as error:
                self.errors.append(str(error))
                return
            self._listed = True
        for _ in range(PASSES_A_TICK):
            if not deaf:
                self._listen()
            key = self._queue.pop(self._clock())
            if key is None:
                return
            try:
                wake_s = await self._reconciler.reconcile(key)
            except ApiError as error:
                self.errors.append(f"{type(error).__name__}: {error}")
                self._queue.failed(key, self._clock())
                continue
            self._queue.done(key)
            if wake_s is not None:
                self._queue.add(key, self._clock(), wake_s)
        raise AssertionError(f"the passes do not come to rest within {PASSES_A_TICK}")

    def _listen(self) -> None:
        for event in self.server.events[self._heard :]:
            hear = {
                RUNS: (self.cache.put_run, self.cache.remove_run),
                JOBS: (self.cache.put_job, self.cache.remove_job),
            }.get(event.resource)
            key = hear[event.deleted](event.raw) if hear is not None else None
            if key is not None:
                self._queue.add(key, self._clock())
        self._heard = len(self.server.events)

    def memory(self) -> tuple[object, ...]:
        """Everything that this process keeps between passes."""
        return (self.cache, self._queue, self._resync, self._reconciler)

    # What tests ask ----------------------------------------------------------------------------------------------

    def run(self, name: str = "run", namespace: str = "team") -> Raw:
        found = self.server.find(RUNS, namespace, name)
        assert found is not None, f"run {namespace}/{name} is gone"
        return found

    def status(self, name: str = "run") -> ITrainRunStatus:
        return ITrainRunStatus.model_validate(self.run(name).get("status") or {})

    def ended(self) -> bool:
        return self.status().phase.terminal


__all__ = ["TICK_S", "FakeOperator", "KilledError"]
