"""Evaluation asks everything once, counts everything, and survives a restart."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import random
from pathlib import Path
from typing import Any

import pytest

from itrain_contract.bfcl import CATEGORIES, MULTI_TURN
from itrain_contract.names import TERMINATION_MESSAGE_LIMIT_BYTES
from itrain_contract.stageio import StageResult, TerminationSummary
from itrain_contract.stages import StageKind
from itrain_pipeline.data.rendering import Renderer
from itrain_pipeline.errors import ConfigError, DataError, Interrupted
from itrain_pipeline.evals.bfcl import Bfcl, load_items
from itrain_pipeline.evals.contamination import overlap
from itrain_pipeline.evals.devset import DevSet, judge_dev
from itrain_pipeline.evals.errors import ErrorClass
from itrain_pipeline.evals.questions import Question, build_questions, predict
from itrain_pipeline.learn.hardware import compute_record
from itrain_pipeline.learn.precision import detect_device
from itrain_pipeline.ports import SamplingParams
from itrain_pipeline.records import Example, Message, Prediction, ToolCall, read_jsonl, write_jsonl
from itrain_pipeline.stages.evaluate import (
    BATCH,
    Asker,
    Point,
    ask_points,
    build_output,
    check_names,
    check_unique,
    plan_points,
    run,
)
from itrain_pipeline.stages.rendered import check_template, stop_token_ids
from itrain_pipeline.toolcalls.parse import ParseResult, parse
from itrain_testing.evaluation import RIGHT, ScriptedEngine, example, prepared
from itrain_testing.reports import predictions
from itrain_testing.stageports import (
    FolderUpstream,
    FolderWork,
    Silent,
    folder_ports,
    stage_input,
    stage_result,
)
from itrain_testing.tiny_model import END, build_tokenizer


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(build_tokenizer(), "pythonic")


def dev_questions(rows: list[Example], renderer: Renderer) -> list[Question]:
    dev = DevSet(examples=rows)
    return build_questions(dev, dev.items(), renderer)


def asker(engine: ScriptedEngine, renderer: Renderer) -> Asker:
    return Asker(
        engine=engine,
        renderer=renderer,
        read=functools.partial(parse, call_format="pythonic"),
        max_new_tokens=64,
        stop_ids=(END,),
    )


def ask(
    tmp_path: Path, renderer: Renderer, engine: ScriptedEngine, rows: int = 4, **ports: Any
) -> dict[str, list[Prediction]]:
    questions = dev_questions([example(i, renderer, call=i % 4 != 3) for i in range(rows)], renderer)
    points = [Point(name="base", adapter=None), Point(name="warmup", adapter=tmp_path)]
    return asyncio.run(ask_points(asker(engine, renderer), points, questions, folder_ports(tmp_path, (), **ports)))


def test_each_point_answers_every_question_with_its_own_adapter(tmp_path: Path, renderer: Renderer) -> None:
    right, talk = renderer.answer_ids(RIGHT), renderer.answer_ids("Which city?")
    engine = ScriptedEngine(lambda name, _ids: right if name == "warmup" else talk)
    found = ask(tmp_path, renderer, engine)
    assert [p.correct for p in found["base"]] == [False, False, False, True]
    assert [p.correct for p in found["warmup"]] == [True, True, True, False]
    assert [p.error_class for p in found["base"]] == ["missed_call"] * 3 + [None]
    assert found["warmup"][3].error_class == "hallucinated_call"
    assert found["warmup"][0].output == RIGHT
    assert engine.loaded == [("base", None), ("warmup", tmp_path)]
    assert engine.closed


def test_every_request_is_greedy_and_stops_at_the_end_of_the_turn(tmp_path: Path, renderer: Renderer) -> None:
    engine = ScriptedEngine(lambda _name, _ids: renderer.answer_ids(RIGHT))
    ask(tmp_path, renderer, engine)
    assert set(engine.asked) == {SamplingParams(seeds=(0,), temperature=0.0, max_tokens=64, stop_token_ids=(END,))}


def test_a_cut_answer_says_so(tmp_path: Path, renderer: Renderer) -> None:
    endless = renderer.answer_ids("[get weather(city='" + "Rome" * 99)
    found = ask(tmp_path, renderer, ScriptedEngine(lambda _name, _ids: endless))
    first = found["base"][0]
    assert first.error_class == "format"
    assert first.detail.startswith("cut after 64 tokens; ")


def test_a_prompt_without_room_is_wrong_with_a_reason_and_never_dropped(tmp_path: Path, renderer: Renderer) -> None:
    engine = ScriptedEngine(lambda _name, _ids: renderer.answer_ids(RIGHT))
    engine.max_model_len = len(example(0, renderer).prompt_ids)
    found = ask(tmp_path, renderer, engine)
    assert len(found["base"]) == 4
    assert {p.error_class for p in found["base"]} == {"not_asked"}
    assert found["base"][0].detail.endswith(f"the model's context is {engine.max_model_len}")
    assert engine.asked == []


def test_a_question_that_cannot_be_rendered_keeps_its_place(tmp_path: Path, renderer: Renderer) -> None:
    item = load_items(["simple_python"], limit=1)[0]
    forged = dataclasses.replace(item, id="forged", messages=(Message(role="user", content="<|end|>"),))
    engine = ScriptedEngine(lambda _name, _ids: renderer.answer_ids(RIGHT))
    engine.max_model_len = 4096
    benchmark = Bfcl(questions=[forged, item])
    questions = build_questions(benchmark, benchmark.items(), renderer)
    points = [Point(name="base", adapter=None)]
    found = asyncio.run(ask_points(asker(engine, renderer), points, questions, folder_ports(tmp_path, ())))
    assert [p.error_class for p in found["base"]] == ["not_asked", "tool_name"]
    assert "control token '<|end|>'" in found["base"][0].detail
    assert len(engine.asked) == 1


def test_an_answer_that_utf8_cannot_hold_is_still_recorded(tmp_path: Path, renderer: Renderer) -> None:
    (question,) = dev_questions([example(0, renderer, call=False)], renderer)
    forged = ParseResult(calls=(ToolCall(name="\ud800", arguments={}),))
    row = predict(question, "base", "[\ud800()]", lambda _text: forged)
    write_jsonl(tmp_path / "rows.jsonl", [row])
    assert row.output == "[?()]"
    assert row.error_class == "hallucinated_call"


def test_a_restart_asks_only_what_is_left(tmp_path: Path, renderer: Renderer) -> None:
    """Stopped before the third batch of the first point: two batches are kept, the rest is asked, nothing twice."""
    rows = 3 * BATCH + 5
    engine = ScriptedEngine(lambda _name, _ids: renderer.answer_ids(RIGHT))
    work = FolderWork(tmp_path / "kept")
    with pytest.raises(Interrupted, match=f"{2 * BATCH} of {rows} answers are saved"):
        ask(tmp_path, renderer, engine, rows, work=work, silent=Silent(stop_after=2))
    assert len(engine.asked) == 2 * BATCH
    assert engine.closed
    told = Silent()
    again = ScriptedEngine(lambda _name, _ids: renderer.answer_ids(RIGHT))
    found = ask(tmp_path / "again", renderer, again, rows, work=work, silent=told)
    assert [done for done, _, _ in told.updates] == list(range(2 * BATCH + 1, 2 * rows + 1))
    assert len(again.asked) == 2 * rows - 2 * BATCH
    whole = ask(tmp_path / "whole", renderer, ScriptedEngine(lambda _n, _i: renderer.answer_ids(RIGHT)), rows)
    assert found == whole
    assert len(set(work.names("base/"))) == 4


def test_a_dev_answer_is_right_with_exactly_the_gold_calls_in_any_order(renderer: Renderer) -> None:
    rome, oslo = (ToolCall(name="get weather", arguments={"city": c, "days": 3}) for c in ("Rome", "Oslo"))
    row = example(0, renderer)
    both = Example(**{**{f: getattr(row, f) for f in row.__dataclass_fields__}, "calls": (rome, oslo)})
    assert judge_dev(both, ParseResult(calls=(oslo, rome))).correct
    assert judge_dev(both, ParseResult(calls=(rome,))).error_class is ErrorClass.CALL_COUNT
    assert judge_dev(both, ParseResult(calls=(rome, rome))).error_class is ErrorClass.PARAMETER_VALUE
    assert not judge_dev(
        row, ParseResult(calls=(ToolCall(name="get weather", arguments={"city": "rome", "days": 3}),))
    ).correct
    assert judge_dev(row, ParseResult(error="broken")).error_class is ErrorClass.FORMAT


def test_iteration_zero_has_base_and_warmup_and_later_ones_their_own(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    adapter = {"adapter/adapter_config.json": tmp_path / "adapter_config.json"}
    prepare, warmup = stage_result(StageKind.PREPARE), stage_result(StageKind.WARMUP, files=adapter)
    trained = stage_result(StageKind.TRAIN, 2, files=adapter)
    resumed = stage_result(StageKind.PREPARE, files=adapter)

    def names(iteration: int, *results: StageResult) -> list[tuple[str, bool]]:
        upstream = FolderUpstream(results, tmp_path / "fetched")
        return [(p.name, p.adapter is not None) for p in plan_points(upstream, iteration)]

    assert names(0, prepare, warmup) == [("base", False), ("warmup", True)]
    assert names(0, prepare) == [("base", False)]
    assert names(0, resumed) == [("base", False), ("resumed", True)]
    assert names(2, prepare, trained) == [("iteration-2", True)]
    with pytest.raises(DataError, match="iteration 1 has no adapter"):
        names(1, prepare)


def test_a_full_evaluation_fits_the_termination_message_with_its_metrics(tmp_path: Path) -> None:
    """Both points on every category: the operator reads metrics from 4 KiB, so the base has only its headlines."""
    every = (*CATEGORIES, *MULTI_TURN)
    found = {
        name: [*predictions(name, 0.37, random.Random(name), every), *api_bank(name)] for name in ("base", "warmup")
    }
    made = build_output(found, tmp_path, counters={"decoded": 1e6}, info={})
    assert {f"bfcl/{name}/accuracy" for name in every} <= made.metrics.keys()
    assert {"dev/call_accuracy", "dev/call_accuracy_se", "base/dev/call_accuracy", "base/bfcl/n"} <= made.metrics.keys()
    assert "base/bfcl/simple_python/accuracy" not in made.metrics
    assert made.metrics["apibank/level_2/n"] == 135
    assert made.info["point"] == "warmup"
    assert made.counters["errors_dev_parameter_value"] > 0
    message = TerminationSummary(
        digest="0" * 64, exit_code=0, metrics=made.metrics, counters=made.counters, message=made.message
    ).to_message()
    assert len(message) <= TERMINATION_MESSAGE_LIMIT_BYTES
    assert json.loads(message)["metrics"] == made.metrics
    assert sorted(made.outputs) == ["predictions-base.jsonl", "predictions-warmup.jsonl"]


def api_bank(point: str) -> list[Prediction]:
    sizes = {"level_1": 399, "level_2_call": 90, "level_2_search": 45}
    return [
        Prediction(benchmark="apibank", category=name, id=str(at), point=point, output="", correct=at % 3 > 0)
        for name, n in sizes.items()
        for at in range(n)
    ]


def test_a_lone_base_point_has_plain_names(tmp_path: Path) -> None:
    row = Prediction(benchmark="dev", category="call", id="a", point="base", output="", correct=True)
    made = build_output({"base": [row]}, tmp_path, counters={}, info={})
    assert made.metrics["dev/call_accuracy"] == 1.0
    assert not [name for name in made.metrics if name.startswith("base/")]


def test_another_rendering_than_prepares_is_refused(tmp_path: Path, renderer: Renderer) -> None:
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"template_sha256": renderer.template_sha256}))
    check_template(manifest, renderer)
    manifest.write_text(json.dumps({"template_sha256": "0" * 64}))
    with pytest.raises(DataError, match="prepare and this stage run different versions"):
        check_template(manifest, renderer)


def test_two_questions_of_one_id_are_refused_before_anything_is_asked(renderer: Renderer) -> None:
    """One would hide the other: the set would be smaller than it says."""
    questions = dev_questions([example(1, renderer), example(2, renderer)], renderer)
    check_unique(questions)
    with pytest.raises(DataError, match=r"dev/call: two questions have the id 'row-1'"):
        check_unique([*questions, questions[0]])


def test_every_end_of_sequence_token_stops_an_answer(tmp_path: Path, renderer: Renderer) -> None:
    assert stop_token_ids(tmp_path, renderer) == (END,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 2]}')
    assert stop_token_ids(tmp_path, renderer) == (END, 7)


def test_overlap_counts_distinct_questions_and_tool_signatures() -> None:
    def row(text: str, tool: str, *parameters: str) -> Any:
        properties = {key: {} for key in parameters}
        return (Message(role="user", content=text),), ({"name": tool, "parameters": {"properties": properties}},)

    seen = overlap([row("Is it hot?", "f", "a"), row("Cold?", "f", "b")], [row("is it HOT", "f", "b"), row("x", "g")])
    assert (seen.questions, seen.questions_seen, seen.tools, seen.tools_seen) == (2, 1, 2, 1)
    assert str(seen) == "1 of 2 questions and 1 of 2 tool signatures are in the training data"


def test_the_stage_runs_dev_and_bfcl_through_parser_and_official_checker(tmp_path: Path, renderer: Renderer) -> None:
    """A scripted engine that always writes the dev set's call: right there, wrong on BFCL, wrong where none is due."""
    engine = ScriptedEngine(lambda _name, _ids: renderer.answer_ids(RIGHT))
    engine.max_model_len = 4096
    block = {"categories": ["simple_python", "irrelevance"], "limit": 2}
    made = run(
        stage_input(StageKind.EVALUATE, stages={"evaluate": block}),
        folder_ports(tmp_path, [prepared(tmp_path)[0]]),
        engine_opener=lambda *_args, **_options: engine,
    )
    rows = list(read_jsonl(made.outputs["predictions-base.jsonl"], Prediction))
    assert [(r.category, r.correct, r.error_class) for r in rows] == [
        ("call", True, None),
        ("call", True, None),
        ("no_call", False, "hallucinated_call"),
        ("simple_python", False, "tool_name"),
        ("simple_python", False, "tool_name"),
        ("irrelevance", False, "hallucinated_call"),
        ("irrelevance", False, "hallucinated_call"),
    ]
    assert made.metrics["dev/call_accuracy"] == 1.0
    assert made.metrics["dev/n"] == 3
    assert made.metrics["bfcl/n"] == 4
    assert made.info["overlap_dev"].startswith("1 of 3 questions and 1 of 1 tool signatures")
    assert made.info["bfcl_eval"] == "2026.3.23"
    assert made.counters["requests"] == 7


