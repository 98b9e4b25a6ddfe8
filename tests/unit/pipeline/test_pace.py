"""The number of trees in flight from the engine's free blocks, and whose requests wait."""

from __future__ import annotations

import asyncio

import pytest

from itrain_pipeline.search.pace import MAX_TREES, Plan, Turns, blocks, plan_trees, tree_blocks
from itrain_testing.instructions import counted_instructions


def plan(free: int, in_flight: int, *, total: int = 1600, need: int = 100, cap: int = 0) -> Plan:
    return plan_trees(total_blocks=total, free_blocks=free, blocks_per_tree=need, in_flight=in_flight, cap=cap)


@pytest.mark.parametrize(
    ("free", "in_flight", "expected"),
    [
        (1600, 0, Plan(move="grow", trees=15)),  # as many as fit at their largest beside a reserve of 100
        (1600, 3, Plan(move="grow", trees=6)),  # at most twice as many at a time
        (450, 10, Plan(move="grow", trees=13)),
        (199, 10, Plan(move="hold", trees=10)),
        (100, 10, Plan(move="hold", trees=10)),
        (99, 10, Plan(move="trim", trees=9)),
        (0, 10, Plan(move="trim", trees=9)),
        (0, 1, Plan(move="hold", trees=1)),  # one tree always runs
        (0, 0, Plan(move="grow", trees=1)),
    ],
)
def test_it_grows_into_free_blocks_holds_and_is_trimmed(free: int, in_flight: int, expected: Plan) -> None:
    assert plan(free, in_flight) == expected


def test_the_more_is_missing_the_more_trees_are_held_back_but_never_all() -> None:
    assert plan(0, 10, total=3200, need=20) == Plan(move="trim", trees=1)
    assert plan(100, 10, total=3200, need=50) == Plan(move="trim", trees=8)


def test_the_specs_number_is_a_cap_and_one_is_one_whatever_is_free() -> None:
    assert plan(10**9, 3, cap=4) == Plan(move="grow", trees=4)
    assert plan(10**9, 4, cap=4) == Plan(move="hold", trees=4)
    for in_flight in (0, 1):
        assert plan(10**9, in_flight, cap=1).trees == 1
        assert plan(0, in_flight, cap=1).trees == 1
    assert plan(10**9, 10**6, need=1).trees == MAX_TREES


def test_a_pool_of_any_size_is_used_and_never_overdrawn() -> None:
    """Trees hold what they hold, known only once they run; the controller finds the number from what is free."""
    for total, holds in ((800, 20), (5000, 37), (5000, 100), (40, 30)):
        running, seen = 0, []
        for _ in range(40):
            running = plan(total - running * holds, running, total=total).trees
            seen.append(running)
            assert running == 1 or running * holds <= total
        assert seen[-1] == seen[-2]
        reserve = max(total // 16, 1)
        assert total - (running * holds) - reserve < 100 or running * holds <= total < holds * 2


def test_blocks_of_a_tree_are_its_prompt_once_and_each_completion_at_its_longest() -> None:
    assert tree_blocks(800, actions=3, max_answer_tokens=100, block_tokens=16) == 50 + 3 * 7
    assert [blocks(n, 16) for n in (0, 1, 16, 17)] == [0, 1, 1, 2]


def test_only_the_oldest_trees_ask_and_the_others_go_on_when_there_is_room() -> None:
    async def run() -> None:
        turns, asked = Turns(limit=2), []

        async def ask(tree: str) -> None:
            await turns.wait(tree)
            asked.append(tree)

        for tree in "abcd":
            turns.enter(tree)
        waiting = [asyncio.ensure_future(ask(tree)) for tree in "dcba"]
        await asyncio.sleep(0.01)
        assert sorted(asked) == ["a", "b"]
        turns.leave("a")
        await asyncio.sleep(0.01)
        assert sorted(asked) == ["a", "b", "c"]
        turns.set_limit(3)
        await asyncio.wait_for(asyncio.gather(*waiting), 5)
        assert turns.waits == 2
        await asyncio.wait_for(turns.wait("never entered"), 5)

    asyncio.run(run())


def test_a_request_that_waits_no_more_and_a_tree_that_left_hold_nobody_up() -> None:
    async def run() -> None:
        turns = Turns(limit=1)
        for tree in "abc":
            turns.enter(tree)
        gone, left, last = (asyncio.ensure_future(turns.wait(tree)) for tree in "bbc")
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        turns.leave("b")
        await asyncio.wait_for(left, 5)
        assert not last.done()
        turns.set_limit(0)
        turns.leave("a")
        await asyncio.sleep(0)
        assert not last.done()
        turns.set_limit(1)
        await asyncio.wait_for(last, 5)

    asyncio.run(run())


def test_a_turn_costs_as_much_among_many_that_wait_as_among_few() -> None:
    def instructions(trees: int) -> float:
        async def run() -> int:
            turns = Turns(limit=trees // 2)
            gates = [asyncio.Event() for _ in range(trees + 1)]
            gates[0].set()

            async def search(tree: int) -> None:
                await turns.wait(tree)
                await gates[tree].wait()
                await asyncio.sleep(0)
                turns.leave(tree)
                gates[tree + 1].set()

            for tree in range(trees):
                turns.enter(tree)
            with counted_instructions() as count:
                await asyncio.gather(*(search(tree) for tree in range(trees)))
            assert turns.waits == trees - trees // 2
            return count[0]

        return asyncio.run(run()) / trees

    assert instructions(160) < 1.1 * instructions(30)
