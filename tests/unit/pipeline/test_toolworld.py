"""Toolworld: seeded, split by tool and by value, answerable from the prompt alone."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from itrain_contract.stagespec import Curriculum
from itrain_pipeline.data import toolworld_words as words
from itrain_pipeline.data.examples import Conversion, convert
from itrain_pipeline.data.toolworld import Task, generate, generate_tasks
from itrain_pipeline.data.toolworld_rare import RARE_CONCEPTS
from itrain_pipeline.errors import ConfigError
from itrain_pipeline.records import Message, ToolCall

SPLITS = ("train", "dev", "test")
ROWS = 400


def tasks(split: Any, **options: Any) -> list[Task]:
    return list(generate_tasks(split, options.pop("rows", ROWS), 7, **options))


def calls(split: Any) -> Iterator[tuple[Task, ToolCall]]:
    for task in tasks(split):
        for turn in task.turns:
            for call in turn.calls:
                yield task, call


def plain(tool_name: str) -> str:
    return re.sub("[^a-z]", "", tool_name.lower())


def open_values(split: Any) -> set[str]:
    """Values that a question spells out, of the kinds that have many: names, codes, dates."""
    found: set[str] = set()
    for _, call in calls(split):
        for value in call.arguments.values():
            texts = value if isinstance(value, list) else [value]
            found.update(word for text in texts if isinstance(text, str) for word in text.split())
    return {text for text in found if re.fullmatch(r"[A-Z][a-z]+|[A-Z]{2}\d+|\d{4}-\d\d-\d\d", text)}


def test_the_same_seed_gives_the_same_rows_and_another_seed_others() -> None:
    assert list(generate("train", 50, 3)) == list(generate("train", 50, 3))
    assert list(generate("train", 50, 3)) != list(generate("train", 50, 4))


def test_a_slice_is_made_without_the_rows_before_it() -> None:
    assert list(generate("dev", 12, 3))[5:] == list(generate("dev", 7, 3, offset=5))


def test_no_tool_of_one_split_appears_in_another() -> None:
    names = [{plain(tool["name"]) for task in tasks(split) for tool in task.tools} for split in SPLITS]
    assert all(len(one) > 20 for one in names)
    assert names[0] & names[1] == names[0] & names[2] == names[1] & names[2] == set()


def test_no_name_code_or_date_of_one_split_is_asked_for_in_another() -> None:
    values = [open_values(split) for split in SPLITS]
    assert all(len(one) > 100 for one in values)
    assert values[0] & values[1] == values[0] & values[2] == values[1] & values[2] == set()


def test_rows_fall_into_the_curriculums_buckets() -> None:
    allowed = {"easy": range(1, 2), "medium": range(2, 4), "hard": range(4, 9)}
    for task in tasks("train"):
        assert len(task.tools) in allowed[task.bucket]
        assert len(task.turns[0].calls) <= (1 if task.bucket == "easy" else 2)
    share = Counter(task.bucket for task in tasks("train"))
    assert min(share.values()) > ROWS * 0.15


def test_every_call_fits_its_schema_in_the_schemas_order() -> None:
    python_types: dict[str, Any] = {"string": str, "integer": int, "number": float, "boolean": bool, "array": list}
    for task, call in calls("train"):
        (tool,) = [tool for tool in task.tools if tool["name"] == call.name]
        properties = tool["parameters"]["properties"]
        assert list(call.arguments) == [name for name in properties if name in call.arguments]
        assert set(tool["parameters"]["required"]) <= set(call.arguments)
        for name, value in call.arguments.items():
            assert type(value) is python_types[properties[name]["type"]]
            assert value in properties[name].get("enum", [value])


def test_every_open_value_is_spelled_out_in_the_question() -> None:
    seen = 0
    for task in tasks("dev"):
        for call in task.turns[0].calls:
            properties = next(t for t in task.tools if t["name"] == call.name)["parameters"]["properties"]
            for name, value in call.arguments.items():
                if "enum" in properties[name] or isinstance(value, bool):
                    continue
                for text in value if isinstance(value, list) else [value]:
                    assert str(text) in task.turns[0].query
                    seen += 1
    assert seen > ROWS / 2


def test_the_action_and_the_thing_asked_for_belong_to_one_tool_of_the_row() -> None:
    for task in tasks("train"):
        names = [plain(tool["name"]) for tool in task.tools]
        assert len(set(names)) == len(names)
        for call in task.turns[0].calls:
            action, thing = next((a, t) for a in words.ACTIONS for t in words.THINGS if a + t == plain(call.name))
            assert any(f"{verb} a {thing}" in task.turns[0].query.lower() for verb in words.ACTIONS[action])


def test_about_one_row_in_ten_has_no_call_and_says_why() -> None:
    silent = [task for task in tasks("train") if not task.turns[0].calls]
    assert 0.05 < len(silent) / ROWS < 0.15
    kinds = Counter()
    for task in silent:
        if task.turns[0].answer == words.NO_FIT:
            kinds["no fit"] += 1
            continue
        missing = re.fullmatch(r"Please tell me the (\w+)\.", task.turns[0].answer)
        assert missing is not None
        assert any(missing[1] in tool["parameters"]["required"] for tool in task.tools)
        kinds["ask back"] += 1
    assert min(kinds["no fit"], kinds["ask back"]) > 5


def test_no_phrase_or_parameter_name_stands_for_two_concepts() -> None:
    every = (*words.CONCEPTS, *RARE_CONCEPTS)
    phrases = Counter(text for c in every for text in (*c.phrases, *(phrase for phrase, _ in c.choices)))
    names = Counter(name for c in every for name in c.names)
    assert max(phrases.values()) == max(names.values()) == 1


def rare_values(task: Task) -> list[tuple[str, str]]:
    """(phrase, value) of each rare argument of the first turn's calls, found by the schema's name."""
    concepts = {name: concept for concept in RARE_CONCEPTS for name in concept.names}
    return [
        (next(phrase for phrase, said in concepts[name].choices if said == value), value)
        for call in task.turns[0].calls
        for name, value in call.arguments.items()
        if name in concepts
    ]


def test_rare_rows_ask_for_what_no_other_row_has_by_a_phrase_that_does_not_spell_the_value() -> None:
    assert not any(rare_values(task) or task.rare for task in tasks("train"))
    for split in SPLITS:
        found = tasks(split, rare=100)
        assert all(task.rare for task in found)
        for task in found:
            values = rare_values(task)
            assert bool(values) == bool(task.turns[0].calls)
            for phrase, value in values:
                assert phrase.lower() in task.turns[0].query.lower()
                assert value not in phrase
        assert {value for task in found for value in rare_values(task)} == {
            pair for concept in RARE_CONCEPTS for pair in concept.choices
        }


def test_a_share_of_rare_rows_can_be_asked_for_and_nothing_changes_without() -> None:
    assert 0.06 < sum(task.rare for task in tasks("train", rare=10)) / ROWS < 0.15
    assert list(generate("dev", 40, 3, rare=0)) == list(generate("dev", 40, 3))


def test_rows_have_toolaces_raw_shape() -> None:
    for row, task in zip(generate("train", 30, 7), tasks("train", rows=30), strict=True):
        assert list(row) == ["system", "conversations"]
        tools, _ = json.JSONDecoder().raw_decode(row["system"], row["system"].index("invoke:\n[") + 8)
        assert tuple(tools) == task.tools
        assert row["conversations"] == [
            {"from": "user", "value": task.turns[0].query},
            {"from": "assistant", "value": task.turns[0].answer},
        ]


def test_the_toolace_reader_finds_the_tools_answers_and_buckets_of_every_task() -> None:
    made = convert(
        generate("dev", 120, 7),
        Conversion(
            source="toolworld",
            prefix="t",
            data_format="toolace",
            call_format="pythonic",
            turns="all",
            curriculum=Curriculum(),
        ),
    )
    assert made.rejected == ()
    for example, task in zip(made.examples, tasks("dev", rows=120), strict=True):
        assert example.tools == task.tools
        assert example.messages == (Message(role="user", content=task.turns[0].query),)
        assert (example.answer, example.calls) == (task.turns[0].answer, task.turns[0].calls)
        assert example.bucket == task.bucket


def test_answers_are_what_the_parser_reads() -> None:
    from itrain_pipeline.toolcalls.parse import parse

    for task in tasks("test"):
        assert parse(task.turns[0].answer, "pythonic").calls == task.turns[0].calls


@pytest.mark.parametrize("distractors", [0, 3, 20])
def test_distractors_stand_beside_the_tools_that_the_answer_needs(distractors: int) -> None:
    for task in tasks("dev", rows=40, distractors=distractors):
        used = {call.name for call in task.turns[0].calls}
        assert len(task.tools) - distractors in ({len(used)} if used else {1, 2})


@pytest.mark.parametrize("tokens", [200, 800, 2_000])
def test_a_prompt_length_can_be_asked_for(tokens: int) -> None:
    from transformers import AutoTokenizer

    from itrain_pipeline.data.rendering import Renderer
    from itrain_pipeline.quickstart import model_path

    renderer = Renderer(AutoTokenizer.from_pretrained(model_path()))
    lengths = sorted(
        len(renderer.prompt_ids((Message(role="user", content=task.turns[0].query),), task.tools))
        for task in tasks("test", rows=41, prompt_tokens=tokens, distractors=0)
    )
    assert tokens * 0.8 < lengths[20] < tokens * 1.2


@pytest.mark.parametrize(
    ("split", "options", "message"),
    [
        ("validation", {}, "got 'validation', allowed are train, dev, test"),
        ("train", {"rows": -1}, "rows: got -1"),
        ("train", {"offset": -2}, "offset: got -2"),
        ("train", {"distractors": -1}, "distractors: got -1"),
        ("train", {"prompt_tokens": 0}, "prompt_tokens: got 0"),
        ("train", {"rare": 101}, "rare: got 101"),
    ],
)
def test_an_impossible_request_is_refused_by_name(split: Any, options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tasks(split, **options)
