"""The planner, transition by transition."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from itrain_contract.names import Phase, Reason
from itrain_contract.stages import EXPORT, WARMUP, StageKind, StageRef, stage_sequence, upstream
from itrain_contract.status import ITrainRunStatus
from itrain_operator.actions import EnsureJob, EventReason
from itrain_operator.machine import invalid_spec_status, plan
from itrain_operator.observed import JobState, JobView, Observed, Refusal, Run
from itrain_operator.sequence import current_ref
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
from itrain_testing.builders import summary as result

ROLLOUT = ref("rollout", 1)


def at_rollout(**fields: Any) -> Run:
    return drive_to(make_run(make_spec(**fields)), ROLLOUT)


# --- sequence ---


def test_a_new_run_points_at_prepare_before_it_makes_anything() -> None:
    run, first = step(make_run())
    assert (made(first), first.wake_after) == ([], after(0) - T0)
    assert (run.status.stage, run.status.attempt, run.status.phase) == (StageKind.PREPARE, 1, Phase.PENDING)
    _, second = step(run)
    assert made(second) == ["run-i0-prepare-a1"]


def test_a_run_walks_through_its_sequence_and_succeeds() -> None:
    run = make_run()
    walked: list[StageRef] = []
    for _ in range(100):
        pointed = current_ref(run.status)
        if pointed and (not walked or walked[-1] != pointed):
            walked.append(pointed)
        run, _ = step(run, *([view_of(run, JobState.COMPLETE)] if pointed else []))
        if run.status.phase.terminal:
            break
    assert tuple(walked) == stage_sequence(run.spec)
    assert (run.status.phase, run.status.reason) == (Phase.SUCCEEDED, Reason.RUN_COMPLETED)
    assert run.status.report_uri == "s3://bucket/prefix/run-0f1e2d3c/i0/export/a1/report.html"


def test_a_stage_reads_the_completed_shards_and_digests_of_its_upstream() -> None:
    run = at_rollout(stages={"score": {"shards": 4, "minSucceeded": 3}})
    run = drive_to(make_run(run.spec), ref("score", 1))
    partly = view_of(run, JobState.FAILED, completed=frozenset({0, 2, 3}), failed_indexes=frozenset({1}))
    run, _ = step(run, partly)
    _, planned = step(run)
    (action,) = [a for a in planned.actions if isinstance(a, EnsureJob)]
    score = action.stage_input.from_upstream(StageKind.SCORE)
    assert score is not None
    assert (score.shards, score.prefix) == ("0,2-3", "s3://bucket/prefix/run-0f1e2d3c/i1/score/a1/")
    assert partly.digest is not None
    assert score.digest == partly.digest[:16]
    assert (action.shards, action.parallelism, action.max_failed_indexes) == (8, 8, 0)


@pytest.mark.parametrize("stage", stage_sequence(make_spec()), ids=str)
def test_every_stage_reads_what_the_contract_says_and_nothing_else(stage: StageRef) -> None:
    _, planned = step(drive_to(make_run(), stage))
    (action,) = [a for a in planned.actions if isinstance(a, EnsureJob)]
    before = stage_sequence(make_spec())
    before = before[: before.index(stage)]
    assert tuple(u.ref for u in action.stage_input.upstream) == upstream(stage, before)
    assert action.stage_input.best_iteration == (2 if stage == EXPORT else None)


def test_a_resumed_run_has_no_warm_up_and_its_evaluation_has_prepares_adapter() -> None:
    run = drive_to(make_run(make_spec(resumeFrom={"runName": "before"})), ref("evaluate"), at=0)
    assert WARMUP not in [r.ref for r in run.status.completed]
    run, _ = step(run, view_of(run, JobState.COMPLETE, summary=result(dev__call_accuracy=0.5)))
    assert run.status.best is not None
    assert run.status.best.adapter_uri == "s3://bucket/prefix/run-0f1e2d3c/i0/prepare/a1/adapter/"


def test_a_succeeded_stage_is_not_made_again_when_a_person_deletes_its_job() -> None:
    run = at_rollout()
    _, planned = step(run)  # every earlier Job is gone
    assert made(planned) == ["run-i1-rollout-a1"]


def test_a_job_deleted_by_a_person_is_made_again_under_its_attempt() -> None:
    run, _ = step(at_rollout())
    run, _ = step(run, view_of(run, JobState.ACTIVE))
    run, planned = step(run)
    assert made(planned) == ["run-i1-rollout-a1"]
    assert (run.status.failures, run.status.retries) == (0, 0)


def test_attempts_that_exist_already_are_adopted_when_the_status_was_lost() -> None:
    run, _ = step(make_run())
    third = view_of(run, JobState.ACTIVE, attempt=3)
    run, planned = step(run, third)
    assert (run.status.attempt, made(planned)) == (3, [])
    run, planned = step(run, third)
    assert (run.status.reason, made(planned)) == (Reason.STAGE_RUNNING, [])


# --- failures ---


@pytest.mark.parametrize(
    ("code", "reason"), [(64, Reason.CONFIG_ERROR), (65, Reason.DATA_ERROR), (70, Reason.PERMANENT_ERROR)]
)
def test_fatal_exit_codes_are_never_retried(code: int, reason: Reason) -> None:
    run, _ = step(make_run())
    run, planned = step(run, view_of(run, JobState.FAILED, exit_code=code, log_tail="x\nrow 7 has no id\n"), at=5)
    assert (run.status.phase, run.status.reason, run.status.completion_time) == (Phase.FAILED, reason, after(5))
    assert run.status.message == f"attempt 1 of i0/prepare failed with exit code {code}: row 7 has no id"
    assert events(planned) == [EventReason.FAILED]


def test_a_retryable_failure_is_recorded_first_then_cleaned_up_then_tried_again() -> None:
    run, _ = step(make_run())
    failed = view_of(run, JobState.FAILED, exit_code=75)
    run, first = step(run, failed, at=100)
    assert (deleted(first), made(first), events(first)) == ([], [], [EventReason.STAGE_RETRYING])
    assert (run.status.attempt, run.status.failures, run.status.retry_at) == (2, 1, after(110))
    run, second = step(run, failed, at=101)
    assert (deleted(second), made(second)) == ([failed.name], [])
    run, third = step(run, replace(failed, state=JobState.DELETING), at=112)
    assert (deleted(third), made(third), run.status.reason) == ([], [], Reason.WAITING_FOR_CLEANUP)
    run, fourth = step(run, at=113)
    assert made(fourth) == ["run-i0-prepare-a2"]
    run, _ = step(run, view_of(run, JobState.PENDING), at=114)
    assert run.status.retry_at is None


def test_both_attempts_of_an_input_share_their_work_prefix() -> None:
    run, _ = step(make_run())
    _, first = step(run)
    run, _ = step(run, view_of(run, JobState.FAILED, exit_code=75))
    _, second = step(run, at=60)
    one, two = (a.stage_input for p in (first, second) for a in p.actions if isinstance(a, EnsureJob))
    assert (one.digest, one.work_prefix) == (two.digest, two.work_prefix)
    assert one.output_prefix != two.output_prefix


def test_the_wait_for_an_attempt_that_cannot_be_deleted_is_bounded() -> None:
    """10 s of back-off, then ten minutes."""
    run, _ = step(make_run())
    failed = view_of(run, JobState.FAILED, exit_code=75)
    stuck = replace(failed, state=JobState.DELETING)
    run, _ = step(run, failed, at=0)
    run, early = step(run, stuck, at=609)
    assert (made(early), early.wake_after) == ([], after(1) - T0)
    run, late = step(run, stuck, at=610)
    assert made(late) == ["run-i0-prepare-a2"]


def test_a_job_of_our_own_that_cannot_be_deleted_gives_way_to_the_next_attempt() -> None:
    """Its name is taken, so a bound alone does not help; no failure is counted."""
    run, _ = step(make_run())
    stuck = view_of(run, JobState.DELETING)
    run, _ = step(run, stuck, at=0)
    assert run.status.reason == Reason.WAITING_FOR_CLEANUP
    run, _ = step(run, stuck, at=599)
    assert run.status.attempt == 1
    run, _ = step(run, stuck, at=600)
    assert (run.status.attempt, run.status.failures, run.status.preemptions) == (2, 0, 0)


def test_back_off_doubles_up_to_its_maximum_and_the_last_failure_ends_the_run() -> None:
    retry = {"limit": 4, "backoffSeconds": 10, "maxBackoffSeconds": 50}
    run, _ = step(make_run(make_spec(stages={"prepare": {"retry": retry}})))
    waits, at = [], 0.0
    for _ in range(4):
        run, _ = step(run, view_of(run, JobState.FAILED, exit_code=1), at=at)
        assert run.status.retry_at is not None
        waits.append((run.status.retry_at - after(at)).total_seconds())
        at += 60
    assert waits == [10, 20, 40, 50]
    run, _ = step(run, view_of(run, JobState.FAILED, exit_code=1), at=at)
    assert (run.status.phase, run.status.reason, run.status.retries) == (Phase.FAILED, Reason.RETRIES_EXHAUSTED, 4)
    assert "failure 5, stages.prepare.retry.limit is 4" in run.status.message


def test_each_stage_has_its_own_count_of_failures() -> None:
    run, _ = step(make_run())
    run, _ = step(run, view_of(run, JobState.FAILED, exit_code=75))
    run, _ = step(run, view_of(run, JobState.COMPLETE), at=60)
    assert (current_ref(run.status), run.status.failures, run.status.retries) == (WARMUP, 0, 1)


def test_out_of_memory_is_named() -> None:
    run, _ = step(make_run(make_spec(stages={"prepare": {"retry": {"limit": 0}}})))
    run, _ = step(run, view_of(run, JobState.FAILED, exit_code=137, reason="OOMKilled"))
    assert (run.status.phase, run.status.reason) == (Phase.FAILED, Reason.OUT_OF_MEMORY)
    assert "exit code 137 (OOMKilled); raise stages.prepare.resources.limits.memory" in run.status.message


@pytest.mark.parametrize("how", [{"exit_code": 143}, {"disrupted": True}, {"disrupted": True, "exit_code": 137}])
def test_a_disruption_is_never_a_failure_however_often_it_happens(how: dict[str, Any]) -> None:
    run, _ = step(make_run(make_spec(stages={"prepare": {"retry": {"limit": 0}}})))
    for number in range(1, 6):
        run, planned = step(run, view_of(run, JobState.FAILED, **how), at=60 * number)
        assert events(planned) == [EventReason.STAGE_DISRUPTED]
        assert (run.status.preemptions, run.status.failures, run.status.retries) == (number, 0, 0)
    assert run.status.phase == Phase.RUNNING


def test_only_the_deadline_bounds_disruptions() -> None:
    """30 s of running, 10 s of back-off, and so on: 100 s are passed in the third attempt, at 110 s."""
    run, _ = step(make_run(make_spec(activeDeadlineSeconds=100)))
    at = 0.0
    while not run.status.phase.terminal:
        seen = view_of(run, JobState.FAILED, disrupted=True, started=after(at), finished=after(at + 30))
        run, _ = step(run, seen, at=at + 30)
        at += 40
        assert at < 400
    assert (run.status.reason, run.status.preemptions) == (Reason.DEADLINE_EXCEEDED, 2)


def test_an_evicted_job_waits_again_and_counts_as_a_preemption() -> None:
    run, _ = step(make_run(make_spec(queue={"name": "v100"})))
    run, _ = step(run, view_of(run, JobState.ACTIVE))
    run, planned = step(run, view_of(run, JobState.WAITING), at=1)
    assert (run.status.phase, run.status.reason, run.status.preemptions) == (Phase.PENDING, Reason.WAITING_FOR_QUOTA, 1)
    assert events(planned) == [EventReason.STAGE_DISRUPTED, EventReason.WAITING]
    run, planned = step(run, view_of(run, JobState.WAITING), at=2)
    assert (run.status.preemptions, planned.actions) == (1, ())


# --- shards ---


@pytest.mark.parametrize(
    ("needed", "done", "ends"),
    [(6, 8, "succeeds"), (6, 6, "succeeds"), (6, 5, "fails"), (None, 7, "fails"), (1, 0, "fails")],
)
def test_a_sharded_stage_succeeds_with_its_quorum(needed: int | None, done: int, ends: str) -> None:
    rollout = {"minSucceeded": needed} if needed else {}
    run = at_rollout(stages={"rollout": rollout})
    completed = frozenset(range(done))
    missing = frozenset(range(8)) - completed
    view = view_of(run, JobState.FAILED, completed=completed, failed_indexes=missing, exit_code=75 if missing else None)
    run, _ = step(run, view)
    if ends == "succeeds":
        assert current_ref(run.status) == ref("train", 1)
        assert run.status.completed[-1].shards == f"0-{done - 1}"
    else:
        assert (run.status.phase, run.status.reason) == (Phase.FAILED, Reason.QUORUM_NOT_MET)
        assert f"{done} of 8 shards of i1/rollout succeeded, {needed or 8} are needed" in run.status.message


def test_a_job_still_running_is_not_judged_by_its_quorum() -> None:
    run = at_rollout(stages={"rollout": {"minSucceeded": 2}})
    run, planned = step(run, view_of(run, JobState.ACTIVE, completed=frozenset(range(7)), active=1))
    assert (current_ref(run.status), made(planned), deleted(planned)) == (ROLLOUT, [], [])
    assert (run.status.progress.done, run.status.progress.total, run.status.progress.percent) == (7, 8, 87)


def test_a_sharded_job_that_failed_without_any_failed_shard_is_tried_again() -> None:
    run = at_rollout()
    run, _ = step(run, view_of(run, JobState.FAILED, reason="DeadlineExceeded", completed=frozenset({0})))
    assert (run.status.reason, run.status.attempt) == (Reason.STAGE_RETRYING, 2)


def test_the_quorum_of_a_job_made_with_fewer_shards_allows_as_many_to_fail() -> None:
    """8 shards of which 6 are needed: two may fail, so 2 of 4 are enough for the Job that was made with 4."""
    run = at_rollout(stages={"rollout": {"shards": 4}})
    four = view_of(run, JobState.FAILED, shards=4, completed=frozenset({0, 3}), failed_indexes=frozenset({1, 2}))
    run = with_spec(run, stages={"rollout": {"shards": 8, "minSucceeded": 6}})
    run, _ = step(run, four)
    assert run.status.completed[-1].shards == "0,3"


# --- edits ---


def test_an_edit_does_not_touch_the_attempt_under_way_and_its_digest_is_kept() -> None:
    run, _ = step(drive_to(make_run(), WARMUP))
    running = view_of(run, JobState.ACTIVE)
    run, _ = step(run, running)
    edited = with_spec(run, stages={"warmup": {"learningRate": 0.01}})
    run, planned = step(edited, running)
    assert (made(planned), deleted(planned), run.status.attempt) == ([], [], 1)
    assert run.status.observed_generation == 2
    run, _ = step(run, replace(running, state=JobState.COMPLETE))
    assert running.digest is not None
    assert (run.status.completed[-1].ref, run.status.completed[-1].digest) == (WARMUP, running.digest[:16])


def test_an_edit_applies_to_the_next_attempt() -> None:
    run, _ = step(drive_to(make_run(), WARMUP))
    failed = view_of(run, JobState.FAILED, exit_code=75)
    run, _ = step(run, failed)
    run, planned = step(with_spec(run, stages={"warmup": {"learningRate": 0.01}}), at=60)
    (action,) = [a for a in planned.actions if isinstance(a, EnsureJob)]
    assert action.stage_input.spec["stage"]["learningRate"] == 0.01
    assert action.stage_input.digest != failed.digest


def test_more_iterations_may_be_asked_for_until_export_starts() -> None:
    run = drive_to(make_run(make_spec(iterations={"max": 1})), ref("evaluate", 1))
    longer = with_spec(run, iterations={"max": 2})
    done, _ = step(longer, view_of(longer, JobState.COMPLETE))
    assert current_ref(done.status) == ref("score", 2)

    run, _ = step(run, view_of(run, JobState.COMPLETE))
    assert (current_ref(run.status), run.status.last_iteration) == (EXPORT, 1)
    late, _ = step(with_spec(run, iterations={"max": 2}), view_of(run, JobState.COMPLETE))
    assert (late.status.phase, late.status.reason) == (Phase.SUCCEEDED, Reason.STOPPED_EARLY)


def test_a_stage_enabled_after_its_turn_does_not_send_the_run_back() -> None:
    run = drive_to(make_run(make_spec(stages={"warmup": {"enabled": False}})), ref("score", 1))
    run = with_spec(run, stages={})
    run, _ = step(run, view_of(run, JobState.COMPLETE))
    assert current_ref(run.status) == ROLLOUT


def test_a_stage_disabled_while_it_runs_is_finished() -> None:
    run = drive_to(make_run(), ref("evaluate", 1))
    run = with_spec(run, stages={"evaluate": {"enabled": False}})
    run, planned = step(run, view_of(run, JobState.ACTIVE))
    assert (current_ref(run.status), deleted(planned)) == (ref("evaluate", 1), [])
    run, _ = step(run, view_of(run, JobState.COMPLETE))
    assert current_ref(run.status) == ref("score", 2)


def test_an_attempt_that_outlived_its_stage_is_deleted() -> None:
    """Attempt 1 hung on a dead node, attempt 2 completed, then the node came back."""
    run, _ = step(make_run())
    zombie = view_of(run, JobState.ACTIVE)
    run, _ = step(run, view_of(run, JobState.FAILED, exit_code=75))
    run, _ = step(run, view_of(run, JobState.COMPLETE), at=1000)
    assert current_ref(run.status) == WARMUP
    _, planned = step(run, zombie, at=1001)
    assert deleted(planned) == [zombie.name]


# --- names that are taken, creations that are refused ---


def test_a_foreign_job_under_our_name_fails_the_run_and_is_left_alone() -> None:
    run, _ = step(make_run())
    foreign = view_of(run, JobState.ACTIVE, foreign=True)
    run, planned = step(run, foreign)
    assert (run.status.phase, run.status.reason) == (Phase.FAILED, Reason.FOREIGN_OBJECT)
    _, later = step(run, foreign)
    assert deleted(planned) == deleted(later) == []


def test_a_foreign_job_under_another_stages_name_is_nobodys_business() -> None:
    run, _ = step(make_run())
    other = view_of(drive_to(make_run(), WARMUP), JobState.COMPLETE, foreign=True)
    run, planned = step(run, other)
    assert made(planned) == ["run-i0-prepare-a1"]


def test_leftovers_of_a_former_run_are_waited_for() -> None:
    run, _ = step(make_run())
    left = view_of(run, JobState.COMPLETE, former_run=True, attempt=1)
    run, planned = step(run, left)
    assert (made(planned), deleted(planned), run.status.reason) == ([], [], Reason.WAITING_FOR_CLEANUP)
    assert run.status.completed == []
    run, planned = step(run)
    assert made(planned) == [left.name]


@pytest.mark.parametrize(("forbidden", "reason"), [(True, Reason.CREATE_FORBIDDEN), (False, Reason.CREATE_REJECTED)])
def test_a_refused_creation_is_shown_and_tried_again(forbidden: bool, reason: Reason) -> None:
    run, _ = step(make_run())
    refusal = Refusal(job_name="run-i0-prepare-a1", forbidden=forbidden, message="exceeded quota: gpus")
    planned = plan(run, Observed(refusal=refusal), T0)
    assert (planned.status.reason, planned.status.message) == (
        reason,
        "creating run-i0-prepare-a1: exceeded quota: gpus",
    )
    assert (made(planned), events(planned)) == (["run-i0-prepare-a1"], [EventReason.CREATE_REFUSED])
    again = plan(replace(run, status=planned.status), Observed(refusal=refusal), T0)
    assert (made(again), events(again), again.wake_after) == (["run-i0-prepare-a1"], [], after(60) - T0)


def test_an_invalid_spec_stalls_the_run_without_ending_it() -> None:
    run, _ = step(make_run())
    status = invalid_spec_status(run.status, generation=4, message="m" * 1000, now=T0)
    assert (status.phase, status.reason, status.observed_generation) == (Phase.PENDING, Reason.INVALID_SPEC, 4)
    assert len(status.message) == 512
    assert {c.type.value for c in status.conditions if c.status == "True"} == {"Stalled"}


# --- the end ---


def ended(phase: Phase = Phase.SUCCEEDED, **fields: Any) -> Run:
    run = drive_to(make_run(make_spec(**fields)), EXPORT)
    code = None if phase == Phase.SUCCEEDED else 64
    state = JobState.COMPLETE if phase == Phase.SUCCEEDED else JobState.FAILED
    run, _ = step(run, view_of(run, state, exit_code=code))
    assert run.status.phase == phase
    return run


@pytest.mark.parametrize("phase", [Phase.SUCCEEDED, Phase.FAILED])
@pytest.mark.parametrize("state", list(JobState))
def test_a_terminal_phase_latches_whatever_is_observed(phase: Phase, state: JobState) -> None:
    run = ended(phase)
    for edit in ({}, {"suspend": True}, {"iterations": {"max": 9}}, {"activeDeadlineSeconds": 1}):
        after_edit, planned = step(with_spec(run, **edit), view_of(run, state), at=10**6)
        keep = {"conditions", "observed_generation"}
        assert after_edit.status.model_dump(exclude=keep) == run.status.model_dump(exclude=keep)
        assert (made(planned), events(planned)) == ([], [])
        assert deleted(planned) == ([view_of(run, state).name] if state.live else [])


def test_children_are_deleted_when_their_time_is_up_and_not_before() -> None:
    run = ended(ttlSecondsAfterFinished=60)
    jobs = (view_of(run, JobState.COMPLETE), view_of(run, JobState.COMPLETE, attempt=2, name="another"))
    run, early = step(run, *jobs, at=59)
    assert (deleted(early), early.wake_after) == ([], after(1) - T0)
    _, late = step(run, *jobs, at=60)
    assert deleted(late) == ["another", jobs[0].name]
    _, gone = step(run, at=61)
    assert (gone.actions, gone.wake_after) == ((), None)


# --- totality ---


def test_an_observation_beyond_all_bounds_makes_a_valid_status() -> None:
    run = at_rollout(stages={"rollout": {"shards": 10_000, "minSucceeded": 1}})
    wild = {
        "uid": "u" * 500,
        "message": "m" * 5000,
        "digest": "not a digest",
        "progress_text": "t" * 500,
        "progress_done": -5,
        "progress_total": -1,
        "active": -1,
        "completed": frozenset(range(0, 10_000, 2)),
        "failed_indexes": frozenset(range(1, 10_000, 2)),
        "summary": result(message="s" * 4000, **{"x" * 80: 1.0}),
    }
    for state in JobState:
        after_pass, _ = step(run, view_of(run, state, **wild))
        stored = after_pass.status.model_dump_json(by_alias=True, exclude_none=True)
        assert ITrainRunStatus.model_validate_json(stored) == after_pass.status


def test_a_stage_is_never_recorded_twice() -> None:
    run, _ = step(make_run())
    done = view_of(run, JobState.COMPLETE)
    once, _ = step(run, done)
    back = once.status.model_copy(update={"stage": StageKind.PREPARE})
    twice, _ = step(replace(once, status=back), done)
    assert twice.status.completed == once.status.completed
    assert current_ref(twice.status) == WARMUP


def test_a_pass_in_which_nothing_happens_writes_nothing() -> None:
    run, _ = step(make_run())
    running = view_of(run, JobState.ACTIVE, started=after(0))
    run, _ = step(run, running, at=1)
    same, planned = step(run, running, at=20)
    assert (same.status, planned.actions) == (run.status, ())
    recorded, _ = step(run, running, at=31)
    assert recorded.status.running_seconds == 31


def test_a_clock_that_jumps_back_neither_fails_nor_delays_beyond_the_back_off() -> None:
    run, _ = step(make_run())
    running = view_of(run, JobState.ACTIVE, started=after(0))
    run, _ = step(run, running, at=100)
    run, _ = step(run, replace(running, state=JobState.FAILED, exit_code=75), at=-7200)
    assert run.status.running_seconds == 100
    run, _ = step(replace(run, status=run.status.model_copy(update={"retry_at": after(50_000)})), at=-7200)
    assert run.status.retry_at == after(-7200 + 600)


def test_of_two_observations_of_a_name_the_younger_job_counts() -> None:
    run, _ = step(make_run())
    old = view_of(run, JobState.FAILED, exit_code=75, uid="old", started=after(0))
    new = view_of(run, JobState.ACTIVE, uid="new", started=after(50))
    for jobs in ((old, new), (new, old)):
        seen, _ = step(run, *jobs, at=60)
        assert (seen.status.reason, seen.status.attempt) == (Reason.STAGE_RUNNING, 1)


def test_of_two_observations_of_one_job_the_further_counts() -> None:
    run, _ = step(make_run())
    views: list[JobView] = [view_of(run, state) for state in (JobState.PENDING, JobState.COMPLETE, JobState.ACTIVE)]
    run, _ = step(run, *views)
    assert current_ref(run.status) == WARMUP
