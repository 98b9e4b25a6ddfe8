"""The one total order of stages, and who reads whom."""

from __future__ import annotations

from typing import Any

from itrain_contract.spec import ITrainRunSpec
from itrain_contract.stages import EXPORT, PREPARE, WARMUP, StageKind, StageRef, shard_count, stage_sequence, upstream

REQUIRED: dict[str, Any] = {
    "model": {"uri": "hf://o/m"},
    "data": {"uri": "./rows.json"},
    "storage": {"uri": "s3://b/p"},
}


def spec(**more: Any) -> ITrainRunSpec:
    return ITrainRunSpec.model_validate({**REQUIRED, **more})


def words(refs: tuple[StageRef, ...]) -> list[str]:
    return [str(ref) for ref in refs]


def test_the_sequence_is_warm_up_then_loops_then_export() -> None:
    assert words(stage_sequence(spec(iterations={"max": 2}))) == [
        "i0/prepare",
        "i0/warmup",
        "i0/evaluate",
        "i1/score",
        "i1/rollout",
        "i1/train",
        "i1/evaluate",
        "i2/score",
        "i2/rollout",
        "i2/train",
        "i2/evaluate",
        "i0/export",
    ]


def test_no_iterations_leave_the_curriculum_alone() -> None:
    assert words(stage_sequence(spec(iterations={"max": 0}))) == ["i0/prepare", "i0/warmup", "i0/evaluate", "i0/export"]


def test_an_early_stop_drops_the_later_iterations_and_keeps_export() -> None:
    early = stage_sequence(spec(iterations={"max": 5}), last_iteration=1)
    assert early[-2:] == (StageRef(kind=StageKind.EVALUATE, iteration=1), EXPORT)


def test_a_disabled_stage_is_not_in_the_sequence() -> None:
    sequence = stage_sequence(spec(stages={"warmup": {"enabled": False}, "evaluate": {"enabled": False}}))
    assert {StageKind.WARMUP, StageKind.EVALUATE}.isdisjoint({ref.kind for ref in sequence})


def test_a_resumed_run_has_no_warm_up() -> None:
    assert WARMUP not in stage_sequence(spec(resumeFrom={"runName": "before"}))


def test_each_stage_reads_the_newest_adapter_made_before_its_iteration() -> None:
    done = stage_sequence(spec(iterations={"max": 2}))[:-1]
    assert words(upstream(StageRef(kind=StageKind.SCORE, iteration=1), done)) == ["i0/prepare", "i0/warmup"]
    assert words(upstream(StageRef(kind=StageKind.TRAIN, iteration=2), done)) == [
        "i0/prepare",
        "i1/train",
        "i2/rollout",
    ]
    assert words(upstream(StageRef(kind=StageKind.SCORE, iteration=2), done)) == ["i0/prepare", "i1/score", "i1/train"]
    assert words(upstream(StageRef(kind=StageKind.EVALUATE, iteration=1), done)) == ["i0/prepare", "i1/train"]
    assert words(upstream(StageRef(kind=StageKind.EVALUATE), done)) == ["i0/prepare", "i0/warmup"]


def test_prepare_reads_nothing_and_export_reads_everything() -> None:
    done = stage_sequence(spec(iterations={"max": 1}))[:-1]
    assert upstream(PREPARE, done) == ()
    assert upstream(EXPORT, done) == done


def test_only_score_and_rollout_are_sharded() -> None:
    sharded = [kind for kind in StageKind if shard_count(spec(), kind) is not None]
    assert sharded == [StageKind.SCORE, StageKind.ROLLOUT]
