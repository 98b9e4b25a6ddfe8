"""The official checker behind our own parser: gold answers pass, every planted mistake does not."""

from __future__ import annotations

from collections import Counter

import pytest

from itrain_contract.bfcl import CATEGORIES
from itrain_pipeline.errors import ConfigError
from itrain_pipeline.evals.bfcl import judge, load_items
from itrain_pipeline.evals.bfcl_data import GOLD_DEFECTS, BfclItem, accepts, source_text, standardize
from itrain_pipeline.evals.errors import ErrorClass
from itrain_pipeline.records import ToolCall
from itrain_testing.bfclgold import gold_answer


@pytest.fixture(scope="module")
def items() -> list[BfclItem]:
    return load_items()


def test_all_single_turn_items_are_loaded(items: list[BfclItem]) -> None:
    assert len(items) == 3641
    assert sum(bool(item.possible_answers) for item in items) == 2501
    assert {item.category for item in items} == set(CATEGORIES)


def test_gold_answers_pass_the_official_checker_but_for_seven_known_defects(items: list[BfclItem]) -> None:
    failed = {item.id for item in items if item.possible_answers and not judge(item, gold_answer(item)).correct}
    assert failed == GOLD_DEFECTS
    assert 2501 - len(failed) == 2494


def test_tools_carry_the_language_hint_and_the_checker_sees_them_without_it(items: list[BfclItem]) -> None:
    java = next(item for item in items if item.id == "simple_java_0")
    assert java.tools[0]["description"].endswith("Note that the provided function is in Java 8 SDK syntax.")
    assert java.tools[0]["parameters"]["properties"]["controller"]["type"] == "string"
    assert java.functions[0]["parameters"]["properties"]["controller"]["type"] == "any"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("value", ErrorClass.PARAMETER_VALUE),
        ("type", ErrorClass.PARAMETER_TYPE),
        ("rename", ErrorClass.PARAMETER_NAME),
        ("extra", ErrorClass.EXTRA_PARAMETER),
        ("drop", ErrorClass.MISSING_PARAMETER),
        ("tool", ErrorClass.TOOL_NAME),
        ("twice", ErrorClass.CALL_COUNT),
        ("none", ErrorClass.MISSED_CALL),
    ],
)
def test_a_planted_mistake_is_wrong_and_named(items: list[BfclItem], change: str, expected: ErrorClass) -> None:
    total, named = 0, 0
    for item in items:
        if item.category not in ("simple_python", "multiple", "parallel", "parallel_multiple", "live_simple"):
            continue
        if item.id in GOLD_DEFECTS:
            continue
        mutated = mutate(gold_answer(item), change, required(item))
        if mutated is None:
            continue
        verdict = judge(item, mutated)
        assert not verdict.correct, (item.id, mutated)
        total += 1
        named += verdict.error_class is expected
    assert total > 300
    # A renamed parameter that may be left out cannot be told from an extra one; parallel twins can swap partners.
    assert named / total >= 0.97


def test_irrelevance_wants_no_call_and_relevance_wants_any(items: list[BfclItem]) -> None:
    irrelevant = next(item for item in items if item.category == "live_irrelevance")
    relevant = next(item for item in items if item.category == "live_relevance")
    call = [ToolCall(name="anything", arguments={})]
    assert judge(irrelevant, []).correct
    assert judge(irrelevant, [], well_formed=False).correct
    assert judge(irrelevant, call).error_class is ErrorClass.HALLUCINATED_CALL
    assert judge(relevant, call).correct
    assert judge(relevant, []).error_class is ErrorClass.MISSED_CALL
    assert judge(relevant, [], well_formed=False).error_class is ErrorClass.FORMAT


def test_all_1140_items_without_gold_are_judged_by_whether_there_is_a_call(items: list[BfclItem]) -> None:
    open_items = [item for item in items if not item.possible_answers]
    wants = {"irrelevance": False, "live_irrelevance": False, "live_relevance": True}
    assert Counter(item.category for item in open_items) == {
        "irrelevance": 240, "live_irrelevance": 884, "live_relevance": 16
    }  # fmt: skip
    for item in open_items:
        name = item.functions[0]["name"] if item.functions else "any"
        assert judge(item, [ToolCall(name=name, arguments={})]).correct is wants[item.category]
        assert judge(item, []).correct is not wants[item.category]


