"""The long-tailed toolworld: a pool in which one row in twenty is rare, and a test set in which one in two is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from itrain_pipeline.data.rendering import Renderer
from itrain_pipeline.data.toolworld import Split, generate_tasks
from itrain_pipeline.records import Example
from itrain_testing.toolworld_rows import toolworld_row

POOL_RARE, TEST_RARE = 5, 50
"""Per cent. Synthetic data are mostly easy and are judged on what is hard (method document, "What the paper shows")."""
TEST_SEED = 9_000
"""Of the test set; one for all seeds, so that every arm of every seed answers the same tasks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Tasks with a call from the split that nothing is trained or chosen on, and which of them are rare."""

    examples: tuple[Example, ...]
    rare: tuple[bool, ...]


def make_pool(renderer: Renderer, rows: int, seed: int, *, distractors: int) -> tuple[Example, ...]:
    tasks = generate_tasks("train", rows, seed, distractors=distractors, rare=POOL_RARE)
    return tuple(toolworld_row(renderer, task, f"pool/{number:05d}") for number, task in enumerate(tasks))


def make_test(
    renderer: Renderer, rows: int, *, distractors: int, split: Split = "test", seed: int = TEST_SEED
) -> HeldOut:
    """The first `rows` tasks whose answer is a call."""
    drawn = generate_tasks(split, 2 * rows + 20, seed, distractors=distractors, rare=TEST_RARE)
    tasks = [task for task in drawn if task.turns[0].calls][:rows]
    return HeldOut(
        examples=tuple(toolworld_row(renderer, task, f"{split}/{number:05d}") for number, task in enumerate(tasks)),
        rare=tuple(task.rare for task in tasks),
    )


def of_kind(right: Sequence[Sequence[bool]], rare: Sequence[bool], *, wanted: bool) -> list[list[bool]]:
    """The columns of `right`, [seeds][tasks], whose task is rare, or is not."""
    return [[hit for hit, is_rare in zip(row, rare, strict=True) if is_rare is wanted] for row in right]
