"""Planted mistakes of every class over BFCL's gold: none is taken for right, and each is named as what it is."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from itrain_pipeline.evals.bfcl import Judgement, judge, load_items
from itrain_pipeline.evals.bfcl_data import GOLD_DEFECTS, BfclItem
from itrain_pipeline.records import ToolCall
from itrain_pipeline.toolcalls.parse import parse
from itrain_testing.bfclgold import gold_answer
from itrain_testing.mutations import PLANTERS, Call, Mutant, Task, hallucinated, mutants, write

LEAKS_OF_18000 = 1
SHARES = dict.fromkeys((*PLANTERS, "hallucinated_call"), 0.95) | {"parameter_name": 0.90, "tool_name": 0.90}


@dataclass
class Tally:
    planted: Counter[str] = field(default_factory=Counter)
    named: Counter[str] = field(default_factory=Counter)
    leaks: list[tuple[str, Mutant]] = field(default_factory=list)


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


@pytest.fixture(scope="module")
def tally() -> Tally:
    """Every item with every class of mistake, through our parser and the official checker."""
    found = Tally()
    for item in load_items():
        for mutant in spoiled(item, random.Random(item.id)):
            judgement = verdict(item, mutant.text)
            found.planted[mutant.kind] += 1
            found.named[mutant.kind] += judgement.error_class == mutant.kind
            if judgement.correct:
                found.leaks.append((item.id, mutant))
    return found


def test_no_planted_mistake_is_taken_for_right(tally: Tally) -> None:
    total = tally.planted.total()
    assert total >= 18_000
    assert len(tally.leaks) <= LEAKS_OF_18000 * total / 18_000, tally.leaks[:5]


@pytest.mark.parametrize("kind", SHARES)
def test_a_planted_mistake_is_named_as_what_it_is(tally: Tally, kind: str) -> None:
    assert tally.planted[kind] >= 1000
    assert tally.named[kind] / tally.planted[kind] >= SHARES[kind]


def test_the_generator_never_plants_what_is_allowed() -> None:
    """Its own idea of a wrong value, by hand: other spellings of an allowed value are none."""
    function = {"name": "f", "parameters": {"properties": {"a": {"type": "boolean"}}, "required": ["a"]}}
    both = [{"f": {"a": [True, False]}}]
    either = Task(calls=[("f", {"a": True})], functions={"f": function}, allowed=both, literal=True)
    assert PLANTERS["parameter_value"](either, random.Random(1)) is None
    one = Task(calls=[("f", {"a": True})], functions={"f": function}, allowed=[{"f": {"a": [True]}}], literal=True)
    assert PLANTERS["parameter_value"](one, random.Random(1)) == "[f(a=False)]"
    assert PLANTERS["parameter_type"](one, random.Random(1)) == "[f(a='True')]"
    assert PLANTERS["missing_parameter"](one, random.Random(1)) == "[f()]"
