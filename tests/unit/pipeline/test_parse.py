"""Reading calls: real data whole, three formats, and nothing that ever runs or raises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itrain_pipeline.records import ToolCall, to_json
from itrain_pipeline.toolcalls.parse import parse

FORMATS = ("pythonic", "hermes", "llama")


def arguments(text: str) -> dict[str, Any]:
    (call,) = parse(text, "pythonic").calls
    return call.arguments


def names(text: str, call_format: str = "pythonic") -> list[str]:
    return [call.name for call in parse(text, call_format).calls]


def test_literals_of_python_and_json_are_read() -> None:
    text = "[f(a='x', b=-2.5e3, c=True, d=false, e=None, g=null, h=[1, (2, 3)], i={'k': {\"m\": 0.5}}, j=.5, k=+7)]"
    assert arguments(text) == {
        "a": "x",
        "b": -2500.0,
        "c": True,
        "d": False,
        "e": None,
        "g": None,
        "h": [1, [2, 3]],
        "i": {"k": {"m": 0.5}},
        "j": 0.5,
        "k": 7,
    }


def test_a_tuple_of_one_is_a_list_and_parentheses_around_a_value_are_none() -> None:
    assert arguments("[f(a=(1,), b=(1), c=())]") == {"a": [1], "b": 1, "c": []}


def test_strings_keep_their_quotes_escapes_and_line_breaks() -> None:
    text = r"""[f(a='it\'s', b="it's \"so\"", c='a\nb\\c\/d', d='\u00e9\x41\U0001F600', e='''x 'y' z''', g='\q')]"""
    assert arguments(text) == {
        "a": "it's",
        "b": 'it\'s "so"',
        "c": "a\nb\\c/d",
        "d": "éA😀",
        "e": "x 'y' z",
        "g": r"\q",
    }
    assert arguments("[f(a='two\nlines')]") == {"a": "two\nlines"}


def test_json_surrogate_pairs_are_one_character_and_half_a_pair_is_an_error() -> None:
    assert arguments(r"[f(a='\ud83d\ude00')]") == {"a": "😀"}
    for text in (r"[f(a='\ud83d')]", "[f(a='\ud83d')]"):
        assert "surrogate" in str(parse(text, "pythonic").error)


@pytest.mark.parametrize(
    "name",
    [
        "Market Trends API",
        "a.b-c",
        "Get Agent's Active Listings",
        "Vehicle Identification Number (VIN) Lookup",
        "Detrended Price Oscillator (DPO)",
        "M4.5+ Earthquakes, Past 7 Days",
        "Q&A Notifications",
        "/email/valistring",
        "Größe",
    ],
)
def test_real_tool_names_are_kept_as_they_are(name: str) -> None:
    assert names(f"[{name}(a=1), {name}(), {name}(b='(x=1)')]") == [name] * 3


def test_parameter_names_that_are_no_identifiers_are_kept() -> None:
    assert list(arguments("[f(from='a', sort-by='b', include-lxx=1, a b='c')]")) == [
        *("from", "sort-by", "include-lxx", "a b")
    ]


@pytest.mark.parametrize(
    "text",
    [
        "Sure, here it is: [f(a=1)]",
        "```python\n[f(a=1)]\n```",
        "```[f(a=1)]```",
        "<think>maybe [g(a=2)]?</think>\n[f(a=1)]",
        "[f(a=1)]<|eot_id|>",
        "[\n  f(\n    a = 1,\n  ),\n]",
        "API-Request: [f(a=1)] as you asked [1].",
        "f(a=1)",
    ],
)
def test_what_stands_around_the_calls_is_left_out(text: str) -> None:
    assert parse(text, "pythonic").calls == (ToolCall(name="f", arguments={"a": 1}),)


def test_several_calls_come_in_order_from_one_list_or_more() -> None:
    assert names("[f(a=1), g(), f(a=2)]") == ["f", "g", "f"]
    assert names("[f(a=1)]\n[g()]") == ["f", "g"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "Which city do you mean?",
        "See [the docs](https://a.b/c?d=e) and [1].",
        "I need a list [of] (all=things).",
        "The price is 5 (five) dollars.",
    ],
)
@pytest.mark.parametrize("call_format", FORMATS)
def test_plain_text_is_text(text: str, call_format: str) -> None:
    result = parse(text, call_format)
    assert (result.is_text, result.calls, result.error) == (True, (), None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[f(1)]", "positional argument '1)]'"),
        ("[f('a', b=1)]", "positional"),
        ("calculate_mean([1, 2])", "positional"),
        ("[f(a=1, a=2)]", "'a' is given twice"),
        ("[f(a=London)]", "'London)]' is not a literal"),
        ("[f(a=1/6)]", "found '/6)]'"),
        ("[f(a=2023-01-01)]", "found '-01-01)]'"),
        ("[f(a=007)]", "found '07)]'"),
        ("[f(a=nan)]", "not a literal"),
        ("[f(a=1e999)]", "out of range"),
        ("[f(a=" + "9" * 5000 + ")]", "5000 characters"),
        ("[f(a=" + "[" * 1000, "nested deeper than 64"),
        ("[f(a='x", "not closed"),
        ("[f(a=1", "found ''"),
        ("[f(a=1)", "']' is missing"),
        ("[f(a=1) and g(b=2)]", "after f(…)"),
        ("[f(a={1: 2, [3]: 4})]", "key"),
        ("<think>[f(a=1)]", "</think>"),
        ('{"name": "f", "arguments": {}}', "expected [name(key=value, …)]"),
    ],
)
def test_an_attempt_that_cannot_be_read_is_an_error_with_its_reason(text: str, reason: str) -> None:
    result = parse(text, "pythonic")
    assert not result.calls
    assert not result.is_text
    assert reason in str(result.error)


def test_unescaped_inner_quotes_belong_to_the_string() -> None:
    """As 41 gold calls of API-Bank have them."""
    text = "[Add(user='1', data='[{'name': 'pressure', 'value': '120/80'}]', who='['John', 'Jane']')]"
    assert arguments(text) == {
        "user": "1",
        "data": "[{'name': 'pressure', 'value': '120/80'}]",
        "who": "['John', 'Jane']",
    }


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>',
        '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": 1}}',
        "Let me see. <tool_call>{'name': 'f', 'parameters': {'a': 1}}</tool_call> Done.",
        '```json\n{"name": "f", "arguments": {"a": 1}}\n```',
    ],
)
def test_hermes_blocks_are_read(text: str) -> None:
    assert parse(text, "hermes").calls == (ToolCall(name="f", arguments={"a": 1}),)


def test_llama_objects_are_read_one_after_another() -> None:
    one, two = '{"name": "f", "parameters": {"a": 1}}', '{"name": "g h", "parameters": {}}'
    for text in (f"{one}; {two}", f"{one}\n{two}", f"<|python_tag|>{one}{two}", f"[{one}, {two}]"):
        assert parse(text, "llama").calls == (ToolCall(name="f", arguments={"a": 1}), ToolCall(name="g h"))


@pytest.mark.parametrize("call_format", ["hermes", "llama"])
@pytest.mark.parametrize(
    "text",
    [
        '{"name": "f", "arguments": [1]}',
        '{"name": 3, "arguments": {}}',
        '{"name": "f", "arguments": {"a": }}',
        "<tool_call>f(a=1)</tool_call>",
        "[f(a=1)]",
    ],
)
def test_broken_json_calls_are_errors(text: str, call_format: str) -> None:
    if call_format == "llama" and text.startswith("<"):
        text = '{"name": "f", "parameters": {"a": 1'
    assert parse(text, call_format).error is not None


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="'xml', allowed are pythonic, hermes, llama"):
        parse("[f()]", "xml")


HOSTILE = (
    "[f(a=__import__('os').system('touch {path}'))]",
    "[f(a=1+__import__('os').system('touch {path}'))]",
    "__import__('os').system('touch {path}')",
    "[f(a=[x for x in open('{path}', 'w')])]",
    "[f(**{{'a': open('{path}', 'w')}})]",
    '[f(a=f\'{{open("{path}", "w")}}\')]',
    "[(lambda: open('{path}', 'w'))()]",
    '<tool_call>{{"name": "f", "arguments": {{"a": open("{path}", "w")}}}}</tool_call>',
    "[open(file='{path}', mode='w')]",
)


@pytest.mark.parametrize("call_format", FORMATS)
@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_is_ever_executed(text: str, call_format: str, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    parse(text.format(path=marker), call_format)
    assert not marker.exists()


PIECES = st.sampled_from(
    [
        *("[", "]", "(", ")", "{", "}", "'", '"', "\\", ",", "=", ":", ";", " ", "\n", "f", "a b", "1", "-", ".5e9"),
        *("f(", "a=", "<tool_call>", "</tool_call>", '{"name":', '"arguments":', "<think>", "```", "\\ud800", "None"),
        *("é", "😀", "\x00", "'''", "__import__('os')", "lambda: 0", "**", "1e999"),
    ]
)


@settings(max_examples=400, deadline=None)
@given(text=st.one_of(st.text(), st.lists(PIECES, max_size=30).map("".join)), call_format=st.sampled_from(FORMATS))
def test_no_text_raises_and_every_result_can_be_written(text: str, call_format: str) -> None:
    result = parse(text, call_format)
    assert sum((bool(result.calls), result.error is not None, result.is_text)) == 1
    for call in result.calls:
        assert call.name
        to_json(call).encode()


def test_long_hostile_texts_are_read_to_the_end() -> None:
    for piece in ("[", "[f(", "f(a='", "[f(a=(", '{"name":', "<tool_call>", "[a(b", "'\\"):
        for call_format in FORMATS:
            assert not parse(piece * 2000, call_format).calls


def test_every_toolace_call_is_read(data_dir: Path) -> None:
    rows = json.loads((data_dir / "toolace-sample.json").read_text(encoding="utf-8"))
    said = [turn["value"] for row in rows for turn in row["conversations"] if turn["from"] == "assistant"]
    calls = [text for text in said if text.startswith("[") and text != "[]"]
    assert (len(said), len(calls)) == (456, 171)
    assert all(parse(text, "pythonic").calls for text in calls)
    assert all(parse(text, "pythonic").is_text for text in said if text not in calls)


def test_every_api_bank_gold_call_is_read(data_dir: Path) -> None:
    for level, count in ((1, 399), (2, 135)):
        rows = json.loads((data_dir / "apibank" / f"level-{level}-api.json").read_text(encoding="utf-8"))
        assert sum(len(parse(row["expected_output"], "pythonic").calls) == 1 for row in rows) == len(rows) == count
