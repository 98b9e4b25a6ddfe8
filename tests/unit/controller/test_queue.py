"""A run and its queue: waits, evictions, pauses, from every state in which they may be met."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from itrain_contract.names import Phase, Reason
from itrain_operator.actions import Action, DeleteJob, EventReason, Plan, SetActive
from itrain_operator.observed import JobState, JobView, QueueView, Run
from itrain_testing.builders import (
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

QUEUE = {"name": "v100", "priorityClass": "research"}
ROLLOUT = ref("rollout", 1)
LIVE = (JobState.WAITING, JobState.PENDING, JobState.ACTIVE)


def queued_run() -> Run:
    """At its rollout."""
    return drive_to(make_run(make_spec(queue=QUEUE)), ROLLOUT)


def queued(run: Run, state: JobState, *, started: datetime | None = None, **queue: Any) -> JobView:
    """The Job under way as its queue shows it."""
    view = QueueView(workload="job-run-i1-rollout-a1-abcde", **queue)
    return view_of(run, state, queue_name="v100", queue=view, started=started)


def switched(plan: Plan) -> list[bool]:
    return [action.active for action in plan.actions if isinstance(action, SetActive)]


def ending(plan: Plan) -> list[Action]:
    return [action for action in plan.actions if isinstance(action, DeleteJob | SetActive)]


# --- waiting ---


@pytest.mark.parametrize(
    ("view", "text"),
    [
        ({"queue_name": ""}, "is suspended, not by this run"),
        ({"queue_name": "v100"}, "waits for quota in queue v100"),
        (
            {"queue_name": "v100", "queue": QueueView(workload="w", reason="Pending", message="2 more\x1b[31m needed")},
            "waits for quota in queue v100 (Pending): 2 more",
        ),
        (
            {"queue_name": "v100", "queue": QueueView(workload="w", reason="Preempted")},
            "waits for quota in queue v100 (Preempted)",
        ),
    ],
)
def test_a_wait_names_the_queue_and_what_it_says(view: dict[str, Any], text: str) -> None:
    run = queued_run()
    run, _ = step(run, view_of(run, JobState.WAITING, **view))
    assert (run.status.phase, run.status.reason) == (Phase.PENDING, Reason.WAITING_FOR_QUOTA)
    assert run.status.message.startswith(f"run-i1-rollout-a1 {text}")
    assert "\x1b" not in run.status.message


def test_no_deadline_runs_while_a_job_waits_however_long() -> None:
    limits = {"activeDeadlineSeconds": 10, "pendingDeadlineSeconds": 10}
    run = drive_to(make_run(make_spec(queue=QUEUE, activeDeadlineSeconds=100, stages={"rollout": limits})), ROLLOUT)
    for at in (1, 10_000, 1_000_000):
        run, planned = step(run, queued(run, JobState.WAITING), at=at)
        assert (run.status.reason, deleted(planned)) == (Reason.WAITING_FOR_QUOTA, [])
    assert (run.status.pending_seconds, run.status.attempt_seconds) == (0, 0)


# --- evictions ---


@pytest.mark.parametrize("started", [None, after(5)])
def test_quota_that_is_taken_from_running_pods_is_a_preemption_and_no_failure(started: datetime | None) -> None:
    run = queued_run()
    run, _ = step(run, queued(run, JobState.ACTIVE, started=started), at=10)
    evicted = queued(run, JobState.WAITING, reason="Preempted", message="to make room")
    run, planned = step(run, evicted, at=20)
    assert (run.status.preemptions, run.status.failures, run.status.retries) == (1, 0, 0)
    assert (run.status.attempt, made(planned), ending(planned)) == (1, [], [])
    assert events(planned) == [EventReason.STAGE_DISRUPTED, EventReason.WAITING]
    assert "lost its quota (Preempted)" in str(planned.actions[0])
    run, planned = step(run, evicted, at=40)
    assert (run.status.preemptions, planned.actions) == (1, ())


@pytest.mark.parametrize("state", [JobState.PENDING, JobState.ACTIVE])
def test_an_eviction_and_a_new_start_between_two_passes_count_by_the_later_start(state: JobState) -> None:
    run = queued_run()
    run, _ = step(run, queued(run, JobState.ACTIVE, started=after(5)), at=10)
    run, planned = step(run, queued(run, state, started=after(50)), at=60)
    assert (run.status.preemptions, run.status.retries) == (1, 0)
    assert EventReason.STAGE_DISRUPTED in events(planned)
    run, _ = step(run, queued(run, JobState.ACTIVE, started=after(50)), at=70)
    run, _ = step(run, queued(run, JobState.ACTIVE, started=after(50)), at=80)
    assert run.status.preemptions == 1


def test_a_job_that_waited_and_is_let_go_again_counts_once() -> None:
    run = queued_run()
    for at, view in enumerate(
        (
            queued(run, JobState.WAITING),
            queued(run, JobState.PENDING, started=after(1)),
            queued(run, JobState.ACTIVE, started=after(1)),
            queued(run, JobState.WAITING, reason="Preempted"),
            queued(run, JobState.PENDING, started=after(4)),
            queued(run, JobState.ACTIVE, started=after(4)),
        )
    ):
        run, _ = step(run, view, at=at)
    assert (run.status.preemptions, run.status.reason) == (1, Reason.STAGE_RUNNING)


def test_a_job_that_loses_its_quota_before_a_pod_ran_was_disturbed_by_nobody() -> None:
    run = queued_run()
    run, _ = step(run, queued(run, JobState.PENDING, started=after(1)), at=2)
    run, _ = step(run, queued(run, JobState.WAITING, reason="PodsReadyTimeout"), at=3)
    assert run.status.preemptions == 0


def test_a_job_that_is_in_no_queue_may_start_anew_as_often_as_its_machine_does() -> None:
    run = drive_to(make_run(), ROLLOUT)
    run, _ = step(run, view_of(run, JobState.ACTIVE, started=after(5)), at=10)
    run, _ = step(run, view_of(run, JobState.ACTIVE, started=after(50)), at=60)
    assert run.status.preemptions == 0


def test_running_time_counts_from_the_new_start() -> None:
    """Running 0-10 s, in the queue 10-1000 s, running 1000-1005 s."""
    run = queued_run()
    before = run.status.running_seconds
    run, _ = step(run, queued(run, JobState.ACTIVE, started=after(0)), at=0)
    run, _ = step(run, queued(run, JobState.ACTIVE, started=after(0)), at=10)
    run, _ = step(run, queued(run, JobState.WAITING), at=10)
    run, _ = step(run, queued(run, JobState.WAITING), at=900)
    run, _ = step(run, queued(run, JobState.ACTIVE, started=after(1000)), at=1005)
    assert (run.status.running_seconds - before, run.status.attempt_seconds) == (15, 15)


# --- pauses ---


@pytest.mark.parametrize("state", LIVE)
def test_a_pause_goes_through_the_workload_in_every_live_state(state: JobState) -> None:
    run = queued_run()
    run, _ = step(run, queued(run, state))
    run, planned = step(with_spec(run, suspend=True), queued(run, state))
    assert (switched(planned), deleted(planned)) == ([False], [])
    assert (run.status.phase, run.status.attempt) == (Phase.SUSPENDED, 1)
    run, planned = step(run, queued(run, JobState.WAITING, active=False, reason="Deactivated"))
    assert ending(planned) == []
    quota = next(c for c in run.status.conditions if c.type == "QuotaReserved")
    assert quota.status == "False"
    assert run.status.preemptions == 0


@pytest.mark.parametrize("state", LIVE)
@pytest.mark.parametrize(
    "queue",
    [
        {"queue_name": "v100", "queue": None},
        {"queue_name": "v100", "queue": QueueView()},
        {"queue_name": "other", "queue": QueueView(workload="w")},
        {"queue_name": "", "queue": None},
    ],
    ids=["unreadable", "no workload", "another queue by now", "no queue"],
)
def test_a_job_that_cannot_rest_in_its_queue_is_deleted(state: JobState, queue: dict[str, Any]) -> None:
    run = queued_run()
    view = view_of(run, state, **queue)
    run, _ = step(run, view)
    run, planned = step(with_spec(run, suspend=True), view)
    assert (switched(planned), deleted(planned)) == ([], [view.name])


@pytest.mark.parametrize("state", [JobState.DELETING, JobState.COMPLETE])
def test_a_pause_leaves_alone_what_does_not_run(state: JobState) -> None:
    run = queued_run()
    _, planned = step(with_spec(run, suspend=True), queued(run, state))
    assert ending(planned) == []


def test_the_end_of_a_pause_asks_for_quota_again_and_for_no_new_job() -> None:
    run = queued_run()
    run, _ = step(run, queued(run, JobState.ACTIVE, started=after(1)), at=2)
    resting = queued(run, JobState.WAITING, active=False, reason="Deactivated")
    run, _ = step(with_spec(run, suspend=True), resting, at=10)
    run, planned = step(with_spec(run, suspend=False), resting, at=5000)
    assert (switched(planned), made(planned), deleted(planned)) == ([True], [], [])
    assert (run.status.phase, run.status.reason) == (Phase.PENDING, Reason.WAITING_FOR_QUOTA)
    assert EventReason.RESUMED in events(planned)
    run, planned = step(run, queued(run, JobState.WAITING), at=5010)
    assert ending(planned) == []
    run, _ = step(run, queued(run, JobState.ACTIVE, started=after(5020)), at=5030)
    assert (run.status.phase, run.status.preemptions, run.status.attempt) == (Phase.RUNNING, 0, 1)


def test_an_operator_that_died_between_patch_and_status_asks_again_and_that_is_the_same() -> None:
    """The Workload is active already, the status still says Suspended."""
    run = queued_run()
    run, _ = step(with_spec(run, suspend=True), queued(run, JobState.WAITING, active=False))
    run, planned = step(with_spec(run, suspend=False), queued(run, JobState.ACTIVE, started=after(9)), at=10)
    assert (switched(planned), run.status.phase, run.status.preemptions) == ([], Phase.RUNNING, 0)


def test_a_workload_that_somebody_else_stopped_stays_so() -> None:
    run = queued_run()
    run, _ = step(run, queued(run, JobState.ACTIVE))
    for at in (1, 2):
        run, planned = step(run, queued(run, JobState.WAITING, active=False, reason="Deactivated"), at=at)
        assert switched(planned) == []
    assert (run.status.reason, run.status.preemptions) == (Reason.WAITING_FOR_QUOTA, 1)
    assert "(Deactivated)" in run.status.message


def test_a_workload_that_somebody_sets_going_in_a_pause_is_stopped_again() -> None:
    run = queued_run()
    run, _ = step(with_spec(run, suspend=True), queued(run, JobState.WAITING, active=False))
    _, planned = step(run, queued(run, JobState.ACTIVE, started=after(3)), at=4)
    assert switched(planned) == [False]
