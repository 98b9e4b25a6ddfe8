"""Rows in four formats to examples, and the reason for every row that is none."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from itrain_contract.stagespec import Curriculum
from itrain_pipeline.data.examples import Conversion, Converted, convert, drop_duplicates, render
from itrain_pipeline.errors import DataError
from itrain_pipeline.evals import bfcl
from itrain_pipeline.evals.bfcl_data import GOLD_DEFECTS
from itrain_pipeline.records import Message, ToolCall

WEATHER = {
    "name": "Get Weather",
    "description": "Weather of a city",
    "parameters": {"type": "dict", "properties": {"city": {"type": "string"}, "days": {"type": "int"}}},
    "required": None,
}
CALL = (ToolCall(name="Get Weather", arguments={"city": "Rome"}),)


def run(rows: list[Any], data_format: str, **changes: Any) -> Converted:
    settings: dict[str, Any] = {"source": "src", "prefix": "train", "call_format": "pythonic", "turns": "all"}
    return convert(rows, Conversion(data_format=data_format, curriculum=Curriculum(), **{**settings, **changes}))


def toolace(*turns: tuple[str, str], tools: Any = None, **more: Any) -> dict[str, Any]:
    text = json.dumps([WEATHER] if tools is None else tools)
    return {
        "system": f"You are an expert [really].\n{text}. \nPut it in the format of [func1(params_name=params_value)]",
        "conversations": [{"from": role, "value": value} for role, value in turns],
        **more,
    }


ROW = toolace(
    ("user", "Weather in Rome?"),
    ("assistant", '[Get Weather(city="Rome")]'),
    ("tool", '[{"name": "Get Weather", "results": 21}]'),
    ("assistant", " It is 21 degrees. "),
)


def test_every_assistant_turn_is_an_example_with_its_history() -> None:
    first, second = run([ROW], "toolace").examples
    assert (first.id, first.source, first.bucket) == ("train-000000-1", "src", "easy")
    assert first.messages == (Message(role="user", content="Weather in Rome?"),)
    assert (first.tools, first.calls, first.answer) == ((WEATHER,), CALL, "[Get Weather(city='Rome')]")
    assert second.id == "train-000000-3"
    assert [(m.role, m.content) for m in second.messages[1:]] == [
        ("assistant", "[Get Weather(city='Rome')]"),
        ("tool", '[{"name": "Get Weather", "results": 21}]'),
    ]
    assert (second.calls, second.answer) == ((), "It is 21 degrees.")


def test_only_the_last_turn_on_request() -> None:
    (only,) = run([ROW], "toolace", turns="last").examples
    assert only.answer == "It is 21 degrees."


@pytest.mark.parametrize(
    ("call_format", "answer"),
    [
        ("hermes", '<tool_call>\n{"name": "Get Weather", "arguments": {"city": "Rome"}}\n</tool_call>'),
        ("llama", '{"name": "Get Weather", "parameters": {"city": "Rome"}}'),
    ],
)
def test_answers_and_history_are_written_in_the_runs_call_format(call_format: str, answer: str) -> None:
    first, second = run([ROW], "toolace", call_format=call_format).examples
    assert first.answer == second.messages[1].content == answer


def test_four_formats_of_one_task_give_one_example() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "str"}, "days": {"type": "int, optional"}}}
    tool = {"name": "get_weather", "description": "d", "parameters": {**schema, "required": ["city"]}}
    flat = {**tool, "parameters": schema["properties"]}
    question, call = {"role": "user", "content": "Rome?"}, {"name": "get_weather", "arguments": {"city": "Rome"}}
    rows: dict[str, Any] = {
        "toolace": toolace(("user", "Rome?"), ("assistant", "[get_weather(city='Rome')]"), tools=[tool]),
        "xlam": {"id": 3, "query": "Rome?", "tools": json.dumps([flat]), "answers": json.dumps([call])},
        "bfcl": {"id": "x", "question": [[question]], "function": [tool], "ground_truth": ["get_weather(city='Rome')"]},
        "messages": {
            "messages": [
                question,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"type": "function", "function": {**call, "arguments": '{"city": "Rome"}'}}],
                },
            ],
            "tools": [{"type": "function", "function": tool}],
        },
    }
    made = [run([row], data_format).examples for data_format, row in rows.items()]
    assert all(len(examples) == 1 for examples in made)
    assert len({(json.dumps(e.tools), e.messages, e.answer) for (e,) in made}) == 1


def test_scored_bfcl_gold_takes_the_first_allowed_value_and_leaves_optional_ones_out() -> None:
    function = {
        "name": "f",
        "parameters": {
            "properties": {"a": {}, "b": {}, "c": {}, "d": {}, "e": {}},
            "required": ["a", "d"],
        },
    }
    allowed = {"a": [1, 2], "b": ["", "x"], "c": ["y", ""], "d": [""], "e": [{"k": ["v", "w"], "l": [""]}], "z": [5]}
    row = {
        "id": "simple_0",
        "question": [[{"role": "user", "content": "?"}]],
        "function": [function],
        "ground_truth": [{"f": allowed}],
    }
    (example,) = run([row], "bfcl").examples
    assert example.calls == (ToolCall(name="f", arguments={"a": 1, "c": "y", "d": "", "e": {"k": "v"}}),)
    assert example.id == "train-simple_0-1"


def test_a_messages_row_keeps_its_own_system_text_and_text_parts() -> None:
    row = {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": " you"}]},
            {"role": "assistant", "content": "Hello."},
        ]
    }
    (example,) = run([row], "messages").examples
    assert example.messages == (Message(role="system", content="Be brief."), Message(role="user", content="Hi you"))
    assert (example.tools, example.answer) == ((), "Hello.")


REJECTED: list[tuple[str, Any, str]] = [
    ("toolace", [1], "not_an_object"),
    ("toolace", {"system": "x"}, "missing_field"),
    ("toolace", {**ROW, "system": "no tools"}, "bad_tools"),
    ("toolace", {**ROW, "system": '[{"description": "no name"}]'}, "bad_tools"),
    ("toolace", {**ROW, "system": '[{"name": "f", "x": NaN}]'}, "bad_value"),
    ("toolace", {**ROW, "x": "\ud800"}, "bad_value"),
    ("toolace", toolace(("user", "?"), ("robot", "x")), "bad_role"),
    ("toolace", toolace(("user", "?"), ("assistant", "[Get Weather(Rome)]")), "bad_call"),
    ("toolace", toolace(("user", "?"), ("assistant", "[get weather(city='Rome')]")), "unknown_tool"),
    ("toolace", toolace(("user", "?"), ("assistant", " ")), "empty_answer"),
    ("toolace", toolace(("user", "?"), ("assistant", "[]")), "empty_answer"),
    ("toolace", toolace(("assistant", "Hi")), "no_question"),
    ("toolace", toolace(("user", "?")), "no_target"),
    ("xlam", {"query": "?", "tools": "[{", "answers": "[]"}, "bad_tools"),
    ("xlam", {"query": "?", "tools": "[]", "answers": "[]"}, "empty_answer"),
    ("xlam", {"query": "?", "tools": [WEATHER], "answers": [{"name": "Get Weather", "arguments": 3}]}, "bad_call"),
    ("xlam", {"tools": [], "answers": []}, "missing_field"),
    ("bfcl", {"question": [[], []], "function": []}, "multi_turn"),
    ("bfcl", {"question": [[{"role": "user", "content": "?"}]], "function": [WEATHER]}, "no_answer"),
    (
        "bfcl",
        {"question": [[{"role": "user", "content": "?"}]], "function": [WEATHER], "ground_truth": ["f(p=1/6)"]},
        "bad_call",
    ),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "bad_turn"),
    ("messages", {"messages": [{"role": "user", "content": "?"}, {"role": "system", "content": "x"}]}, "bad_role"),
]


@pytest.mark.parametrize(("data_format", "row", "reason"), REJECTED)
def test_a_row_of_no_use_is_rejected_with_its_reason(data_format: str, row: Any, reason: str) -> None:
    good = run([row, ROW] if data_format == "toolace" else [row], data_format)
    (rejected,) = good.rejected
    assert (rejected.source, rejected.row, rejected.reason) == ("src", 0, reason)
    assert rejected.detail
    assert len(good.examples) == (2 if data_format == "toolace" else 0)


def test_a_bad_turn_ends_its_dialogue_and_earlier_turns_stay() -> None:
    row = toolace(
        *(("user", "a?"), ("assistant", "Yes.")),
        *(("user", "b?"), ("assistant", "[Get Weather(]")),
        *(("user", "c?"), ("assistant", "No.")),
    )
    made = run([row], "toolace")
    assert [example.answer for example in made.examples] == ["Yes."]
    assert made.rejected[0].detail.startswith("turn 3: ")
    assert run([row], "toolace", turns="last").examples == ()


def test_a_repeated_row_id_is_rejected_and_odd_ids_give_way_to_the_row_number() -> None:
    rows = [{**ROW, "id": row_id} for row_id in ("a-1", "a-1", "../x", 7, "y" * 65)]
    made = run(rows, "toolace")
    assert [e.id for e in made.examples if e.id.endswith("-1")] == [
        *("train-a-1-1", "train-000002-1", "train-7-1", "train-000004-1")
    ]
    assert [(r.row, r.reason) for r in made.rejected] == [(1, "duplicate_id")]
    assert made.rows == {"train-a-1": 0, "train-000002": 2, "train-7": 3, "train-000004": 4}


def test_equal_examples_are_kept_once_whatever_their_ids() -> None:
    made = run([ROW, {**ROW, "id": "other"}, toolace(("user", "?"), ("assistant", "Yes."))], "toolace")
    kept, dropped = drop_duplicates(made.examples)
    assert ([e.id for e in kept], dropped) == (["train-000000-1", "train-000000-3", "train-000002-1"], 2)


class WordRenderer:
    """One token a word."""

    def prompt_ids(self, messages: Any, tools: Any) -> tuple[int, ...]:
        if "<|end|>" in messages[-1].content:
            raise DataError("a control token")
        return tuple(range(sum(len(m.content.split()) for m in messages)))

    def answer_ids(self, text: str) -> tuple[int, ...]:
        return (*range(len(text.split())), 9)


def test_what_is_too_long_or_cannot_be_rendered_is_rejected_with_its_row() -> None:
    rows = [
        toolace(("user", f"{'w ' * n}{end}"), ("assistant", "Yes.")) for n, end in ((3, "?"), (4, "?"), (1, "<|end|>"))
    ]
    made = run(rows, "toolace")
    kept, rejected = render(made.examples, WordRenderer(), 6, made.rows)
    assert [(e.id, e.prompt_ids, e.answer_ids) for e in kept] == [("train-000000-1", (0, 1, 2, 3), (0, 9))]
    assert [(r.row, r.reason) for r in rejected] == [(1, "too_long"), (2, "not_renderable")]
    assert rejected[0].detail == "train-000001-1: 5 + 2 tokens of prompt and answer, allowed are 6"


def test_the_toolace_sample_converts_whole_but_for_three_empty_answers(data_dir: Path) -> None:
    rows = json.loads((data_dir / "toolace-sample.json").read_text(encoding="utf-8"))
    for call_format in ("pythonic", "hermes", "llama"):
        made = run(rows, "toolace", call_format=call_format)
        assert Counter(r.reason for r in made.rejected) == {"empty_answer": 3}
        assert sum(example.has_call for example in made.examples) >= 165
        assert {e.bucket for e in made.examples} == {"medium", "hard"}


def test_scored_bfcl_gold_converts_to_what_the_official_checker_accepts() -> None:
    """But for the four Python items whose own gold it refuses."""
    items = [item for item in bfcl.load_items() if item.possible_answers and "java" not in item.category]
    rows = [
        {
            "id": item.id,
            "question": [[{"role": m.role, "content": m.content} for m in item.messages]],
            "function": list(item.functions),
            "ground_truth": list(item.possible_answers),
        }
        for item in items
    ]
    made = run(rows, "bfcl")
    assert (len(made.examples), len(made.rejected)) == (len(items), 0) == (2351, 0)
    pairs = zip(items, made.examples, strict=True)
    wrong = {item.id for item, example in pairs if not bfcl.judge(item, example.calls).correct}
    assert wrong == {item for item in GOLD_DEFECTS if "java" not in item}
