"""Many trees at once: limits, failures, retries and stops."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest

from itrain_pipeline.errors import Interrupted, PermanentError, RetryableError
from itrain_pipeline.search.forest import MAX_REASONS, Forest, ForestStats, RetryPolicy, with_retries
from itrain_testing.instructions import counted_instructions


class Stop:
    def __init__(self, when: Callable[[], bool] = lambda: False) -> None:
        self.is_set = when


def forest(
    search: Any, *, in_flight: int | Callable[[int], int] = 3, max_failed: int = 0, stop: Any = None
) -> Forest[int, int]:
    return Forest(search, in_flight=in_flight, max_failed=max_failed, stats=ForestStats(), stop=stop or Stop())


class Searching:
    """Ends a task after as many turns of the loop as it names; remembers how many were under way."""

    def __init__(self, failures: dict[int, Exception] | None = None) -> None:
        self.failures = failures or {}
        self.now = self.most = 0
        self.started: list[int] = []

    async def __call__(self, task: int) -> int:
        self.started.append(task)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            for _ in range(task % 4):
                await asyncio.sleep(0)
            if task in self.failures:
                raise self.failures[task]
            return task * 10
        finally:
            self.now -= 1


def test_every_task_ends_once_and_no_more_are_in_flight_than_allowed() -> None:
    searching, found = Searching(), {}
    asyncio.run(forest(searching, in_flight=3).grow(range(20), on_result=found.__setitem__))
    assert found == {task: task * 10 for task in range(20)}
    assert searching.most == 3
    assert searching.started == list(range(20))


def test_one_in_flight_is_one_after_the_other_in_order() -> None:
    searching, order = Searching(), []
    asyncio.run(forest(searching, in_flight=1).grow(range(8), on_result=lambda task, _: order.append(task)))
    assert order == list(range(8))
    assert searching.most == 1


def test_a_failed_tree_is_counted_under_its_reason_and_the_others_go_on() -> None:
    searching = Searching({3: PermanentError("too long"), 5: RetryableError("gone"), 6: PermanentError("too long")})
    trees, found, failed = forest(searching, max_failed=3), {}, []
    asyncio.run(trees.grow(range(10), on_result=found.__setitem__, on_failure=failed.append))
    assert (sorted(found), sorted(failed)) == ([0, 1, 2, 4, 7, 8, 9], [3, 5, 6])
    assert (trees.stats.failed, trees.stats.finished) == (3, 7)
    assert trees.stats.top_reasons() == "2× too long; 1× gone"


def test_too_many_failed_trees_end_the_shard_with_the_reasons() -> None:
    searching = Searching({task: PermanentError("no memory") for task in (1, 2, 3)})
    trees = forest(searching, in_flight=1, max_failed=1)
    with pytest.raises(PermanentError, match="2 trees failed, allowed are 1: 2× no memory"):
        asyncio.run(trees.grow(range(50), on_result=lambda *_: None))
    assert searching.now == 0
    assert len(searching.started) < 10


def test_an_error_that_nobody_foresaw_is_raised_and_not_counted_as_a_tree() -> None:
    searching = Searching({2: KeyError("bug")})
    with pytest.raises(KeyError, match="bug"):
        asyncio.run(forest(searching, max_failed=9).grow(range(6), on_result=lambda *_: None))
    assert searching.now == 0


def test_a_stop_ends_the_trees_in_flight_and_keeps_what_is_finished() -> None:
    searching, found = Searching(), {}
    trees = forest(searching, in_flight=2, stop=Stop(lambda: len(found) >= 4))
    with pytest.raises(Interrupted):
        asyncio.run(trees.grow(range(100), on_result=found.__setitem__))
    assert 4 <= len(found) <= 6
    assert searching.now == 0


def test_enough_stops_new_trees_and_lets_those_in_flight_end() -> None:
    searching, found = Searching(), {}
    trees = forest(searching, in_flight=4)
    asyncio.run(trees.grow(range(100), on_result=found.__setitem__, enough=lambda: len(found) >= 5))
    assert 5 <= len(found) <= 5 + 4
    assert sorted(found) == sorted(searching.started)


def test_trees_that_nobody_needs_any_more_are_called_off_and_counted() -> None:
    found: dict[int, int] = {}

    async def staggered(task: int) -> int:
        await asyncio.sleep(0.01 * task)
        return task

    trees = forest(staggered, in_flight=6)
    asyncio.run(
        trees.grow(
            [1, 5, 9, 2, 30, 40], on_result=found.__setitem__, enough=lambda: 1 in found, needed=lambda task: task < 20
        )
    )
    assert found == {task: task for task in (1, 2, 5, 9)}
    assert (trees.stats.launched, trees.stats.finished, trees.stats.unneeded, trees.stats.ended) == (6, 4, 2, 6)


def test_a_limit_that_changes_is_asked_with_the_number_under_way_and_kept() -> None:
    searching, asked = Searching(), []

    def limit(in_flight: int) -> int:
        asked.append(in_flight)
        return 1 if len(searching.started) < 4 else 5

    asyncio.run(forest(searching, in_flight=limit).grow(range(3, 99, 4), on_result=lambda *_: None))
    assert searching.most == 5
    assert asked[0] == 0
    assert max(asked) <= 5
    assert searching.started == list(range(3, 99, 4))


def test_trees_that_end_together_are_handled_in_the_order_in_which_they_began() -> None:
    order: list[int] = []

    async def run() -> None:
        gates = [asyncio.get_running_loop().create_future() for _ in range(6)]

        async def search(task: int) -> int:
            if task == 0:
                for gate in reversed(gates[1:]):
                    gate.set_result(None)
            else:
                await gates[task]
            return task

        await forest(search, in_flight=6).grow(range(6), on_result=lambda task, _: order.append(task))

    asyncio.run(run())
    assert sorted(order) == list(range(6))
    assert order[-5:] == [1, 2, 3, 4, 5]


def test_while_nothing_ends_the_limit_is_asked_again_and_a_stop_is_seen() -> None:
    started: list[int] = []

    async def endless(task: int) -> int:
        started.append(task)
        await asyncio.Event().wait()
        return task

    def limit(in_flight: int) -> int:
        return in_flight + 1

    trees = forest(endless, in_flight=limit, stop=Stop(lambda: len(started) >= 3))
    with pytest.raises(Interrupted):
        asyncio.run(trees.grow(range(9), on_result=lambda *_: None))
    assert started == [0, 1, 2]


async def one_after_the_other(trees: int, **grow: Any) -> None:
    """All are in flight from the beginning, and one of them ends at a time."""
    gates = [asyncio.get_running_loop().create_future() for _ in range(trees + 1)]
    gates[0].set_result(None)

    async def search(task: int) -> int:
        await gates[task]
        for _ in range(3):
            await asyncio.sleep(0)
        gates[task + 1].set_result(None)
        return task

    await forest(search, in_flight=trees).grow(range(trees), **{"on_result": lambda *_: None, **grow})


def test_a_tree_that_ends_costs_as_much_among_many_as_among_few() -> None:
    def instructions(trees: int) -> float:
        async def run() -> int:
            with counted_instructions() as count:
                await one_after_the_other(trees)
            return count[0]

        return asyncio.run(run()) / trees

    assert instructions(160) < 1.1 * instructions(30)


def test_which_trees_are_needed_is_asked_a_few_times_for_each_that_ends() -> None:
    found: list[int] = []
    asked: list[int] = []
    trees = 400

    def needed(task: int) -> bool:
        asked.append(task)
        return True

    asyncio.run(
        one_after_the_other(
            trees, on_result=lambda task, _: found.append(task), enough=lambda: len(found) >= 40, needed=needed
        )
    )
    assert found == list(range(trees))
    assert asked[:360] == list(range(40, trees))  # at once when there is enough
    assert len(asked) <= 360 + 17 * 360


def test_a_forest_that_is_cancelled_leaves_no_tree_and_loses_no_error() -> None:
    began, cleaned = [], []
    complaints: list[dict[str, Any]] = []

    async def search(task: int) -> int:
        began.append(task)
        if task == 3:
            raise KeyError("nobody will collect this")
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            cleaned.append(task)
        return task

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        grown = asyncio.ensure_future(forest(search, in_flight=8).grow(range(20), on_result=lambda *_: None))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        grown.cancel()
        with pytest.raises(asyncio.CancelledError):
            await grown
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())
    gc.collect()
    assert began == list(range(8))
    assert cleaned == [0, 1, 2, 4, 5, 6, 7]
    assert complaints == []


def test_failures_have_a_kind_and_their_reasons_are_bounded() -> None:
    stats = ForestStats()
    for number in range(500):
        stats.add_failure(PermanentError(f"prompt {number}") if number % 5 else RetryableError("gone"))
    assert stats.kinds == {"PermanentError": 400, "RetryableError": 100}
    assert stats.failed == 500
    assert len(stats.failures) <= MAX_REASONS + 1
    assert stats.failures["gone"] == 100


def test_a_retryable_failure_is_tried_again_with_growing_waits_and_counted() -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async def call() -> str:
        if len(waits) < 3:
            raise RetryableError("busy")
        return "done"

    stats = ForestStats()
    policy = RetryPolicy(limit=3, backoff_s=0.5, sleep=sleep)
    assert asyncio.run(with_retries(call, policy, stats)) == "done"
    assert waits == [0.5, 1.0, 2.0]
    assert stats.retries == 3


def test_the_last_failure_is_raised_and_a_permanent_one_at_once() -> None:
    calls: list[type[Exception]] = []

    def failing(error: type[Exception]) -> Callable[[], Any]:
        async def call() -> None:
            calls.append(error)
            raise error("no")

        return call

    policy = RetryPolicy(limit=2, sleep=lambda _: asyncio.sleep(0))
    with pytest.raises(RetryableError):
        asyncio.run(with_retries(failing(RetryableError), policy, ForestStats()))
    with pytest.raises(PermanentError):
        asyncio.run(with_retries(failing(PermanentError), policy, ForestStats()))
    assert calls == [RetryableError] * 3 + [PermanentError]
