"""Probes, metrics and events: what the operator says of itself."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from itrain_contract.names import ConditionType, Reason
from itrain_contract.stages import StageKind
from itrain_contract.status import Condition, ITrainRunStatus, StageRecord
from itrain_operator.actions import Emit, EventReason
from itrain_operator.cache import parse_run_record
from itrain_operator.events import EventPoster
from itrain_operator.health import Vitals, why_not_alive, why_not_ready
from itrain_operator.kubeapi import EVENTS
from itrain_operator.metrics import Metrics, quota_wait_s
from itrain_testing.builders import after
from itrain_testing.clusterruns import run_manifest
from itrain_testing.fakecluster import FakeCluster, FakeServer


def test_a_quiet_cluster_is_healthy_and_a_stuck_loop_is_not() -> None:
    vitals = Vitals(started=0.0, heartbeat=1000.0, resynced=900.0)
    assert why_not_alive(vitals, 1010.0, resync_s=300.0) == ""
    assert "event loop" in why_not_alive(vitals, 1100.0, resync_s=300.0)


def test_a_list_that_is_too_old_is_a_reason_to_be_restarted_and_so_is_none_at_all() -> None:
    late = Vitals(started=0.0, heartbeat=2000.0, resynced=900.0)
    assert "1100 s old" in why_not_alive(late, 2000.0, resync_s=300.0)
    never = Vitals(started=0.0, heartbeat=2000.0)
    assert why_not_alive(never, 2000.0, resync_s=300.0)
    assert why_not_alive(Vitals(started=1900.0, heartbeat=2000.0), 2000.0, resync_s=300.0) == ""


def test_ready_means_that_the_caches_are_filled() -> None:
    assert why_not_ready(Vitals(started=0.0, heartbeat=0.0))
    assert why_not_ready(Vitals(started=0.0, heartbeat=0.0, resynced=1.0)) == ""


def quota(status: str, at: float) -> ITrainRunStatus:
    condition = Condition.model_validate(
        {
            "type": ConditionType.QUOTA_RESERVED,
            "status": status,
            "reason": Reason.WAITING_FOR_QUOTA,
            "last_transition_time": after(at),
        }
    )
    return ITrainRunStatus(conditions=[condition])


def test_the_wait_for_quota_ends_with_the_status_that_grants_it() -> None:
    assert quota_wait_s(quota("False", 0.0), quota("True", 90.0)) == 90.0
    assert quota_wait_s(quota("False", 0.0), quota("False", 0.0)) is None
    assert quota_wait_s(ITrainRunStatus(), quota("True", 5.0)) is None


def test_a_written_status_counts_what_happened_since_the_one_before() -> None:
    metrics = Metrics(
        phases=lambda: {"Running": 2}, queue_depth=lambda: 3.0, resync_age_s=lambda: 4.0, leading=lambda: 1.0
    )
    old = ITrainRunStatus(stage=StageKind.TRAIN, retries=1, gpu_seconds=10.0)
    record = StageRecord(kind=StageKind.TRAIN, iteration=1, attempt=1, digest="0" * 16, seconds=40)
    metrics.written(
        old, old.model_copy(update={"retries": 2, "gpu_seconds": 25.0, "preemptions": 1, "completed": [record]})
    )
    metrics.request("GET", "200")
    text = metrics.text().decode()
    for line in (
        'itrain_runs{phase="Running"} 2.0',
        'itrain_runs{phase="Failed"} 0.0',
        "itrain_queue_depth 3.0",
        "itrain_resync_age_seconds 4.0",
        "itrain_is_leader 1.0",
        'itrain_stage_retries_total{stage="train"} 1.0',
        "itrain_preemptions_total 1.0",
        'itrain_gpu_seconds_total{stage="train"} 15.0',
        'itrain_stage_duration_seconds_sum{stage="train"} 40.0',
        'itrain_api_requests_total{code="200",verb="GET"} 1.0',
        "itrain_status_writes_total 1.0",
    ):
        assert line in text.splitlines(), line


def post_events(*events: Emit, server: FakeServer, dropped: list[int] | None = None) -> None:
    manifest = run_manifest()
    run = parse_run_record({**manifest, "metadata": {**manifest["metadata"], "uid": "run-uid"}})
    counted = dropped if dropped is not None else []

    async def main() -> None:
        poster = EventPoster(
            FakeCluster(server),
            instance="me",
            clock=lambda: 0.0,
            wall_clock=lambda: datetime(2026, 3, 1, tzinfo=UTC).timestamp(),
            on_dropped=lambda: counted.append(1),
        )
        for event in events:
            await poster.post(run, event)

    asyncio.run(main())


def said(message: str) -> Emit:
    return Emit(type="Normal", reason=EventReason.STAGE_STARTED, message=message)


def test_an_event_said_again_is_one_event_with_a_count_whoever_says_it() -> None:
    server = FakeServer()
    post_events(said("one"), said("one"), said("two"), server=server)
    post_events(said("one"), server=server)
    assert sorted((e["message"], e["count"]) for e in server.all(EVENTS)) == [("one", 3), ("two", 1)]


def test_a_run_that_flaps_is_cut_short() -> None:
    server, dropped = FakeServer(), list[int]()
    post_events(*(said(str(n)) for n in range(130)), server=server, dropped=dropped)
    assert len(server.all(EVENTS)) == 100
    assert len(dropped) == 30
