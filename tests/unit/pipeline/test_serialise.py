"""Writing calls: what is written reads back, in every format."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itrain_pipeline.records import ToolCall
from itrain_pipeline.toolcalls.parse import parse
from itrain_pipeline.toolcalls.serialise import serialise

TWO = (
    ToolCall(name="Market Trends API", arguments={"from": "São Paulo's", "sort-by": 3, "deep": {"k": [True, None]}}),
    ToolCall(name="get.all"),
)


def test_the_three_formats_look_as_documented() -> None:
    assert serialise(TWO, "pythonic") == (
        """[Market Trends API(from="São Paulo's", sort-by=3, deep={'k': [True, None]}), get.all()]"""
    )
    assert serialise(TWO, "hermes") == (
        '<tool_call>\n{"name": "Market Trends API", "arguments": {"from": "São Paulo\'s", "sort-by": 3, '
        '"deep": {"k": [true, null]}}}\n</tool_call>\n'
        '<tool_call>\n{"name": "get.all", "arguments": {}}\n</tool_call>'
    )
    assert serialise(TWO, "llama") == (
        '{"name": "Market Trends API", "parameters": {"from": "São Paulo\'s", "sort-by": 3, '
        '"deep": {"k": [true, null]}}}; {"name": "get.all", "parameters": {}}'
    )


def test_plain_strings_stand_in_single_quotes_and_no_calls_are_no_text() -> None:
    assert serialise([ToolCall(name="Name", arguments={"k": "v", "n": 3})], "pythonic") == "[Name(k='v', n=3)]"
    assert [serialise([], call_format) for call_format in ("pythonic", "hermes", "llama")] == ["", "", ""]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"x", object()])
def test_what_is_no_json_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="allowed are JSON values"):
        serialise([ToolCall(name="f", arguments={"a": value})], "pythonic")


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="'xml', allowed are pythonic, hermes, llama"):
        serialise(TWO, "xml")


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=8,
)
WORDS = st.text("aZ_/é&+'.-9", min_size=1, max_size=6)
NAMES = st.lists(WORDS, min_size=1, max_size=4).map(" ".join)
PARAMETERS = st.text("aZ_$é.-9", min_size=1, max_size=6)
CALLS = st.lists(
    st.builds(ToolCall, name=NAMES, arguments=st.dictionaries(PARAMETERS, VALUES, max_size=4)), min_size=1, max_size=3
)


@settings(max_examples=150, deadline=None)
@given(calls=CALLS, call_format=st.sampled_from(("pythonic", "hermes", "llama")))
def test_what_is_written_reads_back(calls: list[ToolCall], call_format: str) -> None:
    read = parse(serialise(calls, call_format), call_format)
    assert read.error is None
    assert [json.dumps([c.name, c.arguments]) for c in read.calls] == [json.dumps([c.name, c.arguments]) for c in calls]
