"""Keys that wait for a worker: each at most once, one worker a key, delays and per-key back-off.

`WorkQueue` is pure (the clock is an argument); `WorkerPool` runs it on the event loop. A key that fails waits longer
each time, and no event makes it come back earlier.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from itrain_operator.backoff import delay_s
from itrain_operator.kubeapi import ThrottledError
from itrain_operator.ratelimit import TokenBucket

log = logging.getLogger(__name__)

K = TypeVar("K")
BACKOFF_S = 0.5
MAX_BACKOFF_S = 60.0


class WorkQueue(Generic[K]):
    """Times are seconds of one clock that never runs backwards."""

    def __init__(self, *, backoff_s: float = BACKOFF_S, max_backoff_s: float = MAX_BACKOFF_S) -> None:
        self._backoff_s = backoff_s
        self._max_backoff_s = max_backoff_s
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._order = itertools.count()
        self._active: dict[K, float] = {}
        self._failures: dict[K, int] = {}
        self._not_before: dict[K, float] = {}

    def __len__(self) -> int:
        return len(self._due)

    def depth(self, now: float) -> int:
        """Keys that are due and wait for a worker."""
        return sum(1 for due in self._due.values() if due <= now)

    def add(self, key: K, now: float, delay_s: float = 0.0) -> None:
        """Let the key come up after a delay; the earliest of several wishes holds."""
        due = max(now + max(0.0, delay_s), self._not_before.get(key, now))
        if key in self._due and self._due[key] <= due:
            return
        self._due[key] = due
        if key not in self._active:
            self._push(key)

    def pop(self, now: float) -> K | None:
        """The key that is due longest, now the caller's until `done`; None when none is due."""
        while self._heap and self._heap[0][0] <= now:
            due, _, key = heapq.heappop(self._heap)
            if self._due.get(key) != due or key in self._active:
                continue  # superseded by an earlier wish, or pushed again by `done`
            del self._due[key]
            self._active[key] = due
            return key
        return None

    def done(self, key: K) -> None:
        """The key succeeded: what was added meanwhile comes up, and its failures are forgotten."""
        self._failures.pop(key, None)
        self._not_before.pop(key, None)
        self._release(key)

    def again(self, key: K) -> None:
        """The key succeeded and wants one more pass at once: it keeps the place in the queue that it had.

        The end of a stage and the start of the next are two passes: in a long queue each would wait as long as it is.
        """
        self._due[key] = self._active[key]
        self.done(key)

    def failed(self, key: K, now: float, at_least_s: float = 0.0) -> float:
        """The key failed and comes up again after its back-off, which is returned."""
        count = self._failures[key] = self._failures.get(key, 0) + 1
        delay = max(at_least_s, delay_s(count, first_s=self._backoff_s, most_s=self._max_backoff_s))
        self._not_before[key] = now + delay
        self._due[key] = now + delay
        self._release(key)
        return delay

    def next_due(self) -> float | None:
        """When the next key comes up; None when there is none to wait for."""
        while self._heap:
            due, _, key = self._heap[0]
            if self._due.get(key) == due and key not in self._active:
                return due
            heapq.heappop(self._heap)
        return None

    def _release(self, key: K) -> None:
        self._active.pop(key, None)
        if key in self._due:
            self._push(key)

    def _push(self, key: K) -> None:
        heapq.heappush(self._heap, (self._due[key], next(self._order), key))


Handle = Callable[[K], Awaitable[float | None]]
"""One pass over a key; seconds until the next one is wanted, None to wait for events."""
OnFailure = Callable[[K, Exception, float], None]


class WorkerPool(Generic[K]):
    """N workers on one queue. Cancelling `run` cancels the passes under way."""

    def __init__(
        self,
        handle: Handle[K],
        *,
        workers: int,
        clock: Callable[[], float],
        on_failure: OnFailure[K],
        queue: WorkQueue[K] | None = None,
        rate: TokenBucket | None = None,
    ) -> None:
        self._handle = handle
        self._workers = workers
        self._clock = clock
        self._on_failure = on_failure
        self._queue = queue if queue is not None else WorkQueue()
        self._rate = rate
        self._changed = asyncio.Event()

    def add(self, key: K, delay_s: float = 0.0) -> None:
        self._queue.add(key, self._clock(), delay_s)
        self._changed.set()

    def depth(self) -> int:
        return self._queue.depth(self._clock())

    async def run(self) -> None:
        """Work for ever."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._workers):
                group.create_task(self._work(), name=f"worker {number}")

    async def _work(self) -> None:
        while True:
            key = await self._next()
            if self._rate is not None:
                await asyncio.sleep(self._rate.reserve(self._clock()))
            await self._one_pass(key)

    async def _one_pass(self, key: K) -> None:
        try:
            wake_s = await self._handle(key)
        except asyncio.CancelledError:
            self._queue.done(key)
            raise
        except Exception as error:  # noqa: BLE001 - one run's trouble must not end the others'; it is counted and tried again
            at_least = error.retry_after_s if isinstance(error, ThrottledError) else 0.0
            delay = self._queue.failed(key, self._clock(), at_least)
            self._on_failure(key, error, delay)
        else:
            if wake_s == 0:
                self._queue.again(key)
            else:
                self._queue.done(key)
            if wake_s:
                self.add(key, wake_s)
        self._changed.set()

    async def _next(self) -> K:
        while True:
            now = self._clock()
            key = self._queue.pop(now)
            if key is not None:
                return key
            due = self._queue.next_due()
            self._changed.clear()
            try:
                async with asyncio.timeout(None if due is None else max(0.0, due - now)):
                    await self._changed.wait()
            except TimeoutError:
                continue
