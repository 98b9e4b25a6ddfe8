"""metrics.jsonl: every step, every point and every stage of a run once, as plain numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from itrain_contract.stages import StageKind
from itrain_pipeline.errors import DataError
from itrain_pipeline.evals.metricslog import metric_rows, metrics_jsonl
from itrain_pipeline.records import write_jsonl
from itrain_testing.comparedruns import answers
from itrain_testing.stageports import fetch, stage_result

LOG = (
    '{"step":1,"loss":0.9,"reward_margin":0.1,"note":"x","flag":true}\n'
    '{"step":2,"loss":NaN,"reward_margin":0.2,"validity":0.75}\n'
)


def test_rows_follow_the_run_with_steps_points_and_stages(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(LOG)
    write_jsonl(tmp_path / "predictions-iteration-1.jsonl", answers([True, False, False, False], point="iteration-1"))
    results = [
        stage_result(
            StageKind.EVALUATE,
            1,
            {"predictions-iteration-1.jsonl": tmp_path / "predictions-iteration-1.jsonl"},
            seconds=2.0,
            counters={"requests": 4.0},
        ),
        stage_result(
            StageKind.TRAIN,
            1,
            {"log.jsonl": log},
            seconds=9.0,
            metrics={"train/validity_first": 1.0, "train/loss": 0.9},
        ),
        stage_result(StageKind.SCORE, 1, shard=1, seconds=3.0),
    ]
    score, *train, evaluated, cost = metric_rows(results, fetch)
    assert score == {"stage": "i1/score", "iteration": 1, "shard": 1, "score/seconds": 3.0}
    head = {"stage": "i1/train", "iteration": 1}
    assert train == [
        {**head, "step": 0, "train/validity": 1.0},
        {**head, "step": 1, "train/loss": 0.9, "train/reward_margin": 0.1},
        {**head, "step": 2, "train/reward_margin": 0.2, "train/validity": 0.75},
        {**head, "train/seconds": 9.0},
    ]
    assert evaluated["point"] == "iteration-1"
    assert (evaluated["dev/call_accuracy"], evaluated["dev/call_n"]) == (0.25, 4)
    assert cost == {
        "stage": "i1/evaluate",
        "iteration": 1,
        "evaluate/seconds": 2.0,
        "evaluate/requests": 4.0,
    }
    text = metrics_jsonl(metric_rows(results, fetch))
    assert text == metrics_jsonl(metric_rows(results[::-1], fetch))
    assert [json.loads(line) for line in text.splitlines()] == list(metric_rows(results, fetch))


def test_a_log_that_is_none_is_named(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("{")
    with pytest.raises(DataError, match=r"log\.jsonl of warmup in iteration 0"):
        list(metric_rows([stage_result(StageKind.WARMUP, files={"log.jsonl": log})], fetch))
