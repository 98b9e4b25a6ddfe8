"""Calls against the ground truth: equal or not, and how far apart, fragment by fragment. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

from itrain_pipeline.records import ToolCall


def exact_match(answer: Sequence[ToolCall], gold: Sequence[ToolCall]) -> bool:
    """The same calls in any order: names, parameter names and values. 1 equals 1.0; True does not equal 1."""
    return Counter(map(call_key, answer)) == Counter(map(call_key, gold))


def call_key(call: ToolCall) -> Hashable:
    """Equal for equal calls, whatever the order of their arguments."""
    return call.name, frozenset((name, value_key(value)) for name, value in call.arguments.items())


def value_key(value: Any) -> tuple[str, Hashable]:
    """(JSON type, content): equal for equal values. Numbers are one type; a boolean is none."""
    if isinstance(value, bool) or value is None:
        return ("null" if value is None else "boolean", value)
    if isinstance(value, int | float):
        return ("number", value)
    if isinstance(value, list | tuple):
        return ("array", tuple(map(value_key, value)))
    if isinstance(value, dict):
        return ("object", frozenset((str(key), value_key(item)) for key, item in value.items()))
    return ("string", str(value))


def fragment_score(answer: Sequence[ToolCall], gold: Sequence[ToolCall]) -> float:
    """Reward in [-1, 1] with credit per fragment; 1 exactly for an exact match (method document, 3, reward a).

    A call's fragments: its name, and for each argument the parameter's name and its value, one point each; a wrong
    value of the right JSON type earns half a point. Calls are paired greedily, most points first. Reward =
    2 · points / fragments of the longer side - 1, so that what is missing and what is too much both cost. Where only
    one side has calls: -1.
    """
    if not answer or not gold:
        return 1.0 if not answer and not gold else -1.0
    left, wanted = list(answer), list(gold)
    earned = 0.0
    while left and wanted:
        points, i, j = max((_points(a, g), -i, -j) for i, a in enumerate(left) for j, g in enumerate(wanted))
        earned += points
        del left[-i], wanted[-j]
    whole = max(sum(map(_fragments, answer)), sum(map(_fragments, gold)))
    return 2.0 * earned / whole - 1.0


def _fragments(call: ToolCall) -> int:
    return 1 + 2 * len(call.arguments)


def _points(answer: ToolCall, gold: ToolCall) -> float:
    shared = answer.arguments.keys() & gold.arguments.keys()
    values = sum(1.0 + _value_points(answer.arguments[name], gold.arguments[name]) for name in shared)
    return float(answer.name == gold.name) + values


def _value_points(answer: Any, gold: Any) -> float:
    given, wanted = value_key(answer), value_key(gold)
    return 1.0 if given == wanted else 0.5 if given[0] == wanted[0] else 0.0


def overlap(first: Sequence[int], second: Sequence[int]) -> float:
    """Share of tokens that two steps have in common, as multisets, of the longer one; 1 for two empty steps."""
    longer = max(len(first), len(second))
    return (Counter(first) & Counter(second)).total() / longer if longer else 1.0