def test_an_unreadable_call_is_a_format_error(items: list[BfclItem]) -> None:
    item = next(item for item in items if item.category == "simple_python")
    assert judge(item, [], well_formed=False).error_class is ErrorClass.FORMAT


def test_an_answer_that_breaks_the_checker_is_wrong_not_fatal(items: list[BfclItem]) -> None:
    """The official dict checker calls `.items()` on whatever the model wrote in a list of dictionaries."""
    dict_lists = [item for item in items if has_list_of_dicts(item) and item.category.startswith("live_multiple")]
    assert dict_lists
    for item in dict_lists:
        (answer,) = gold_answer(item)
        for name, value in answer.arguments.items():
            if isinstance(value, list) and value and isinstance(value[0], dict):
                broken = ToolCall(name=answer.name, arguments={**answer.arguments, name: [[1, 2]] * len(value)})
                assert not judge(item, [broken]).correct


def test_one_verdict_does_not_change_the_next(items: list[BfclItem]) -> None:
    """Python items in both orders: the checker keeps no state between answers."""
    sample = [item for item in items if item.category == "parallel_multiple"]
    first = [judge(item, gold_answer(item)).correct for item in sample]
    for item in sample:
        judge(item, [])
    assert [judge(item, gold_answer(item)).correct for item in reversed(sample)] == first[::-1]


def test_a_limit_takes_the_first_items_of_each_category() -> None:
    items = load_items(["simple_python", "live"], limit=3)
    assert [item.id for item in items[:3]] == ["simple_python_0", "simple_python_1", "simple_python_2"]
    assert len(items) == 3 * 7


def test_an_unknown_category_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"no BFCL category 'simple'; allowed: .*simple_python"):
        load_items(["simple"])


def test_values_match_as_in_the_official_comparison() -> None:
    assert standardize("April 1, 2024") == standardize("april 1 2024") == "april12024"
    assert accepts("New York", "new-york")
    assert accepts({"limit": 50}, {"limit": [50, 60], "schema": [""]})
    assert not accepts({"limit": 50, "other": 1}, {"limit": [50]})
    assert not accepts({"limit": 50}, {"limit": [50], "schema": ["public"]})
    assert accepts([5], [5.0])
    assert not accepts([5, 6], [5])


def test_java_values_travel_as_source_text() -> None:
    assert [source_text(value) for value in (True, 5, 1.5, None, ["a"], "x")] == [
        "true", "5", "1.5", "null", '["a"]', "x"
    ]  # fmt: skip


def has_list_of_dicts(item: BfclItem) -> bool:
    return any(
        isinstance(choice, list) and choice and isinstance(choice[0], dict)
        for answer in item.possible_answers
        for parameters in answer.values()
        for choices in parameters.values()
        for choice in choices
    )


def required(item: BfclItem) -> dict[str, list[str]]:
    return {function["name"]: function["parameters"]["required"] for function in item.functions}


def mutate(calls: list[ToolCall], change: str, required: dict[str, list[str]]) -> list[ToolCall] | None:
    """One mistake in the last call; None where the call has nothing to change in that way."""
    head, last = calls[:-1], calls[-1]
    arguments = dict(last.arguments)
    match change:
        case "none":
            return []
        case "twice":
            return [*calls, last]
        case "tool":
            return [*head, ToolCall(name=last.name + "_v2", arguments=arguments)]
        case "extra":
            return [*head, ToolCall(name=last.name, arguments={**arguments, "surplus_key": 7})]
    key = next((k for k in arguments if k in required.get(last.name, [])), None)
    if key is None:
        return None
    value = arguments.pop(key)
    if change == "rename":
        arguments["renamed_key"] = value
    elif change == "type":
        if isinstance(value, str | bool | list | dict):
            return None
        arguments[key] = str(value) + " units"
    elif change == "value":
        if isinstance(value, bool | list | dict):
            return None
        arguments[key] = value + " zz" if isinstance(value, str) else value + 91237
    return [*head, ToolCall(name=last.name, arguments=arguments)]
