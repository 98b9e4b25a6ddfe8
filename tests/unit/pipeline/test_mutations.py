"""Planted mistakes of every class over BFCL's gold: none is taken for right, and each is named as what it is."""

from __future__ import annotations

import random

import pytest

from itrain_pipeline.evals.bfcl import load_items
from itrain_testing.mutations import PLANTERS, Task
from itrain_testing.planting import Tally, count_planted

LEAKS_OF_18000 = 1
SHARES = dict.fromkeys((*PLANTERS, "hallucinated_call"), 0.95) | {"parameter_name": 0.90, "tool_name": 0.90}


@pytest.fixture(scope="module")
def tally() -> Tally:
    return count_planted(load_items())


def test_no_planted_mistake_is_taken_for_right(tally: Tally) -> None:
    total = tally.planted.total()
    assert total >= 18_000
    assert len(tally.leaks) <= LEAKS_OF_18000 * total / 18_000, tally.leaks[:5]


@pytest.mark.parametrize("kind", SHARES)
def test_a_planted_mistake_is_named_as_what_it_is(tally: Tally, kind: str) -> None:
    assert tally.planted[kind] >= 1000
    assert tally.share(kind) >= SHARES[kind]


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