def test_the_stage_runs_on_the_real_engine(tmp_path: Path, renderer: Renderer) -> None:
    """Nothing scripted: an untrained model answers nonsense, all of it counted."""
    block = {"benchmarks": ["dev"], "maxNewTokens": 8, "engine": "transformers"}
    made = run(
        stage_input(StageKind.EVALUATE, stages={"evaluate": block}),
        folder_ports(tmp_path, [prepared(tmp_path)[0]]),
    )
    assert made.metrics["dev/n"] == 3
    assert made.counters["requests"] == 3
    assert made.counters["decoded"] >= 3
    assert made.info.items() >= compute_record(detect_device(), "fp32").items()


def test_a_plug_in_is_asked_and_has_its_total_and_groups_as_metrics(tmp_path: Path, renderer: Renderer) -> None:
    """ACEBench by its built-in name with one category; the right answer is one that says what is wrong."""
    (tmp_path / "possible_answer").mkdir()
    tool = {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}}
    rows = {"": {"question": "user: Hi", "function": [tool], "time": ""}, "possible_answer/": {"ground_truth": "No."}}
    for folder, row in rows.items():
        lines = "".join(json.dumps({"id": f"x_{at}", **row}) + "\n" for at in range(2))
        (tmp_path / f"{folder}data_special_irrelevant.json").write_text(lines)
    said = "Due to the limitations of the function, I cannot solve this problem."
    engine = ScriptedEngine(lambda _name, _ids: renderer.answer_ids(said))
    engine.max_model_len = 4096
    plugin = {"name": "acebench", "uri": str(tmp_path), "categories": ["special_irrelevant"]}
    made = run(
        stage_input(StageKind.EVALUATE, stages={"evaluate": {"benchmarks": ["dev"], "plugins": [plugin]}}),
        folder_ports(tmp_path, [prepared(tmp_path)[0]]),
        engine_opener=lambda *_args, **_options: engine,
    )
    assert made.metrics["acebench/accuracy"] == 1.0
    assert made.metrics["acebench/n"] == 2
    assert not [name for name in made.metrics if name.startswith("acebench/special_irrelevant/")]
    rows_asked = list(read_jsonl(made.outputs["predictions-base.jsonl"], Prediction))
    assert [(r.benchmark, r.correct) for r in rows_asked[-2:]] == [("acebench", True)] * 2


def test_two_benchmarks_of_one_name_are_refused() -> None:
    check_names([DevSet(examples=[])])
    with pytest.raises(ConfigError, match="two benchmarks call themselves 'dev'"):
        check_names([DevSet(examples=[]), DevSet(examples=[])])
