"""Planted mistakes over BFCL's gold, counted: how many are taken for right, and how many get their own name.

The mistakes are `itrain_testing.mutations`', which imports nothing of the package; the verdicts are the package's.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from itrain_pipeline.evals.bfcl import Judgement, judge
from itrain_pipeline.evals.bfcl_data import GOLD_DEFECTS, BfclItem
from itrain_pipeline.records import ToolCall
from itrain_pipeline.toolcalls.parse import parse
from itrain_testing.bfclgold import gold_answer
from itrain_testing.mutations import Call, Mutant, Task, hallucinated, mutants, write


@dataclass
class Tally:
    planted: Counter[str] = field(default_factory=Counter)
    named: Counter[str] = field(default_factory=Counter)
    leaks: list[tuple[str, Mutant]] = field(default_factory=list)

    def share(self, kind: str) -> float:
        """Of the mistakes of a kind, those that got its name."""
        return self.named[kind] / self.planted[kind]


def count_planted(items: Iterable[BfclItem]) -> Tally:
    """Every item with every class of mistake that it allows, through our parser and the official checker."""
    found = Tally()
    for item in items:
        for mutant in spoiled(item, random.Random(item.id)):
            judgement = verdict(item, mutant.text)
            found.planted[mutant.kind] += 1
            found.named[mutant.kind] += judgement.error_class == mutant.kind
            if judgement.correct:
                found.leaks.append((item.id, mutant))
    return found


def verdict(item: BfclItem, text: str) -> Judgement:
    read = parse(text, "pythonic")
    return judge(item, read.calls, well_formed=read.error is None)


def pairs(calls: list[ToolCall]) -> list[Call]:
    return [(call.name, dict(call.arguments)) for call in calls]


def right_answer(item: BfclItem, rng: random.Random) -> list[Call]:
    """Half of them with their optional parameters, where the official checker takes those."""
    full = pairs(gold_answer(item, optional=True))
    if rng.random() < 0.5 and verdict(item, write(full)).correct:
        return full
    return pairs(gold_answer(item))


def spoiled(item: BfclItem, rng: random.Random) -> list[Mutant]:
    if item.category.endswith("irrelevance"):
        return [hallucinated(list(item.functions), rng)] if item.functions else []
    if not item.possible_answers or item.id in GOLD_DEFECTS:
        return []
    calls = right_answer(item, rng)
    assert verdict(item, write(calls)).correct, item.id
    task = Task(
        calls=calls,
        functions={function["name"]: function for function in item.functions},
        allowed=list(item.possible_answers),
        literal="java" not in item.category,
    )
    return list(mutants(task, rng))
