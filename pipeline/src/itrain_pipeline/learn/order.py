"""In which order rows are trained on, and how a global batch is made of forward passes. Pure; no torch."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from itrain_pipeline.errors import ConfigError

PADDING = -1
"""An index that stands for no row: it weighs nothing, and evens out the last batch of several processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """micro · accumulation · processes = the global batch, whatever the number of processes."""

    micro: int
    accumulation: int
    processes: int

    @property
    def global_batch(self) -> int:
        return self.micro * self.accumulation * self.processes


def plan_batches(*, global_batch: int, micro_batch: int, processes: int) -> BatchPlan:
    """The largest micro batch up to `micro_batch` that divides each process's part of the global batch.

    Raises ConfigError when the global batch cannot be shared evenly by the processes.
    """
    part, rest = divmod(global_batch, processes)
    if rest or not part:
        raise ConfigError(f"globalBatch: got {global_batch}, allowed are multiples of the {processes} processes")
    micro = max(size for size in range(1, min(micro_batch, part) + 1) if part % size == 0)
    return BatchPlan(micro=micro, accumulation=part // micro, processes=processes)


def plan_order(
    buckets: Sequence[int], *, epochs: float, max_steps: int, global_batch: int, seed: int
) -> tuple[int, ...]:
    """Row indexes in training order: `buckets` (row counts) in sequence, each shuffled anew for every pass by `seed`.

    Rows are numbered through the buckets. `max_steps` > 0 replaces `epochs` by as many passes over each bucket as
    give exactly that many global batches, so a shorter training keeps the curriculum.
    """
    total = sum(buckets)
    if not total:
        return ()
    wanted = max_steps * global_batch if max_steps else max(1, round(epochs * total))
    order: list[int] = []
    first = 0
    for number, count in enumerate(buckets):
        until = (first + count) * wanted // total  # cumulative, so that the parts add up to `wanted`
        rng = random.Random(f"{seed}/{number}")
        while len(order) < until:
            rows = list(range(first, first + count))
            rng.shuffle(rows)
            order += rows[: until - len(order)]
        first += count
    return tuple(order)


def plan_tree_order(
    trees: Sequence[int], *, epochs: float, max_steps: int, global_batch: int, seed: int
) -> tuple[int, ...]:
    """Row indexes in training order: trees (`trees[i]` is that of row i) shuffled anew for every pass, the rows of one
    together and in their own order, so that one forward row can hold what they share.

    With a tree per row it is `plan_order` of one bucket.
    """
    members: dict[int, list[int]] = {}
    for row, tree in enumerate(trees):
        members.setdefault(tree, []).append(row)
    wanted = max_steps * global_batch if max_steps else max(1, round(epochs * len(trees)))
    rng = random.Random(f"{seed}/0")
    order: list[int] = []
    while trees and len(order) < wanted:
        found = list(members.values())
        rng.shuffle(found)
        order += [row for rows in found for row in rows][: wanted - len(order)]
    return tuple(order)


def pad_order(order: Sequence[int], plan: BatchPlan) -> tuple[int, ...]:
    """`order` filled with PADDING to whole forward passes on every process; with one process as it is."""
    if plan.processes == 1:
        return tuple(order)
    width = plan.micro * plan.processes
    return (*order, *[PADDING] * (-len(order) % width))


def longest_first(order: Sequence[int], lengths: Sequence[int], *, global_batch: int) -> tuple[int, ...]:
    """`order` with each global batch sorted by length, PADDING last. An optimiser step has the rows that it had; those
    of one forward pass are nearly as long as each other, and what does not fit into memory is met at once."""
    return tuple(
        index
        for first in range(0, len(order), global_batch)
        for index in sorted(
            order[first : first + global_batch], key=lambda index: (index == PADDING, -lengths[index], index)
        )
    )


def count_steps(rows: int, global_batch: int) -> int:
    """Optimiser steps; the last one may be of fewer rows."""
    return math.ceil(rows / global_batch)
