"""Export publishes the best point, checked, with everything a reader needs beside it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from itrain_contract.stageio import StageResult
from itrain_contract.stages import StageKind
from itrain_pipeline.errors import DataError, PermanentError
from itrain_pipeline.evals.collect import collect_from_results, prediction_file
from itrain_pipeline.learn.hardware import compute_record
from itrain_pipeline.learn.precision import cpu_device
from itrain_pipeline.records import Example, Prediction, write_jsonl
from itrain_pipeline.stages.export import all_results, choose, probe_rows, run
from itrain_testing.reports import predictions
from itrain_testing.stageports import FolderUpstream, fetch, folder_files, folder_ports, stage_input, stage_result
from itrain_testing.tiny_model import write_random_adapter, write_tiny_model

CREATED = 1_795_464_000.0


def example(at: int) -> Example:
    return Example(
        id=f"row-{at}",
        messages=(),
        tools=(),
        answer="",
        calls=(),
        bucket="easy",
        source="test",
        prompt_ids=(1, 7, 9 + at),
        answer_ids=(20, 21 + at, 2),
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[StageResult]:
    """A whole run's results with two different adapters."""
    root = tmp_path_factory.mktemp("run")
    model = write_tiny_model(root / "model")
    warm = write_random_adapter(model, root / "warm", seed=1)
    trained = write_random_adapter(model, root / "trained", seed=2)
    write_jsonl(root / "dev.jsonl", [example(i) for i in range(4)])
    write_jsonl(root / "train.jsonl", [example(i) for i in range(10, 30)])
    evaluated: list[StageResult] = []
    for iteration, points in ((0, ("base", "warmup")), (1, ("iteration-1",))):
        files = {}
        for name in points:
            path = root / prediction_file(name)
            rows: list[Prediction] = predictions(name, 0.5, random.Random(name), categories=["simple_python"])
            write_jsonl(path, rows)
            files[path.name] = path
        evaluated.append(stage_result(StageKind.EVALUATE, iteration, files))
    rows_files = {"dev.jsonl": root / "dev.jsonl", "train.jsonl": root / "train.jsonl"}
    return [
        stage_result(StageKind.PREPARE, files={**rows_files, **folder_files(model, "model/")}),
        stage_result(StageKind.WARMUP, files=folder_files(warm, "adapter/"), seconds=5.0),
        evaluated[0],
        stage_result(StageKind.TRAIN, 1, files=folder_files(trained, "adapter/")),
        evaluated[1],
    ]


def export(folder: Path, results: list[StageResult], *, best: int | None = None, **block: Any) -> Any:
    return run(
        stage_input(StageKind.EXPORT, best_iteration=best, stages={"export": block}), folder_ports(folder, results)
    )


def test_the_best_iteration_is_merged_and_loads_with_transformers(results: list[StageResult], tmp_path: Path) -> None:
    made = export(tmp_path, results, best=1)
    model_dir = made.outputs["model/config.json"].parent
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    assert tokenizer.chat_template
    assert made.info["best_point"] == "iteration-1"
    assert 0 < made.metrics["export/max_logit_difference"] < 0.05
    assert made.info.items() >= compute_record(cpu_device(), "fp32").items()
    warmup = export(tmp_path / "other", results, best=0)
    other = AutoModelForCausalLM.from_pretrained(warmup.outputs["model/config.json"].parent, dtype="auto")
    ids = torch.tensor([[1, 7, 9]])
    assert not torch.allclose(model(ids).logits, other(ids).logits)


def test_report_card_and_metrics_are_written_beside_the_weights(results: list[StageResult], tmp_path: Path) -> None:
    made = export(tmp_path, results, best=1)
    assert {"report.html", "README.md", "metrics.json", "metrics.jsonl"} <= made.outputs.keys()
    rows = [json.loads(line) for line in made.outputs["metrics.jsonl"].read_text().splitlines()]
    assert [row["point"] for row in rows if "point" in row] == ["base", "warmup", "iteration-1"]
    document = json.loads(made.outputs["metrics.json"].read_text())
    assert list(document["points"]) == ["base", "warmup", "iteration-1"]
    assert document["best_point"] == "iteration-1"
    assert document["points"]["base"]["dev/call_n"] == 160
    page = made.outputs["report.html"].read_text()
    assert "max |Δlogit|" in page
    assert "2026-11-23" in page
    assert "| Iteration 1 (exported) |" in made.outputs["README.md"].read_text()


def test_a_report_made_later_from_the_results_tells_the_same(results: list[StageResult], tmp_path: Path) -> None:
    made = export(tmp_path, results, best=0)
    exported = stage_result(StageKind.EXPORT, info=made.info, started=CREATED, seconds=0.0)
    later = collect_from_results([*results, exported], fetch)
    assert (later.metric, later.best) == ("dev/call_accuracy", "warmup")
    assert dict(later.facts)["Merge"] == "fp32, stored as float32"


def test_without_merge_the_adapter_is_published_as_it_is(results: list[StageResult], tmp_path: Path) -> None:
    made = export(tmp_path, results, best=1, merge=False)
    source = fetch(results[3].outputs["adapter/adapter_model.safetensors"])
    assert made.outputs["adapter/adapter_model.safetensors"].read_bytes() == source.read_bytes()
    assert not [name for name in made.outputs if name.startswith("model/")]
    assert "AutoPeftModelForCausalLM" in made.outputs["README.md"].read_text()


def test_a_merge_beyond_the_limit_ends_the_stage_with_the_figure(results: list[StageResult], tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match=r"allowed is 1e-12 \(stages\.export\.maxLogitDifference\)"):
        export(tmp_path, results, best=1, maxLogitDifference=1e-12)


def test_a_run_whose_base_is_best_exports_no_weights_and_says_so(results: list[StageResult], tmp_path: Path) -> None:
    untrained = [r for r in results if r.kind in (StageKind.PREPARE, StageKind.EVALUATE) and r.iteration == 0]
    made = export(tmp_path, untrained, best=0)
    assert set(made.outputs) == {"report.html", "README.md", "metrics.json", "metrics.jsonl"}
    assert made.message == "no adapter to export: base is the best point"


def test_the_choice_follows_the_operator_and_defaults_to_the_newest(results: list[StageResult]) -> None:
    assert choose(results, 1).point == "iteration-1"
    assert choose(results, 0).point == "warmup"
    assert choose(results, None).point == "iteration-1"
    with pytest.raises(DataError, match="best iteration is 3"):
        choose(results, 3)
    adapter = fetch(results[1].outputs["adapter/adapter_config.json"]).parent
    resumed = stage_result(StageKind.PREPARE, files=folder_files(adapter, "adapter/"))
    assert choose([resumed], 0).point == "resumed"
    assert choose([resumed], None).result == resumed


def test_all_results_come_in_the_order_of_the_run(results: list[StageResult], tmp_path: Path) -> None:
    found = all_results(FolderUpstream(reversed(results), tmp_path))
    assert [(r.iteration, r.kind) for r in found] == [(r.iteration, r.kind) for r in results]


def test_probes_are_dev_rows_with_their_answers_then_training_rows(results: list[StageResult], tmp_path: Path) -> None:
    upstream = FolderUpstream(results, tmp_path)
    rows = probe_rows(upstream, results[0], 6)
    assert rows[0] == [1, 7, 9, 20, 21, 2]
    assert rows[4] == [1, 7, 19, 20, 31, 2]
    assert len(rows) == 6
