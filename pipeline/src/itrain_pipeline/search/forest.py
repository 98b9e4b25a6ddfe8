"""Many trees in flight: as many searches as the engine can batch, each finished one handed over at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from itrain_pipeline.errors import Interrupted, PermanentError, RetryableError
from itrain_pipeline.ports import StopSignal

Task = TypeVar("Task")
Result = TypeVar("Result")
T = TypeVar("T")
POLL_S = 0.2
"""How often a stop, and room for more trees, is looked for while nothing finishes."""
NEEDED_SHARE = 16
"""Of the trees in flight one in so many ends before it is asked again which are needed: 16 questions for each end."""
MAX_REASONS = 64
"""Different reasons of failures that are remembered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Waits `backoff_s` · 2^n before repetition n of a failed request, at most `limit` times."""

    limit: int = 3
    backoff_s: float = 0.5
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


@dataclass(slots=True, kw_only=True)
class ForestStats:
    """What happened: trees that began, ended, failed (by kind and by reason), and requests that were tried again."""

    launched: int = 0
    finished: int = 0
    unneeded: int = 0
    """Trees called off since enough pairs were there before they ended."""
    most_in_flight: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    retries: int = 0

    @property
    def failed(self) -> int:
        return self.failures.total()

    @property
    def ended(self) -> int:
        """Trees of which is known what became of them."""
        return self.finished + self.failed + self.unneeded

    def add_failure(self, error: Exception) -> None:
        """Under its kind (the name of its type) and its reason; what comes after MAX_REASONS is one reason."""
        reason = str(error)
        known = reason in self.failures or len(self.failures) < MAX_REASONS
        self.failures[reason if known else "other reasons"] += 1
        self.kinds[type(error).__name__] += 1

    def top_reasons(self, n: int = 3) -> str:
        return "; ".join(f"{count}× {reason}" for reason, count in self.failures.most_common(n))


class Counted(Protocol):
    """Whatever counts the repetitions."""

    retries: int


async def with_retries(call: Callable[[], Awaitable[T]], policy: RetryPolicy, stats: Counted) -> T:
    """The call's result; a RetryableError is tried again with back-off and counted, the last one is raised."""
    for attempt in range(policy.limit):
        try:
            return await call()
        except RetryableError:
            stats.retries += 1
            await policy.sleep(policy.backoff_s * 2**attempt)
    return await call()


class _InFlight(Generic[Task, Result]):
    """The trees under way. What ended puts itself in a queue: nothing walks over those that still run."""

    def __init__(self) -> None:
        self._trees: dict[asyncio.Task[Result], tuple[int, Task]] = {}
        self._ended: list[asyncio.Task[Result]] = []
        self._wake = asyncio.Event()
        self._launched = 0

    def __len__(self) -> int:
        return len(self._trees)

    def add(self, task: Task, result: Awaitable[Result]) -> None:
        tree = asyncio.ensure_future(_awaited(result))
        self._trees[tree] = (self._launched, task)
        self._launched += 1
        tree.add_done_callback(self._end)

    def _end(self, tree: asyncio.Task[Result]) -> None:
        if tree in self._trees:
            self._ended.append(tree)
            self._wake.set()

    async def ended(self, timeout_s: float) -> list[asyncio.Task[Result]]:
        """Those that ended since this was asked last, in order of launch; none when the time is over."""
        timer = asyncio.get_running_loop().call_later(timeout_s, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()
        self._wake.clear()
        ended, self._ended = self._ended, []
        return sorted(ended, key=lambda tree: self._trees[tree][0])

    def pop(self, tree: asyncio.Task[Result]) -> Task:
        return self._trees.pop(tree)[1]

    async def cancel(self, chosen: Callable[[Task], bool] = lambda _: True) -> int:
        """Cancel those whose task is `chosen` and wait until they are gone; how many they were."""
        trees = [tree for tree, (_, task) in self._trees.items() if chosen(task)]
        for tree in trees:
            del self._trees[tree]
            tree.cancel()
        if trees:
            self._ended = [tree for tree in self._ended if tree in self._trees]
            await asyncio.gather(*trees, return_exceptions=True)
        return len(trees)


class Forest(Generic[Task, Result]):
    """Runs `search` for every task, in order: as many at a time as `in_flight` says.

    `in_flight` is a number, or is asked, with the number under way, whenever a tree ended or a moment has passed.
    A tree whose search raises PermanentError or RetryableError failed: it is counted under its reason and the others
    go on, until `failed` exceeds `max_failed`. Any other error ends the forest. A tree that ends costs the same
    however many are under way.
    """

    def __init__(
        self,
        search: Callable[[Task], Awaitable[Result]],
        *,
        in_flight: int | Callable[[int], int],
        max_failed: int,
        stats: ForestStats,
        stop: StopSignal,
    ) -> None:
        self._search, self._max_failed = search, max_failed
        self._limit = in_flight if callable(in_flight) else lambda _: in_flight
        self.stats, self._stop = stats, stop

    async def grow(
        self,
        tasks: Sequence[Task],
        *,
        on_result: Callable[[Task, Result], None],
        on_failure: Callable[[Task], None] = lambda _: None,
        enough: Callable[[], bool] = lambda: False,
        needed: Callable[[Task], bool] = lambda _: True,
    ) -> None:
        """Search all tasks, or until `enough` says so: then trees in flight still end, but those not `needed`.

        `needed` is asked for all trees in flight when there is first enough, when nothing has ended for a moment, and
        when a sixteenth of them have ended since. Raises Interrupted once the stop signal is set (trees in flight are
        lost) and PermanentError naming the most frequent reasons when too many trees failed.
        """
        waiting = iter(tasks)
        running = _InFlight[Task, Result]()
        unasked: int | None = None
        """Trees that ended since `needed` was asked; None before there was enough."""
        try:
            self._launch(waiting, running, enough)
            while running:
                ended = await running.ended(POLL_S)
                for tree in ended:
                    self._collect(running.pop(tree), tree, on_result, on_failure)
                if self._stop.is_set():
                    raise Interrupted("stopped by request; finished trees are saved")
                if self.stats.failed > self._max_failed:
                    raise PermanentError(
                        f"{self.stats.failed} trees failed, allowed are {self._max_failed}: {self.stats.top_reasons()}"
                    )
                if enough():
                    unasked = None if unasked is None else unasked + len(ended)
                    if not ended or unasked is None or unasked * NEEDED_SHARE >= len(running):
                        self.stats.unneeded += await running.cancel(lambda task: not needed(task))
                        unasked = 0
                self._launch(waiting, running, enough)
        finally:
            await running.cancel()

    def _launch(self, waiting: Iterator[Task], running: _InFlight[Task, Result], enough: Callable[[], bool]) -> None:
        limit = self._limit(len(running))
        while len(running) < limit and not enough():
            task = next(waiting, None)
            if task is None:
                return
            running.add(task, self._search(task))
            self.stats.launched += 1
            self.stats.most_in_flight = max(self.stats.most_in_flight, len(running))

    def _collect(
        self,
        task: Task,
        tree: asyncio.Task[Result],
        on_result: Callable[[Task, Result], None],
        on_failure: Callable[[Task], None],
    ) -> None:
        try:
            result = tree.result()
        except (PermanentError, RetryableError) as error:
            self.stats.add_failure(error)
            on_failure(task)
            return
        self.stats.finished += 1
        on_result(task, result)


async def _awaited(result: Awaitable[T]) -> T:
    return await result
