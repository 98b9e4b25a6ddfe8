"""Digests name the work and nothing else; the termination message keeps within its limit."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itrain_contract.layout import RunLayout, format_indexes, job_name, parse_indexes, shard_prefix
from itrain_contract.spec import ITrainRunSpec
from itrain_contract.stageio import (
    MOST_COUNTED,
    RunIdentity,
    TerminationSummary,
    UpstreamResult,
    add_counters,
    build_stage_input,
    spec_slice,
)
from itrain_contract.stages import StageKind, StageRef

RUN = RunIdentity(name="tiny", uid="0123456789ab", storage="s3://bucket/prefix")
ROLLOUT = StageRef(kind=StageKind.ROLLOUT, iteration=1)
REQUIRED: dict[str, Any] = {"model": {"uri": "hf://o/m"}, "data": {"uri": "./r.json"}, "storage": {"uri": "s3://b/p"}}


def spec(**more: Any) -> ITrainRunSpec:
    return ITrainRunSpec.model_validate({**REQUIRED, **more})


def digest(run_spec: ITrainRunSpec, attempt: int = 1, upstream: tuple[UpstreamResult, ...] = ()) -> str:
    built = build_stage_input(run=RUN, spec=run_spec, ref=ROLLOUT, attempt=attempt, shards=8, upstream=upstream)
    return built.digest


def test_attempts_share_the_digest_and_the_work_area_but_not_the_output() -> None:
    first, second = (
        build_stage_input(run=RUN, spec=spec(), ref=ROLLOUT, attempt=n, shards=8, upstream=()) for n in (1, 2)
    )
    assert first.digest == second.digest
    assert first.work_prefix == second.work_prefix
    assert first.output_prefix != second.output_prefix


@pytest.mark.parametrize(
    "scheduling",
    [
        {"stages": {"rollout": {"gpus": 4, "parallelism": 2, "retry": {"limit": 9}}}},
        {"stages": {"rollout": {"template": {"nodePool": "volta"}, "image": "repo/rollout:2"}}},
        {"stages": {"rollout": {"minSucceeded": 7}}},
        {"stages": {"train": {"learningRate": 0.5}}},
        {"template": {"nodePool": "current"}, "suspend": True, "queue": {"name": "v100"}},
    ],
    ids=str,
)
def test_scheduling_and_other_stages_do_not_change_the_digest(scheduling: dict[str, Any]) -> None:
    assert digest(spec(**scheduling)) == digest(spec())


@pytest.mark.parametrize(
    "method",
    [{"stages": {"rollout": {"actions": 4}}}, {"seed": 43}, {"precision": "fp32"}, {"model": {"uri": "hf://o/other"}}],
    ids=str,
)
def test_what_decides_the_outcome_changes_the_digest(method: dict[str, Any]) -> None:
    assert digest(spec(**method)) != digest(spec())


def test_another_upstream_is_other_work() -> None:
    scored = UpstreamResult(kind=StageKind.SCORE, iteration=1, prefix="s3://b/p/", digest="0" * 64, shards="0-7")
    fewer = scored.model_copy(update={"shards": "0-6"})
    assert len({digest(spec()), digest(spec(), upstream=(scored,)), digest(spec(), upstream=(fewer,))}) == 3


def test_a_slice_holds_no_scheduling_field() -> None:
    for kind in StageKind:
        assert not {"gpus", "image", "template", "retry", "parallelism"} & set(spec_slice(spec(), kind)["stage"])


def test_a_sharded_upstream_has_one_result_prefix_per_completed_index() -> None:
    scored = UpstreamResult(kind=StageKind.SCORE, iteration=1, prefix="s3://b/p/", digest="0" * 64, shards="0-1,3")
    assert scored.result_prefixes() == ("s3://b/p/shard-0/", "s3://b/p/shard-1/", "s3://b/p/shard-3/")


@given(st.text(max_size=9000), st.dictionaries(st.text(max_size=60), st.floats(-1e9, 1e9), max_size=200))
def test_a_termination_message_always_fits(message: str, metrics: dict[str, float]) -> None:
    counters = {name: abs(value) for name, value in metrics.items()}
    summary = TerminationSummary(digest="0" * 64, exit_code=70, metrics=metrics, counters=counters, message=message)
    data = summary.to_message()
    assert len(data) <= 4096
    assert TerminationSummary.model_validate_json(data).exit_code == 70


@given(st.sets(st.integers(0, 500)))
def test_index_lists_round_trip(indexes: set[int]) -> None:
    assert parse_indexes(format_indexes(indexes)) == indexes


def test_index_lists_are_written_as_kubernetes_writes_them() -> None:
    assert format_indexes({0, 1, 2, 5, 7, 8}) == "0-2,5,7-8"


def test_names_fit_into_a_hostname_with_the_largest_index() -> None:
    name = job_name("a" * 40, StageRef(kind=StageKind.EVALUATE, iteration=100), 99)
    assert len(f"{name}-9999") <= 63
    with pytest.raises(ValueError, match="41 characters"):
        job_name("a" * 41, ROLLOUT, 1)


def test_keys_lie_below_the_run() -> None:
    layout = RunLayout(storage="s3://b/p/", name="tiny", uid="0123456789ab")
    assert layout.attempt(ROLLOUT, 2) == "s3://b/p/tiny-01234567/i1/rollout/a2/"
    assert shard_prefix(layout.attempt(ROLLOUT, 2), 3) == "s3://b/p/tiny-01234567/i1/rollout/a2/shard-3/"
    assert shard_prefix("x/", None) == "x/"


def test_counters_add_up_to_what_a_status_can_hold() -> None:
    assert add_counters([{"pairs": 2, "trees": 1}, {"pairs": 3}]) == {"pairs": 5, "trees": 1}
    assert add_counters([{"pairs": MOST_COUNTED}] * 3) == {"pairs": MOST_COUNTED}
    assert add_counters([]) == {}
