"""API-Bank by exact match: what is read, what counts as equal, and the stage that asks it."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest

from itrain_contract.apibank import items
from itrain_contract.stages import StageKind
from itrain_contract.stagespec import EvaluateStage
from itrain_pipeline.data.sources import read_rows
from itrain_pipeline.errors import ConfigError, DataError
from itrain_pipeline.evals.apibank import normalised, open_apibank, read_item
from itrain_pipeline.evals.benchmark import Answer, Item, Judgement, Opening
from itrain_pipeline.evals.errors import ErrorClass
from itrain_pipeline.ports import Ports, SourceAccess, Store
from itrain_pipeline.records import Message, Prediction, ToolCall, read_jsonl
from itrain_pipeline.stages.evaluate import open_benchmarks, run
from itrain_pipeline.toolcalls.parse import parse
from itrain_testing.evaluation import ScriptedEngine, prepared
from itrain_testing.stageports import folder_ports, stage_input, stage_result

GOLD = "[BookRoom(hotel='Old Inn', nights='3', guests='['Ann', 'Bo']')]"


def row(output: str = GOLD, at: int = 0, **changes: Any) -> dict[str, Any]:
    tools = [
        {
            "name": name,
            "description": "Does it.",
            "input_parameters": {key: {"type": "str", "description": key} for key in keys},
            "output_parameters": {},
        }
        for name, keys in (("BookRoom", ("hotel", "nights", "guests")), ("ToolSearcher", ("keywords",)))
    ]
    described = "\n".join(map(json.dumps, tools))
    return {
        "file": "Room-level-2-1.jsonl",
        "id": at,
        "instruction": f"\nGenerate a request.\nThe current year is 2023.\n\nAPI descriptions:\n{described}",
        "input": "User: A room, please.\nAI: Which hotel?\nUser: The Old Inn.\nGenerate API Request:\n",
        "expected_output": f"API-Request: {output}",
        **changes,
    }


def write_levels(folder: Path) -> Path:
    search = row("[ToolSearcher(keywords='room')]", 1)
    (folder / "level-1-api.json").write_text(json.dumps([row(), row(at=1)]))
    (folder / "level-2-api.json").write_text(json.dumps([row(), search, row(at=2)]))
    return folder


def opened(uri: Path | str, limit: int = 0) -> list[Item]:
    def rows(name: str) -> list[object]:
        return list(read_rows(name, "messages", store=cast("Store", None), scratch=Path()))

    return list(open_apibank(Opening(uri=str(uri), limit=limit, read=rows)).items())


def judged(item: Item, text: str) -> Judgement:
    bank = open_apibank(Opening(uri="/x/level-1-api.json", read=lambda _uri: [row()]))
    return bank.judge(item, Answer(text=text, parsed=parse(text, "pythonic")))


def test_a_row_becomes_a_dialogue_with_tools_and_one_gold_call() -> None:
    item = read_item(row(), 1, "here")
    assert item.messages == (
        Message(role="system", content="The current year is 2023."),
        Message(role="user", content=row()["input"].strip()),
    )
    assert [tool["name"] for tool in item.tools] == ["BookRoom", "ToolSearcher"]
    assert item.tools[0]["parameters"]["properties"]["nights"] == {"type": "str", "description": "nights"}
    assert item.gold.arguments == {"hotel": "Old Inn", "nights": "3", "guests": "['Ann', 'Bo']"}
    assert item.id == "1-Room-level-2-1.jsonl-0"


def test_levels_and_the_tool_search_are_categories_and_the_limit_holds_for_each(tmp_path: Path) -> None:
    items = opened(write_levels(tmp_path))
    assert [item.category for item in items] == ["level_1"] * 2 + ["level_2_call"] * 2 + ["level_2_search"]
    assert [item.category for item in opened(tmp_path, 1)] == ["level_1", "level_2_call", "level_2_search"]
    assert {item.category for item in opened(tmp_path / "level-1-api.json")} == {"level_1"}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (GOLD, None),
        (f"API-Request: {GOLD}", None),
        ("[BookRoom(guests=['Ann', 'Bo'], nights=3, hotel='Old  Inn ')]", None),
        ("[BookRoom(hotel='old inn', nights='3', guests=['Ann', 'Bo'])]", ErrorClass.PARAMETER_VALUE),
        ("[BookRoom(hotel='Old Inn', nights='4', guests=['Ann', 'Bo'])]", ErrorClass.PARAMETER_VALUE),
        ("[BookRoom(hotel='Old Inn', nights='3', guests=['Bo', 'Ann'])]", ErrorClass.PARAMETER_VALUE),
        ("[BookRoom(hotel='Old Inn', guests=['Ann', 'Bo'])]", ErrorClass.MISSING_PARAMETER),
        ("[BookRoom(hotel='Old Inn', stay='3', guests=['Ann', 'Bo'])]", ErrorClass.PARAMETER_NAME),
        ("[Book(hotel='Old Inn', nights='3', guests=['Ann', 'Bo'])]", ErrorClass.TOOL_NAME),
        (f"[{GOLD[1:-1]}, {GOLD[1:-1]}]", ErrorClass.CALL_COUNT),
        ("Which dates?", ErrorClass.MISSED_CALL),
        ("[BookRoom(hotel='Old Inn', nights=", ErrorClass.FORMAT),
    ],
)
def test_an_answer_is_right_with_exactly_the_gold_call(text: str, error: ErrorClass | None) -> None:
    verdict = judged(read_item(row(), 1, "here"), text)
    assert (verdict.correct, verdict.error_class) == (error is None, error)


def test_values_are_compared_as_what_they_are_written_as() -> None:
    written = ToolCall(name=" f ", arguments={"a": "[1, {'k': True}]", "b": 2, "c": "[not a list", "d": " x \n y "})
    assert normalised(written) == ToolCall(
        name="f", arguments={"a": ["1", {"k": "True"}], "b": "2", "c": "[not a list", "d": "x y"}
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"input": None}, "file row 1: input is no text"),
        ({"instruction": "No tools."}, "file row 1: the instruction holds no API descriptions"),
        ({"instruction": "API descriptions:\n{broken"}, "file row 1: an API description cannot be read"),
        ({"instruction": 'API descriptions:\n{"name": "f"}'}, "file row 1: an API description cannot be read"),
        ({"expected_output": "API-Request: none"}, "file row 1: expected_output is 'API-Request: none', expected one"),
        ({"expected_output": "API-Request: [f(), g()]"}, "expected one call"),
    ],
)
def test_a_row_of_another_shape_is_refused_by_name(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read_item(row(**changes), 1, "file row 1")


def test_a_file_of_another_name_has_no_level(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"names 'level-3-api.json': allowed are a folder with level-1-api.json and"):
        opened("/data/level-3-api.json")
    with pytest.raises(DataError, match=r"level-1-api\.json: there is no such file"):
        opened(tmp_path)


def test_every_gold_answer_is_right(data_dir: Path) -> None:
    """399 and 135 of them; 31 and 10 have quotes in quotes."""
    bank = open_apibank(
        Opening(
            uri=str(data_dir / "apibank"),
            read=lambda uri: list(read_rows(uri, "messages", store=cast("Store", None), scratch=Path())),
        )
    )
    texts = {
        f"{level}-{row['file']}-{row['id']}": row["expected_output"]
        for level in (1, 2)
        for row in json.loads((data_dir / "apibank" / f"level-{level}-api.json").read_text(encoding="utf-8"))
    }
    right = Counter(
        item.category
        for item in bank.items()
        if bank.judge(item, Answer(text=texts[item.id], parsed=parse(texts[item.id], "pythonic"))).correct
    )
    assert right == items("the/folder") == {"level_1": 399, "level_2_call": 90, "level_2_search": 45}
    wrong = [
        item
        for item, other in zip(bank.items()[:399], bank.items()[1:400], strict=True)
        if item.gold != other.gold
        and bank.judge(item, Answer(text=texts[other.id], parsed=parse(texts[other.id], "pythonic"))).correct
    ]
    assert wrong == []


def test_the_stage_asks_api_bank_from_a_folder(tmp_path: Path) -> None:
    """The scripted answer is one row's gold: right for three of five, and level 2 is told with and without search."""
    prepare, renderer = prepared(tmp_path)
    engine = ScriptedEngine(lambda _name, _ids: renderer.answer_ids(GOLD))
    engine.max_model_len = 4096
    block = {"benchmarks": ["apibank"], "apiBank": {"uri": str(write_levels(tmp_path))}}
    made = run(
        stage_input(StageKind.EVALUATE, stages={"evaluate": block}),
        folder_ports(tmp_path, [prepare]),
        engine_opener=lambda *_args, **_options: engine,
    )
    rows = list(read_jsonl(made.outputs["predictions-base.jsonl"], Prediction))
    assert [(r.category, r.correct, r.error_class) for r in rows] == [
        ("level_1", True, None),
        ("level_1", True, None),
        ("level_2_call", True, None),
        ("level_2_call", True, None),
        ("level_2_search", False, "tool_name"),
    ]
    assert made.metrics["apibank/level_1/accuracy"] == 1.0
    assert made.metrics["apibank/level_2/accuracy"] == pytest.approx(2 / 3, abs=1e-6)
    assert made.metrics["apibank/level_2/n"] == 3
    assert made.metrics["apibank/level_2_call/accuracy"] == 1.0
    assert made.counters["errors_apibank_tool_name"] == 1
    assert len(made.info["apibank_rows_sha256"]) == 64
    assert made.info["overlap_apibank"].startswith("0 of 1 questions and 0 of 2 tool signatures")


class OneFolderStore:
    """Objects below `s3://bank/`, which lie in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get_file(self, uri: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((self._folder / uri.removeprefix("s3://bank/")).read_bytes())


def test_a_store_is_read_with_the_benchmarks_own_secret(tmp_path: Path) -> None:
    store = cast("Store", OneFolderStore(write_levels(tmp_path)))
    named: list[str] = []

    def open_source(secret: str) -> SourceAccess:
        named.append(secret)
        return SourceAccess(store=store)

    ports: Ports = dataclasses.replace(folder_ports(tmp_path, ()), open_source=open_source)
    block = {"benchmarks": ["apibank", "apibank"], "apiBank": {"uri": "s3://bank/", "secretRef": {"name": "bank"}}}
    stage = stage_input(StageKind.EVALUATE, stages={"evaluate": block}).spec["stage"]
    (bank,) = open_benchmarks(EvaluateStage.model_validate(stage), stage_result(StageKind.PREPARE), ports)
    assert len(bank.items()) == 5
    assert named == ["bank"]
