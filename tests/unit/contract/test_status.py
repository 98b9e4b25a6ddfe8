"""The status keeps within its budget, and its short forms round trip."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itrain_contract.names import ConditionType, Reason
from itrain_contract.spec import ITrainRunSpec
from itrain_contract.stages import StageKind, stage_sequence
from itrain_contract.status import (
    STATUS_LIMIT_BYTES,
    Condition,
    CurrentJob,
    IterationHistory,
    ITrainRunStatus,
    Metric,
    StageRecord,
    coarse_indexes,
    fit,
    record_indexes,
    size_bytes,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOLED = record_indexes(frozenset(range(0, 300, 2)))


def largest_status() -> ITrainRunStatus:
    """Ten thousand shards, a hundred iterations, every list full and every other shard of the first hundred missing."""
    spec = ITrainRunSpec.model_validate(
        {
            "model": {"uri": "hf://o/m"},
            "data": {"uri": "./r.json"},
            "storage": {"uri": "s3://b/p"},
            "iterations": {"max": 100},
        }
    )
    records = [
        StageRecord(
            kind=ref.kind,
            iteration=ref.iteration,
            attempt=3,
            digest="0123456789abcdef",
            seconds=86400,
            shards=HOLED if ref.kind in (StageKind.SCORE, StageKind.ROLLOUT) else None,
        )
        for ref in stage_sequence(spec)
    ]
    metrics = [Metric(name=f"bfcl/live_parallel_multiple_{n}/accuracy", value=0.123456789) for n in range(64)]
    history = [
        IterationHistory(
            iteration=n,
            stage_seconds=dict.fromkeys(StageKind, 99999),
            metrics=metrics[:32],
            pairs=4000,
            search={f"{'counter':_<18}{n:02d}": 10**9 for n in range(16)},
        )
        for n in range(91, 101)
    ]
    condition = Condition(
        type=ConditionType.RUNNING,
        status="True",
        reason=Reason.STAGE_RUNNING,
        message="m" * 512,
        last_transition_time=NOW,
    )
    return ITrainRunStatus(
        iteration=100,
        completed=records,
        metrics=metrics,
        history=history,
        conditions=[condition.model_copy(update={"type": t}) for t in ConditionType],
        current=CurrentJob(job_name="j" * 63, completed_indexes="1" * 1024, failed_indexes="1" * 1024),
    )


def test_the_largest_status_fits_into_its_budget_and_keeps_every_record() -> None:
    whole = largest_status()
    assert size_bytes(whole) > STATUS_LIMIT_BYTES
    fitted = fit(whole)
    assert size_bytes(fitted) <= STATUS_LIMIT_BYTES
    assert [r.ref for r in fitted.completed] == [r.ref for r in whole.completed]
    assert fitted.metrics == whole.metrics
    assert len(fitted.history) >= 1


def test_a_small_status_is_not_touched() -> None:
    status = ITrainRunStatus(iteration=2)
    assert fit(status) is status


def test_a_status_survives_the_api_server() -> None:
    status = fit(largest_status())
    assert ITrainRunStatus.model_validate_json(status.model_dump_json(by_alias=True)) == status


@given(
    st.sampled_from(StageKind),
    st.integers(0, 100),
    st.integers(1, 99),
    st.integers(0, 10**7),
    st.none() | st.sets(st.integers(0, 400)).map(lambda s: record_indexes(frozenset(s))),
)
def test_a_record_round_trips_as_text(kind: StageKind, n: int, attempt: int, seconds: int, shards: str | None) -> None:
    record = StageRecord(kind=kind, iteration=n, attempt=attempt, digest="f" * 64, seconds=seconds, shards=shards)
    assert StageRecord.model_validate(record.model_dump()) == record


@pytest.mark.parametrize("text", ["", "i1/rollout", "i1/rollout a1 xyz 1s", "i1/nothing a1 0123456789abcdef 1s"])
def test_another_text_is_no_record(text: str) -> None:
    with pytest.raises(ValueError, match=r"record|Input should be"):
        StageRecord.model_validate(text)


def test_coarse_lists_cover_the_exact_ones_and_say_so() -> None:
    assert coarse_indexes("0-3,5,9") == "0-9?"
    assert coarse_indexes("0-9999") == "0-9999"
    assert coarse_indexes(None) is None
    assert record_indexes(frozenset(range(0, 5000, 2))) == "0-4998?"
