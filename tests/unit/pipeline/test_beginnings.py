"""Beginnings of answers against the calls wanted: what is on the way is never contradicted, what is not always is."""

from __future__ import annotations

import dataclasses
import itertools
import random
from typing import Any

import pytest

from itrain_pipeline.data.toolworld import generate_tasks
from itrain_pipeline.records import ToolCall
from itrain_pipeline.toolcalls.beginnings import may_become, opens_call
from itrain_pipeline.toolcalls.compare import exact_match
from itrain_pipeline.toolcalls.parse import parse
from itrain_pipeline.toolcalls.serialise import serialise

FORMATS = ("pythonic", "hermes", "llama")
ODD = (
    ToolCall(
        name="Vehicle Identification Number (VIN) Lookup", arguments={"vin": 'it\'s "1" \\ é', "deep": [1, [2.5]]}
    ),
    ToolCall(name="f", arguments={"only": []}),
    ToolCall(name="f", arguments={"unit": None, "units": True, "x": -3, "nested": {"a": [False], "b c": {}}}),
)


def call(name: str = "f", **arguments: Any) -> ToolCall:
    return ToolCall(name=name, arguments=arguments)


def wanted() -> list[tuple[ToolCall, ...]]:
    tasks = itertools.islice(generate_tasks("train", 20, 5), 20)
    return [task.turns[0].calls for task in tasks if task.turns[0].calls] + [ODD, ODD[:1], ODD[1:]]


@pytest.mark.parametrize("call_format", FORMATS)
def test_every_beginning_of_a_right_answer_in_any_order_may_become_right(call_format: str) -> None:
    rng = random.Random(0)
    for calls in wanted():
        shuffled = [
            dataclasses.replace(c, arguments=dict(rng.sample(list(c.arguments.items()), len(c.arguments))))
            for c in rng.sample(calls, len(calls))
        ]
        text = serialise(shuffled, call_format)
        assert exact_match(parse(text, call_format).calls, calls)
        for end in range(len(text) + 1):
            assert may_become(text[:end], calls, call_format), text[:end]


@pytest.mark.parametrize("call_format", FORMATS)
def test_what_cannot_become_right_never_does(call_format: str) -> None:
    """One character of a right answer changed: if some beginning is refused, the whole parses to other calls."""
    rng = random.Random(1)
    refused = 0
    for calls in wanted():
        text = serialise(calls, call_format)
        for _ in range(12):
            at = rng.randrange(len(text))
            changed = text[:at] + rng.choice("abc019'\",()[]{}= ") + text[at + 1 :]
            right = exact_match(parse(changed, call_format).calls, calls)
            ends = [end for end in range(len(changed) + 1) if not may_become(changed[:end], calls, call_format)]
            if ends:
                refused += 1
                assert not right, changed
                assert ends == list(range(ends[0], len(changed) + 1)), "once refused, always refused"
    assert refused > 120


@pytest.mark.parametrize(
    ("text", "calls", "expected"),
    [
        ("[f(a=1", (call(a=12),), True),
        ("[f(a=1,", (call(a=12),), False),
        ("[f(a=12.0,", (call(a=12, b=1),), True),
        ("[f(a=12.", (call(a=12),), True),
        ("[f(a=12.5", (call(a=12),), False),
        ("[f(a=True", (call(a=1),), False),
        ("[f(a='1'", (call(a=1),), False),
        ('[f( a = "x" , b=', (call(a="x", b=1),), True),
        ("[f(b=", (call(a=1),), False),
        ("[f(units=", (call(unit=1),), False),
        ("[f(a=1)", (call(a=1, b=2),), False),
        ("[f(a=1), f(", (call(a=1), call(a=2)), True),
        ("[f(a=1), f(a=1", (call(a=1), call(a=2)), False),
        ("[f(a=2), f(a=1)]", (call(a=1), call(a=2)), True),
        ("[f(a=1)]", (call(a=1), call(a=2)), False),
        ("[f(a=1), g(", (call(a=1),), False),
        ("[F(", (call(),), False),
        ("[f(a=['x',", (call(a=["x", "y"]),), True),
        ("[f(a=['y',", (call(a=["x", "y"]),), False),
        ("[f(a=1)] done.", (call(a=1),), True),
        ("[f(a=1)] [f(", (call(a=1),), False),
        (r"[f(a={'\\", (call(a={"\\": 1}),), True),
        (r"[f(a={'it\'s':", (call(a={"it's": 1}),), True),
        (r"[f(a={'\u00e9':", (call(a={"é": 1}),), True),
        (r"[f(a={'it\'s':", (call(a={"it": 1}),), False),
        ("Sure, I will", (call(),), True),
        ("", (call(),), True),
        ('{"name": "f"', (call(),), False),
        ("<tool_call>", (call(),), False),
    ],
)
def test_pythonic_beginnings(text: str, calls: tuple[ToolCall, ...], expected: bool) -> None:
    assert may_become(text, calls, "pythonic") is expected


def test_a_beginning_is_a_call_from_its_opening_on() -> None:
    assert opens_call("[Delete House(", "pythonic")
    assert opens_call("<tool_call>\n", "hermes")
    assert opens_call(' {"name": ', "llama")
    for text, call_format in (("[1] says", "pythonic"), ("[see", "pythonic"), ("<tool", "hermes"), ("{", "llama")):
        assert not opens_call(text, call_format)
