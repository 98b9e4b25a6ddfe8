"""A dev split that shares no tool with the training data: by component of shared tool names, never by row."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from itrain_pipeline.data.selection import stable_hash
from itrain_pipeline.errors import DataError
from itrain_pipeline.records import Example


def components(rows: Sequence[Iterable[str]]) -> list[list[int]]:
    """Row numbers that are linked by shared keys, directly or over other rows; a row without keys stands alone.

    Each component ascending; components by their first row.
    """
    parent = list(range(len(rows)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    first: dict[str, int] = {}
    for row, keys in enumerate(rows):
        for key in keys:
            one, other = sorted((root(first.setdefault(key, row)), root(row)))
            parent[other] = one
    found: defaultdict[int, list[int]] = defaultdict(list)
    for row in range(len(rows)):
        found[root(row)].append(row)
    return list(found.values())


def split_dev(
    examples: Sequence[Example], groups: Sequence[str], fraction: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """(train, dev), each in the order given. `groups[i]` names the dialogue of example i: its turns stay together.

    The smallest components fill dev up to `fraction` of the rows, ties in seeded order; the largest one always trains.
    Raises `DataError` with the remedy when they cannot fill half of it without taking more than twice of it.
    """
    target = math.ceil(fraction * len(examples) - 1e-9)
    keys = [
        {f"group/{group}", *(f"tool/{tool.get('name')}" for tool in example.tools)}
        for example, group in zip(examples, groups, strict=True)
    ]
    ordered = sorted(components(keys), key=lambda rows: (len(rows), stable_hash(f"{seed}/{examples[rows[0]].id}")))
    dev: set[int] = set()
    for rows in ordered[:-1]:
        if len(dev) >= target or len(dev) + len(rows) > 2 * target:
            break
        dev.update(rows)
    if not examples or 2 * len(dev) < target or not dev:
        raise DataError(
            f"data.devFraction: {len(examples)} rows form {len(ordered)} groups that share no tool, the largest of "
            f"{len(ordered[-1]) if ordered else 0} rows; the small ones give {len(dev)} dev rows where {target} are "
            "wanted. Give an own dev set (data.dev), or a larger devFraction"
        )
    train = [example for row, example in enumerate(examples) if row not in dev]
    return train, [examples[row] for row in sorted(dev)]
