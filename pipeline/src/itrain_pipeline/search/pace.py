"""How many trees are searched at once: as many as the engine's free KV blocks carry, seen anew after every change.

A fixed number is either idle or thrash: how many blocks a tree holds depends on its prompt, on how long its answers
turn out, and on what else the engine keeps. So the number follows what is free (the rule of prime-rl's controller): it
grows while another tree fits at its largest, and is trimmed when the engine is about to run out. A trimmed tree is not
cancelled, which would throw tokens away and ask for them again: its next request waits until older trees have ended.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import islice
from typing import Literal

MAX_TREES = 4096
"""A bound where neither the engine nor the spec sets one: trees waiting for a turn cost memory and gain nothing."""
RESERVE = 16
"""The share of all blocks below whose free part trees are held back: 1/16, and at least one block."""
Move = Literal["grow", "hold", "trim"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How many trees may ask from now on."""

    move: Move
    trees: int


def tree_blocks(prompt_tokens: int, *, actions: int, max_answer_tokens: int, block_tokens: int) -> int:
    """Blocks that a tree holds at most: its prompt once, and all completions of one node to their longest."""
    return blocks(prompt_tokens, block_tokens) + actions * blocks(max_answer_tokens, block_tokens)


def blocks(tokens: int, block_tokens: int) -> int:
    return -(-tokens // block_tokens)


def plan_trees(*, total_blocks: int, free_blocks: int, blocks_per_tree: int, in_flight: int, cap: int = 0) -> Plan:
    """Grow, hold or trim the number of trees in flight. `cap` 0 leaves it to the engine, 1 is one after the other.

    Growing fills what is free beyond the reserve with trees at their largest. Trees that run may still grow into the
    same blocks, so their number at most doubles at a time: what the new ones hold is seen before there are more.
    Trimming takes as many away as the reserve lacks. One tree always runs: alone, it gets whatever there is.
    """
    most = cap or MAX_TREES
    reserve = max(total_blocks // RESERVE, 1)
    spare = free_blocks - reserve
    if spare < 0 and in_flight > 1:
        return Plan(move="trim", trees=max(min(in_flight - blocks(-spare, blocks_per_tree), most), 1))
    fitting = max(spare, 0) // blocks_per_tree
    trees = max(min(in_flight + (min(fitting, in_flight) if in_flight else fitting), most), 1)
    return Plan(move="grow" if trees > in_flight else "hold", trees=trees)


@dataclass(slots=True, kw_only=True)
class Turns:
    """Whose requests may start: those of the `limit` oldest trees. The others wait at their next request.

    Older trees first means that a tree ends soon after it began, so that its prompt is still among the known prefixes
    whenever it asks.
    """

    limit: int = MAX_TREES
    waits: int = 0
    """Requests that had to wait."""
    _trees: dict[Hashable, int] = field(default_factory=dict)
    """Oldest first, with the number of its entrance."""
    _entered: int = 0
    _newest: float | None = math.inf
    """Number of the youngest tree whose turn it is; None where it must be looked for again."""
    _waiting: dict[int, list[asyncio.Future[None]]] = field(default_factory=dict)
    _next: list[int] = field(default_factory=list)
    """A heap of the numbers in `_waiting`: a change walks over those whose turn it becomes, not over all that wait."""

    def __len__(self) -> int:
        return len(self._trees)

    def enter(self, tree: Hashable) -> None:
        self._trees[tree] = self._entered
        self._entered += 1
        self._newest = None

    def leave(self, tree: Hashable) -> None:
        number = self._trees.pop(tree, None)
        if number is not None:
            self._wake(number)
        self._changed()

    def set_limit(self, limit: int) -> None:
        if limit != self.limit:
            self.limit = limit
            self._changed()

    async def wait(self, tree: Hashable) -> None:
        """Returns when it is the tree's turn; at once for a tree that never entered."""
        if not self._held(tree):
            return
        self.waits += 1
        while self._held(tree):
            number, turn = self._trees[tree], asyncio.get_running_loop().create_future()
            if number not in self._waiting:
                heappush(self._next, number)
            self._waiting.setdefault(number, []).append(turn)
            await turn

    def _held(self, tree: Hashable) -> bool:
        return self._trees.get(tree, -1) > self._youngest()

    def _youngest(self) -> float:
        if self._newest is None:
            if self.limit < 1:
                self._newest = -1
            elif self.limit < len(self._trees):
                self._newest = next(islice(self._trees.values(), self.limit - 1, None))
            else:
                self._newest = math.inf
        return self._newest

    def _changed(self) -> None:
        self._newest = None
        while self._next and self._next[0] <= self._youngest():
            self._wake(heappop(self._next))

    def _wake(self, number: int) -> None:
        for turn in self._waiting.pop(number, ()):
            if not turn.done():  # its caller is gone
                turn.set_result(None)
