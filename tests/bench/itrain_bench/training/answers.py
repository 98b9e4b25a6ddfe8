"""What the arms of SFT and of perplexity are given: answers behind long prompts, random ids by seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

from itrain_bench.training.workload import Workload
from itrain_pipeline.records import Example

SHORT = 32
"""Tokens of the prompts that warm a process up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerWorkload:
    """Rows and model. `global_batch`, `micro_batch`, `steps` are of training only."""

    rows: int
    repeats: int
    prompt: int = 800
    """Mean tokens of a prompt; they vary by half."""
    shortest_answer: int = 16
    longest_answer: int = 48
    vocabulary: int = 32_000
    hidden: int = 256
    layers: int = 12
    global_batch: int = 8
    micro_batch: int = 2
    seed: int = 0

    @property
    def model(self) -> Workload:
        """The model's part, as the SimPO arms have it."""
        return Workload(
            trees=0,
            pairs_per_tree=0,
            repeats=0,
            vocabulary=self.vocabulary,
            hidden=self.hidden,
            layers=self.layers,
            seed=self.seed,
        )


def make_rows(workload: AnswerWorkload, count: int, *, prompt: int = 0) -> list[Example]:
    """`count` rows; `prompt` replaces the mean length of their prompts."""
    rng = random.Random(f"{workload.seed}/{prompt}")

    def ids(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(10, workload.vocabulary) for _ in range(length))

    return [
        Example(
            id=f"row-{number:03d}",
            messages=(),
            tools=(),
            answer="",
            calls=(),
            bucket="easy",
            source="bench",
            prompt_ids=ids(round((prompt or workload.prompt) * rng.uniform(0.5, 1.5))),
            answer_ids=ids(rng.randint(workload.shortest_answer, workload.longest_answer)),
        )
        for number in range(count)
    ]


def padded_tokens(lengths: list[int], micro_batch: int) -> int:
    """Tokens that forward passes of `micro_batch` rows compute, padding included."""
    parts = [lengths[first : first + micro_batch] for first in range(0, len(lengths), micro_batch)]
    return sum(len(part) * max(part) for part in parts)
