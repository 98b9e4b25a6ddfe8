"""Suspension and limits: what pauses a run, what ends it, and what of its time counts."""

from __future__ import annotations

from typing import Any

import pytest

from itrain_contract.names import Phase, Reason
from itrain_contract.stages import PREPARE, StageKind, StageRef, stage_sequence
from itrain_operator.actions import EventReason
from itrain_operator.observed import JobState, Run
from itrain_testing.builders import (
    T0,
    after,
    deleted,
    drive_to,
    events,
    made,
    make_run,
    make_spec,
    ref,
    step,
    view_of,
    with_spec,
)

ROLLOUT = ref("rollout", 1)


def at_rollout(**fields: Any) -> Run:
    return drive_to(make_run(make_spec(**fields)), ROLLOUT)


# --- suspend ---


@pytest.mark.parametrize("stage", stage_sequence(make_spec()), ids=str)
def test_every_stage_can_be_suspended_and_goes_on_with_the_same_attempt(stage: StageRef) -> None:
    run = drive_to(make_run(), stage)
    running = view_of(run, JobState.ACTIVE)
    run, _ = step(run, running, at=10)
    run, held = step(with_spec(run, suspend=True), running, at=20)
    assert (deleted(held), made(held), events(held)) == ([running.name], [], [EventReason.SUSPENDED])
    assert (run.status.phase, run.status.reason) == (Phase.SUSPENDED, Reason.SUSPENDED_BY_USER)
    before = run.status.running_seconds
    for at in (30, 4000):
        run, held = step(run, at=at)
        assert held.actions == ()
    run, resumed = step(with_spec(run, suspend=False), at=5000)
    assert (made(resumed), events(resumed)) == ([running.name], [EventReason.RESUMED])
    assert (run.status.failures, run.status.retries, run.status.preemptions) == (0, 0, 0)
    assert run.status.running_seconds == before


def test_a_resumed_run_waits_until_the_deleted_job_is_gone() -> None:
    run, _ = step(make_run())
    run, _ = step(with_spec(run, suspend=True), view_of(run, JobState.ACTIVE))
    run = with_spec(run, suspend=False)
    run, planned = step(run, view_of(run, JobState.DELETING), at=5)
    assert (made(planned), run.status.reason) == ([], Reason.WAITING_FOR_CLEANUP)
    _, planned = step(run, at=6)
    assert made(planned) == ["run-i0-prepare-a1"]


def test_a_stage_that_completes_while_the_run_is_suspended_is_not_lost() -> None:
    run, _ = step(make_run())
    complete = view_of(run, JobState.COMPLETE)
    run, planned = step(with_spec(run, suspend=True), complete)
    assert ([r.ref for r in run.status.completed], deleted(planned)) == ([PREPARE], [])
    run, planned = step(run, complete)
    assert (run.status.phase, made(planned), events(planned)) == (Phase.SUSPENDED, [], [EventReason.SUSPENDED])


def test_a_failure_seen_during_a_pause_does_not_end_the_pause() -> None:
    run, _ = step(make_run())
    run = with_spec(run, suspend=True)
    failed = view_of(run, JobState.FAILED, exit_code=75)
    run, _ = step(run, view_of(run, JobState.ACTIVE))
    run, planned = step(run, failed)
    assert (run.status.phase, run.status.attempt, events(planned)) == (Phase.SUSPENDED, 2, [EventReason.STAGE_RETRYING])
    run, planned = step(run, failed, at=100)
    assert (run.status.phase, made(planned), deleted(planned)) == (Phase.SUSPENDED, [], [failed.name])


def test_a_run_created_suspended_makes_nothing() -> None:
    run, planned = step(make_run(make_spec(suspend=True)))
    assert (run.status.phase, run.status.stage, made(planned)) == (Phase.SUSPENDED, None, [])
    run, planned = step(with_spec(run, suspend=False))
    assert (run.status.stage, events(planned)) == (
        StageKind.PREPARE,
        [EventReason.RESUMED, EventReason.STAGE_STARTED],
    )


def test_suspending_for_longer_than_every_deadline_fails_nothing() -> None:
    limits = {"activeDeadlineSeconds": 100, "stages": {"prepare": {"activeDeadlineSeconds": 50}}}
    run, _ = step(make_run(make_spec(**limits)))
    run, _ = step(run, view_of(run, JobState.ACTIVE, started=after(0)), at=40)
    run, _ = step(with_spec(run, suspend=True), at=41)
    run, _ = step(run, at=100_000)
    run, _ = step(with_spec(run, suspend=False), at=100_001)
    run, _ = step(run, view_of(run, JobState.ACTIVE, started=after(100_002)), at=100_005)
    assert run.status.phase == Phase.RUNNING
    assert run.status.running_seconds < 50


