"""The released script's outer loop: a fixed number of workers, one tree each, what fails is lost.

Part of `search/reference.py`. Written from a description of what that code does; nothing of it is copied.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from itrain_pipeline.errors import StageError
from itrain_pipeline.ports import Engine
from itrain_pipeline.records import Example, PreferencePair
from itrain_pipeline.search.reference import (
    RELEASED,
    WORKERS,
    Quirks,
    ReferenceRecord,
    ReferenceSettings,
    ReferenceTree,
)
from itrain_pipeline.search.sample import Language


@dataclass(slots=True, kw_only=True)
class ReferenceForest:
    """What the workers brought back. `lost` names, by sample, what the release would have printed and forgotten."""

    records: list[ReferenceRecord] = field(default_factory=list)
    pairs: list[PreferencePair] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)


async def grow_reference(
    examples: Sequence[Example],
    *,
    engine: Engine,
    language: Language,
    settings: ReferenceSettings | None = None,
    quirks: Quirks = RELEASED,
    workers: int = WORKERS,
) -> ReferenceForest:
    """Search all examples, `workers` trees at a time. A tree that fails is not tried again."""
    forest, waiting = ReferenceForest(), iter(examples)
    settings = settings or ReferenceSettings()

    async def work() -> None:
        for example in waiting:
            tree = ReferenceTree(settings, quirks, engine=engine, language=language, example=example)
            try:
                forest.pairs += await tree.run()
                forest.records.append(tree.record)
            except StageError as error:
                forest.lost[example.id] = str(error)

    await asyncio.gather(*(work() for _ in range(workers)))
    return forest
