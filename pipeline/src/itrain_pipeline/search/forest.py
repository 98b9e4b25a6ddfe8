"""Many trees in flight: as many searches as the engine can batch, each finished one handed over at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from itrain_pipeline.errors import Interrupted, PermanentError, RetryableError
from itrain_pipeline.ports import StopSignal

Task = TypeVar("Task")
Result = TypeVar("Result")
T = TypeVar("T")
POLL_S = 0.2
"""How often a stop is looked for while nothing finishes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Waits `backoff_s` · 2^n before repetition n of a failed request, at most `limit` times."""

    limit: int = 3
    backoff_s: float = 0.5
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


@dataclass(slots=True, kw_only=True)
class ForestStats:
    """What happened: trees that ended, trees that failed by reason, requests that were tried again."""

    finished: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    retries: int = 0

    @property
    def failed(self) -> int:
        return self.failures.total()

    def top_reasons(self, n: int = 3) -> str:
        return "; ".join(f"{count}× {reason}" for reason, count in self.failures.most_common(n))


async def with_retries(call: Callable[[], Awaitable[T]], policy: RetryPolicy, stats: ForestStats) -> T:
    """The call's result; a RetryableError is tried again with back-off and counted, the last one is raised."""
    for attempt in range(policy.limit):
        try:
            return await call()
        except RetryableError:
            stats.retries += 1
            await policy.sleep(policy.backoff_s * 2**attempt)
    return await call()


class Forest(Generic[Task, Result]):
    """Runs `search` for every task, `in_flight` at a time, in order.

    A tree whose search raises PermanentError or RetryableError failed: it is counted under its reason and the others
    go on, until `failed` exceeds `max_failed`. Any other error ends the forest.
    """

    def __init__(
        self,
        search: Callable[[Task], Awaitable[Result]],
        *,
        in_flight: int,
        max_failed: int,
        stats: ForestStats,
        stop: StopSignal,
    ) -> None:
        self._search, self._in_flight, self._max_failed = search, in_flight, max_failed
        self.stats, self._stop = stats, stop

    async def grow(
        self,
        tasks: Sequence[Task],
        *,
        on_result: Callable[[Task, Result], None],
        enough: Callable[[], bool] = lambda: False,
    ) -> None:
        """Search all tasks, or until `enough` says so (trees in flight still end).

        Raises Interrupted once the stop signal is set (trees in flight are lost) and PermanentError naming the most
        frequent reasons when too many trees failed.
        """
        waiting = iter(tasks)
        running: dict[asyncio.Task[Result], Task] = {}
        try:
            self._launch(waiting, running, enough)
            while running:
                done, _ = await asyncio.wait(running, timeout=POLL_S, return_when=asyncio.FIRST_COMPLETED)
                for future in [f for f in running if f in done]:  # in order of launch
                    self._collect(running.pop(future), future, on_result)
                if self._stop.is_set():
                    raise Interrupted("stopped by request; finished trees are saved")
                if self.stats.failed > self._max_failed:
                    raise PermanentError(
                        f"{self.stats.failed} trees failed, allowed are {self._max_failed}: {self.stats.top_reasons()}"
                    )
                self._launch(waiting, running, enough)
        finally:
            for future in running:
                future.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _launch(
        self, waiting: Iterator[Task], running: dict[asyncio.Task[Result], Task], enough: Callable[[], bool]
    ) -> None:
        while len(running) < self._in_flight and not enough():
            task = next(waiting, None)
            if task is None:
                return
            running[asyncio.ensure_future(_awaited(self._search(task)))] = task

    def _collect(self, task: Task, future: asyncio.Task[Result], on_result: Callable[[Task, Result], None]) -> None:
        try:
            result = future.result()
        except (PermanentError, RetryableError) as error:
            self.stats.failures[str(error)] += 1
            return
        self.stats.finished += 1
        on_result(task, result)


async def _awaited(result: Awaitable[T]) -> T:
    return await result