# --- limits ---


def test_the_deadline_of_the_run_counts_running_time_only() -> None:
    """Queued 0-1000 s, pending until 2000 s, running since: the limit of 100 s is reached at 2100 s."""
    run, _ = step(make_run(make_spec(activeDeadlineSeconds=100, queue={"name": "q"})))
    run, _ = step(run, view_of(run, JobState.WAITING), at=10)
    run, _ = step(run, view_of(run, JobState.PENDING), at=1000)
    run, _ = step(run, view_of(run, JobState.PENDING), at=1999)
    running = view_of(run, JobState.ACTIVE, started=after(2000))
    run, planned = step(run, running, at=2060)
    assert (run.status.running_seconds, planned.wake_after) == (60, after(40) - T0)
    run, _ = step(run, running, at=2099)
    assert run.status.phase == Phase.RUNNING
    run, failed = step(run, running, at=2100)
    assert (run.status.phase, run.status.reason, deleted(failed)) == (Phase.FAILED, Reason.DEADLINE_EXCEEDED, [])
    _, after_end = step(run, running, at=2101)
    assert deleted(after_end) == [running.name]


def test_work_that_is_done_counts_even_past_the_deadline() -> None:
    run, _ = step(make_run(make_spec(activeDeadlineSeconds=10)))
    done = view_of(run, JobState.COMPLETE, started=after(0), finished=after(50))
    run, _ = step(run, done, at=60)
    assert [r.ref for r in run.status.completed] == [PREPARE]
    run, _ = step(run, at=61)
    assert run.status.reason == Reason.DEADLINE_EXCEEDED


def test_the_deadline_of_a_stage_ends_the_attempt_and_counts_a_failure() -> None:
    stages = {"prepare": {"activeDeadlineSeconds": 50, "retry": {"limit": 1}}}
    run, _ = step(make_run(make_spec(stages=stages)))
    first = view_of(run, JobState.ACTIVE, started=after(0))
    run, _ = step(run, first, at=50)
    assert (run.status.attempt, run.status.failures, run.status.attempt_seconds) == (2, 1, 0)
    run, planned = step(run, first, at=51)
    assert deleted(planned) == [first.name]
    second = view_of(run, JobState.ACTIVE, started=after(70))
    run, _ = step(run, second, at=121)
    assert (run.status.phase, run.status.reason) == (Phase.FAILED, Reason.DEADLINE_EXCEEDED)
    assert "stages.prepare.activeDeadlineSeconds allows 50" in run.status.message


def test_waiting_for_nodes_is_bounded_and_waiting_for_quota_is_not() -> None:
    stages = {"prepare": {"pendingDeadlineSeconds": 300}}
    run, _ = step(make_run(make_spec(stages=stages)))
    run, _ = step(run, view_of(run, JobState.WAITING), at=1)
    run, _ = step(run, view_of(run, JobState.WAITING), at=5000)
    pending = view_of(run, JobState.PENDING, reason="Unschedulable", message="0/3 nodes have a GPU")
    run, planned = step(run, pending, at=5001)
    assert (run.status.phase, run.status.reason) == (Phase.PENDING, Reason.WAITING_FOR_NODES)
    assert planned.wake_after == after(300) - T0
    run, _ = step(run, pending, at=5300)
    assert run.status.phase == Phase.PENDING
    run, _ = step(run, pending, at=5301)
    assert (run.status.phase, run.status.reason) == (Phase.FAILED, Reason.PENDING_DEADLINE_EXCEEDED)
    assert "(Unschedulable): 0/3 nodes have a GPU" in run.status.message


def test_gpu_hours_end_the_run_with_a_reason() -> None:
    """8 shards of 1 GPU for 900 s are 2 GPU-hours."""
    run = at_rollout(maxGpuHours=2)
    running = view_of(run, JobState.ACTIVE, started=after(0))
    run, planned = step(run, running, at=450)
    assert (run.status.gpu_seconds, run.status.gpu_hours, planned.wake_after) == (3600, "1.00", after(450) - T0)
    run, _ = step(run, running, at=900)
    assert (run.status.phase, run.status.reason) == (Phase.FAILED, Reason.GPU_HOURS_EXCEEDED)
