"""Points on step axes: what each tracker is sent, whatever the order of shards, and never anew."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from itrain_contract.stageio import StageResult
from itrain_contract.stages import StageKind
from itrain_pipeline.evals.metricslog import metric_rows
from itrain_pipeline.tracking.board import event_files, file_name
from itrain_pipeline.tracking.points import Point, from_json, to_json, tracked_points
from itrain_pipeline.tracking.publish import read_points
from itrain_testing.stageports import fetch
from itrain_testing.trackedruns import tracked_results


def by_axis(points: list[Point], axis: str) -> list[tuple[str, int, dict[str, float]]]:
    return [(point.stage, point.step, dict(point.figures)) for point in points if point.axis == axis]


def test_trainings_have_one_axis_of_steps_through_the_iterations(tmp_path: Path) -> None:
    """The probe before the second training is what the one after the first found, so it is told once."""
    points = read_points(tracked_results(tmp_path), fetch)
    assert by_axis(points, "warmup/step") == [("i0/warmup", 1, {"warmup/loss": 2.0})]
    assert by_axis(points, "train/step") == [
        ("i1/train", 0, {"train/validity": 1.0}),
        ("i1/train", 1, {"train/loss": 0.9}),
        ("i1/train", 2, {"train/loss": 0.8, "train/validity": 0.75}),
        ("i2/train", 3, {"train/loss": 0.7}),
        ("i2/train", 4, {"train/loss": 0.6, "train/validity": 0.5}),
    ]


def test_everything_else_stands_at_its_iteration_with_shards_added(tmp_path: Path) -> None:
    points = read_points(tracked_results(tmp_path), fetch)
    found = {(stage, step): figures for stage, step, figures in by_axis(points, "iteration")}
    assert found["i1/rollout", 1] == {"rollout/seconds": 9.0, "rollout/pairs": 7.0}
    first = found["i0/evaluate", 0]
    assert (first["base/dev/call_accuracy"], first["dev/call_accuracy"]) == (0.25, 0.5)
    assert found["i1/evaluate", 1]["dev/call_accuracy"] == 0.75
    assert points[-1].stage == "i0/export"


def test_points_of_an_unfinished_run_are_the_beginning_of_those_of_the_finished_one(tmp_path: Path) -> None:
    results = tracked_results(tmp_path)
    whole = read_points(results, fetch)
    for end in range(1, len(results) + 1):
        if end < len(results) and results[end].shard:
            continue  # points are taken between stages
        points = read_points(results[:end], fetch)
        assert points == whole[: len(points)]
    assert from_json(to_json(whole)) == whole
    assert read_points(results[::-1], fetch) == whole


def test_a_base_model_that_nothing_was_trained_from_needs_no_name_of_its_own() -> None:
    row = {"stage": "i0/evaluate", "iteration": 0, "point": "base", "dev/accuracy": 0.5}
    (point,) = tracked_points([row], {"i0/evaluate": 1.0})
    assert point.figures == {"dev/accuracy": 0.5}


def test_files_have_names_in_the_order_of_the_run() -> None:
    stages = [
        "i0/prepare",
        "i0/warmup",
        "i0/evaluate",
        "i1/score",
        "i2/score",
        "i10/train",
        "i100/evaluate",
        "i0/export",
    ]
    names = [file_name(stage) for stage in stages]
    assert names == sorted(names)
    assert all("tfevents" in name for name in names)


def test_tensorboard_reads_every_value_once_at_its_step_and_time(tmp_path: Path) -> None:
    """Also where it followed the run: what an earlier stage has written stays as it was."""
    results, folder = tracked_results(tmp_path), tmp_path / "board"
    folder.mkdir()
    for name, data in event_files(read_points(results[:3], fetch)).items():
        (folder / name).write_bytes(data)
    board = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    board.Reload()
    assert [event.value for event in board.Scalars("warmup/loss")] == [2.0]
    points = read_points(results, fetch)
    for name, data in event_files(points).items():
        if (folder / name).exists():
            assert (folder / name).read_bytes() == data
        else:
            (folder / name).write_bytes(data)
    board.Reload()
    read = [
        (tag, event.step, event.wall_time, pytest.approx(event.value))
        for tag in board.Tags()["scalars"]
        for event in board.Scalars(tag)
    ]
    sent = [(name, point.step, point.time, value) for point in points for name, value in point.figures.items()]
    assert sorted(sent) == sorted(read, key=lambda one: one[:3])


def test_rows_are_those_of_metrics_jsonl(tmp_path: Path) -> None:
    results: list[StageResult] = tracked_results(tmp_path)
    assert {point.stage for point in read_points(results, fetch)} == {
        row["stage"] for row in metric_rows(results, fetch)
    }
    assert sum(r.kind is StageKind.ROLLOUT for r in results) == 2
