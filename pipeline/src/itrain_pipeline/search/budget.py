"""The budgets of a shard: pairs that are enough, and simulations that some trees leave to those that still disagree.

Who gets what is a function of the order of the samples alone: a tree can draw on what the trees before it left, so it
waits until all of these have told. They were launched earlier, so nobody waits for long, nobody waits for a tree
behind, and many trees in flight share out exactly as one at a time does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence


class Budget:
    """`settle` is called once for every tree. What a tree was given and did not use is gone, not given again."""

    def __init__(self, order: Sequence[str]) -> None:
        self._place = {sample_id: place for place, sample_id in enumerate(order)}
        self._told: dict[int, tuple[int, int, asyncio.Future[int] | None]] = {}
        self._next = 0
        self.left = 0
        """What the trees up to here left and nobody was given."""
        self.freed = 0
        self.handed_over = 0

    async def settle(self, sample_id: str, *, freed: int, wanted: int) -> int:
        """Tell what a tree leaves and how much it would take; returns what it is given."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._tell(sample_id, freed, wanted, future)
        return await future

    def recall(self, sample_id: str, *, freed: int, given: int) -> None:
        """A tree of an earlier attempt, or one that failed: nobody waits for an answer."""
        self._tell(sample_id, freed, given, None)

    def _tell(self, sample_id: str, freed: int, wanted: int, future: asyncio.Future[int] | None) -> None:
        place = self._place[sample_id]
        if place < self._next or place in self._told:
            return  # it failed after it had settled
        self._told[place] = (freed, wanted, future)
        while self._next in self._told:
            freed, wanted, future = self._told.pop(self._next)
            self._next += 1
            given = min(wanted, self.left)
            self.left += freed - given
            self.freed += freed
            self.handed_over += given
            if future is not None and not future.done():
                future.set_result(given)


class PairQuota:
    """When the pairs are enough, and which trees in flight no output needs any more.

    The output takes pairs in the order of the samples, so it ends with the first tree at which all trees before it are
    done and have enough; whatever ended behind that tree changes nothing.
    """

    def __init__(self, order: Sequence[str], quota: int) -> None:
        self._place = {sample_id: place for place, sample_id in enumerate(order)}
        self._quota = quota
        self._done: dict[int, int] = {}
        self._next = self._before = 0
        self.pairs = 0

    def add(self, sample_id: str, pairs: int) -> None:
        """A tree ended with so many pairs (a failed one with none)."""
        self.pairs += pairs
        self._done[self._place[sample_id]] = pairs
        while self._before < self._quota and self._next in self._done:
            self._before += self._done.pop(self._next)
            self._next += 1

    def enough(self) -> bool:
        """No tree that has not begun is needed: those that have will do."""
        return self.pairs >= self._quota

    def needed(self, sample_id: str) -> bool:
        return self._before < self._quota or self._place[sample_id] < self._next
