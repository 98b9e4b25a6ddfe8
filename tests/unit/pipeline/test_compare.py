"""Equality and the fragment reward, by hand and by law."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itrain_pipeline.records import ToolCall
from itrain_pipeline.toolcalls.compare import exact_match, fragment_score, overlap


def call(tool: str = "f", **arguments: Any) -> ToolCall:
    return ToolCall(name=tool, arguments=arguments)


GOLD = call("weather", city="Rome", days=3)


def test_calls_match_in_any_order_with_arguments_in_any_order() -> None:
    assert exact_match([call("g"), call(a=1, b=[1, {"k": None}])], [call(b=[1, {"k": None}], a=1), call("g")])
    assert not exact_match([call("g"), call("g")], [call("g")])
    assert not exact_match([call("g"), call("h")], [call("g"), call("g")])


@pytest.mark.parametrize(("first", "second"), [(1, 1.0), ((1, 2), [1, 2]), ({"a": 1, "b": 2}, {"b": 2, "a": 1.0})])
def test_values_that_are_equal(first: object, second: object) -> None:
    assert exact_match([call(a=first)], [call(a=second)])


@pytest.mark.parametrize(
    ("first", "second"), [(True, 1), (False, 0), ("1", 1), (None, ""), ("Rome", "rome"), ([1, 2], [2, 1]), (1, 1.0001)]
)
def test_values_that_differ(first: object, second: object) -> None:
    assert not exact_match([call(a=first)], [call(a=second)])


@pytest.mark.parametrize(
    ("answer", "points", "whole"),
    [
        ([GOLD], 5, 5),
        ([call("weather", city="Paris", days=3)], 4.5, 5),  # right type, wrong value: half a point
        ([call("weather", city="Rome", days="3")], 4, 5),  # wrong type
        ([call("weather", town="Rome", days=3)], 3, 5),  # parameter name and value
        ([call("weather", city="Rome")], 3, 5),  # missing parameter
        ([call("weather", city="Rome", days=3, unit="C")], 5, 7),  # extra parameter
        ([call("forecast", city="Rome", days=3)], 4, 5),  # tool name
        ([GOLD, call("f")], 5, 6),  # extra call
        ([call("other")], 0, 5),
    ],
)
def test_the_score_counts_fragments(answer: list[ToolCall], points: float, whole: int) -> None:
    assert fragment_score(answer, [GOLD]) == pytest.approx(2 * points / whole - 1)


def test_calls_are_paired_with_what_they_match_best() -> None:
    gold = [call("weather", city="Rome"), call("weather", city="Paris")]
    assert fragment_score([gold[1], gold[0]], gold) == 1.0
    assert fragment_score([gold[1], call("weather", city="Oslo")], gold) == pytest.approx(2 * 5.5 / 6 - 1)


def test_calls_on_one_side_only_score_least_and_none_on_both_most() -> None:
    assert fragment_score([], [GOLD]) == fragment_score([GOLD], []) == -1.0
    assert fragment_score([], []) == 1.0


VALUES = st.one_of(st.integers(0, 2), st.booleans(), st.sampled_from(["x", "y"]), st.just([1]), st.none())
CALLS = st.lists(
    st.builds(
        ToolCall, name=st.sampled_from("fg"), arguments=st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3)
    ),
    max_size=4,
)


@settings(max_examples=300, deadline=None)
@given(answer=CALLS, gold=CALLS)
def test_the_score_is_one_exactly_for_a_match_and_symmetric(answer: list[ToolCall], gold: list[ToolCall]) -> None:
    score = fragment_score(answer, gold)
    assert -1.0 <= score <= 1.0
    assert (score == 1.0) == exact_match(answer, gold)
    assert fragment_score(gold, answer) == pytest.approx(score)


def test_overlap_counts_tokens_of_the_longer_step() -> None:
    assert overlap((1, 2, 2, 3), (2, 2, 2)) == 2 / 4
    assert overlap((1,), (2,)) == 0.0
    assert overlap((), (1,)) == 0.0
    assert overlap((5, 6), (6, 5)) == overlap((), ()) == 1.0
