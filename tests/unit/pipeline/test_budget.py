"""Freed simulations and enough pairs: who gets what depends on the order of the samples, never on who ended first."""

from __future__ import annotations

import asyncio
import itertools
import random

from itrain_pipeline.search.budget import Budget, PairQuota


def share_out(told: dict[str, tuple[int, int]], order_of_telling: list[str]) -> dict[str, int]:
    async def run() -> dict[str, int]:
        budget = Budget(list(told))
        calls = []
        for name in order_of_telling:
            freed, wanted = told[name]
            calls.append(asyncio.ensure_future(budget.settle(name, freed=freed, wanted=wanted)))
            await asyncio.sleep(0)
        return dict(zip(order_of_telling, await asyncio.gather(*calls), strict=True))

    return asyncio.run(run())


def test_what_the_trees_before_left_is_given_in_the_order_of_the_samples() -> None:
    told = {"a": (4, 0), "b": (0, 5), "c": (0, 5), "d": (3, 0), "e": (0, 2)}
    assert share_out(told, list(told)) == {"a": 0, "b": 4, "c": 0, "d": 0, "e": 2}


def test_the_order_in_which_trees_end_changes_nothing() -> None:
    rng = random.Random(1)
    for _ in range(20):
        told = {name: (rng.randrange(5), rng.choice([0, 5])) for name in "abcdef"}
        wanted = share_out(told, list(told))
        for order in itertools.islice(itertools.permutations("abcdef"), 0, 720, 37):
            assert share_out(told, list(order)) == wanted
        assert sum(wanted.values()) <= sum(freed for freed, _ in told.values())


def test_a_tree_waits_for_those_before_it_and_for_none_behind() -> None:
    async def run() -> None:
        budget = Budget(["a", "b", "c"])
        b = asyncio.ensure_future(budget.settle("b", freed=0, wanted=3))
        await asyncio.sleep(0)
        assert not b.done()
        assert await budget.settle("a", freed=2, wanted=0) == 0
        assert await b == 2
        assert (budget.freed, budget.handed_over, budget.left) == (2, 2, 0)

    asyncio.run(asyncio.wait_for(run(), 5))


def test_a_failed_tree_and_one_of_an_earlier_attempt_keep_nobody_waiting() -> None:
    async def run() -> None:
        budget = Budget(["a", "b", "c", "d"])
        budget.recall("a", freed=4, given=0)
        budget.recall("b", freed=0, given=3)
        budget.recall("c", freed=0, given=0)
        budget.recall("c", freed=9, given=0)  # told twice: the first stands
        assert await budget.settle("d", freed=0, wanted=5) == 1

    asyncio.run(asyncio.wait_for(run(), 5))


def test_pairs_are_enough_and_only_trees_before_the_last_needed_one_go_on() -> None:
    quota = PairQuota(["a", "b", "c", "d"], 5)
    quota.add("c", 3)
    quota.add("b", 2)
    assert quota.enough()
    assert all(map(quota.needed, "abcd"))  # a may still have pairs of its own, and all before it count
    quota.add("a", 0)
    assert not quota.needed("d")
    assert all(map(quota.needed, "abc"))
