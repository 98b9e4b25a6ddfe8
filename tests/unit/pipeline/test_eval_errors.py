"""The structural diff names every planted mistake, whatever stands beside it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itrain_pipeline.evals.errors import (
    PAPER_SHARES,
    ErrorClass,
    GoldCall,
    GoldParameter,
    classify,
    equal_values,
    exact_gold,
    value_error,
)
from itrain_pipeline.records import ToolCall
from itrain_pipeline.toolcalls.compare import exact_match

TOOL = {"name": "book flight", "parameters": {"properties": {"from": {}, "to": {}, "seats": {}, "class": {}}}}
GOLD = ToolCall(name="book flight", arguments={"from": "Oslo", "to": "Rome", "seats": 2})


def classes(*calls: ToolCall, gold: tuple[ToolCall, ...] = (GOLD,), well_formed: bool = True) -> list[ErrorClass]:
    found = classify(calls, exact_gold(gold, [TOOL]), well_formed=well_formed)
    return [finding.error_class for finding in found]


def with_arguments(**changes: object) -> ToolCall:
    return ToolCall(name=GOLD.name, arguments={**GOLD.arguments, **changes})


def without(name: str, **more: object) -> ToolCall:
    return ToolCall(name=GOLD.name, arguments={k: v for k, v in GOLD.arguments.items() if k != name} | more)


def test_the_gold_answer_has_no_finding() -> None:
    assert classes(GOLD) == []
    assert classes(gold=()) == []


def test_each_class_is_named_for_its_planted_mistake() -> None:
    assert classes(with_arguments(to="Romulus")) == [ErrorClass.PARAMETER_VALUE]
    assert classes(with_arguments(seats="2")) == [ErrorClass.PARAMETER_TYPE]
    assert classes(without("to", destination="Rome")) == [ErrorClass.PARAMETER_NAME]
    assert classes(without("to", destination="Paris")) == [ErrorClass.PARAMETER_NAME]
    assert classes(without("to")) == [ErrorClass.MISSING_PARAMETER]
    assert classes(with_arguments(meal="veg")) == [ErrorClass.EXTRA_PARAMETER]
    assert classes(ToolCall(name="book_flight", arguments=GOLD.arguments)) == [ErrorClass.TOOL_NAME]
    assert classes(GOLD, GOLD) == [ErrorClass.CALL_COUNT]
    assert classes(well_formed=False) == [ErrorClass.FORMAT]
    assert classes(GOLD, gold=()) == [ErrorClass.HALLUCINATED_CALL]
    assert classes() == [ErrorClass.MISSED_CALL]


def test_a_known_parameter_with_another_value_beside_a_missing_one_is_no_renaming() -> None:
    """`class` exists in the schema: leaving out `to` and adding `class` are two mistakes."""
    call = ToolCall(name=GOLD.name, arguments={"from": "Oslo", "seats": 2, "class": "first"})
    assert classes(call) == [ErrorClass.MISSING_PARAMETER, ErrorClass.EXTRA_PARAMETER]


def test_two_renamed_parameters_are_paired_by_value_then_by_likeness() -> None:
    call = ToolCall(name=GOLD.name, arguments={"depart": "Rome", "fro": "Bergen", "seats": 2})
    found = classify([call], exact_gold([GOLD], [TOOL]))
    assert [(f.parameter, f.detail) for f in found] == [("from", "named 'fro'"), ("to", "named 'depart'")]


def test_a_renamed_optional_counts_as_an_extra_parameter() -> None:
    gold = GoldCall(name="f", parameters={"a": GoldParameter(allowed=(1,), optional=True)}, schema=frozenset({"a"}))
    found = classify([ToolCall(name="f", arguments={"b": 1})], [gold])
    assert [f.error_class for f in found] == [ErrorClass.EXTRA_PARAMETER]


@pytest.mark.parametrize(
    ("written", "value", "expected"),
    [
        ("units", "km", ErrorClass.PARAMETER_NAME),
        ("unit_name", "km", ErrorClass.PARAMETER_NAME),
        ("unit_name", "miles", ErrorClass.EXTRA_PARAMETER),
        ("verbose", "km", ErrorClass.EXTRA_PARAMETER),
        ("uniform", "km", ErrorClass.EXTRA_PARAMETER),
    ],
)
def test_an_optional_is_renamed_where_name_and_value_are_like_it(
    written: str, value: str, expected: ErrorClass
) -> None:
    """Its absence is no sign; `uniform` is a parameter that the tool knows."""
    schema = frozenset({"unit", "uniform"})
    gold = GoldCall(name="f", parameters={"unit": GoldParameter(allowed=("km",), optional=True)}, schema=schema)
    (found,) = classify([ToolCall(name="f", arguments={written: value})], [gold])
    assert (found.error_class, found.tool) == (expected, "f")


def test_several_mistakes_are_all_reported_and_the_structural_one_names_the_answer() -> None:
    call = ToolCall(name=GOLD.name, arguments={"from": "Bergen", "destination": "Rome", "seats": "2"})
    assert classes(call) == [ErrorClass.PARAMETER_NAME, ErrorClass.PARAMETER_TYPE, ErrorClass.PARAMETER_VALUE]


def test_parallel_calls_are_compared_with_their_nearest_gold_call() -> None:
    """The swapped order is no mistake, and only the changed value of the right partner is found."""
    first, second = with_arguments(to="Rome"), with_arguments(to="Lima")
    assert classes(second, first, gold=(first, second)) == []
    wrong = with_arguments(to="Lima", seats=3)
    found = classify([wrong, first], exact_gold([first, second], [TOOL]))
    assert [(f.error_class, f.parameter) for f in found] == [(ErrorClass.PARAMETER_VALUE, "seats")]


def test_types_differ_as_json_types_do() -> None:
    assert value_error(2, [2.0]) is None
    assert value_error(3, [2.5]) is ErrorClass.PARAMETER_VALUE
    assert value_error(2.5, [2]) is ErrorClass.PARAMETER_TYPE
    assert value_error(True, [1]) is ErrorClass.PARAMETER_TYPE
    assert value_error(None, ["x"]) is ErrorClass.PARAMETER_TYPE
    assert value_error(["a"], [["b"]]) is ErrorClass.PARAMETER_VALUE
    assert value_error(["a"], [[1, 2]]) is ErrorClass.PARAMETER_TYPE
    assert value_error({"a": 1}, ["{'a': 1}"]) is ErrorClass.PARAMETER_TYPE


def test_booleans_equal_only_booleans_at_every_depth() -> None:
    assert not equal_values(True, 1)
    assert not equal_values([0], [False])
    assert not equal_values({"a": {"b": 1}}, {"a": {"b": True}})
    assert equal_values({"a": [1, {"b": 2.0}]}, {"a": [1.0, {"b": 2}]})


def test_the_papers_shares_stand_beside_ours() -> None:
    assert PAPER_SHARES == {ErrorClass.PARAMETER_VALUE: 0.51, ErrorClass.PARAMETER_NAME: 0.26}


values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
calls = st.builds(
    ToolCall,
    name=st.sampled_from(["f", "g h", "i.j"]),
    arguments=st.dictionaries(st.text(max_size=3), values, max_size=4),
)


@given(st.lists(calls, max_size=4), st.randoms())
def test_any_order_of_the_gold_calls_is_right(gold: list[ToolCall], random: object) -> None:
    shuffled = list(gold)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert classify(shuffled, exact_gold(gold)) == ()


@given(st.lists(calls, max_size=3), st.lists(calls, max_size=3))
def test_the_diff_is_empty_exactly_where_the_calls_match(answer: list[ToolCall], gold: list[ToolCall]) -> None:
    """The verdict (`compare.exact_match`) and its explanation never disagree."""
    assert (classify(answer, exact_gold(gold)) == ()) == exact_match(answer, gold)
