"""Conditions after kstatus: abnormal-true, no Ready, transition times that mean something."""

from __future__ import annotations

from itrain_contract.names import ConditionType, Phase, Reason
from itrain_operator.conditions import Wanted, merge_conditions
from itrain_operator.observed import JobState, Run
from itrain_testing.builders import after, drive_to, make_run, make_spec, ref, step, view_of, with_spec


def true_of(run: Run) -> set[str]:
    return {c.type.value for c in run.status.conditions if c.status == "True"}


def present(run: Run) -> set[str]:
    return {c.type.value for c in run.status.conditions}


def test_a_run_reconciles_until_its_first_job_is_seen_then_it_is_current() -> None:
    run, _ = step(make_run())
    assert true_of(run) == {"Reconciling"}
    run, _ = step(run, view_of(run, JobState.PENDING))
    assert true_of(run) == set()
    run, _ = step(run, view_of(run, JobState.ACTIVE))
    assert true_of(run) == {"Running"}


def test_between_two_stages_nothing_reconciles_and_nothing_stalls() -> None:
    run = drive_to(make_run(), ref("score", 1))
    assert true_of(run) == set()


def test_a_wait_for_quota_is_not_suspended_and_shows_as_quota_not_reserved() -> None:
    run, _ = step(make_run(make_spec(queue={"name": "v100"})))
    assert "QuotaReserved" not in present(run)
    run, _ = step(run, view_of(run, JobState.WAITING))
    assert true_of(run) == set()
    assert {"QuotaReserved", "Suspended"} <= present(run)
    run, _ = step(run, view_of(run, JobState.ACTIVE))
    assert true_of(run) == {"QuotaReserved", "Running"}


def test_a_pause_by_the_user_is_suspended_and_tears_down_first() -> None:
    run, _ = step(make_run())
    running = view_of(run, JobState.ACTIVE)
    run, _ = step(run, running)
    run, _ = step(with_spec(run, suspend=True), running)
    assert {"Suspended", "Reconciling"} <= true_of(run)
    run, _ = step(run)
    assert true_of(run) == {"Suspended"}


def test_an_image_that_cannot_be_pulled_stalls_the_run_with_the_servers_words() -> None:
    run, _ = step(make_run())
    run, planned = step(run, view_of(run, JobState.PENDING, reason="ImagePullBackOff", message="not found: trainer:9"))
    assert true_of(run) == {"Stalled"}
    (stalled,) = [c for c in run.status.conditions if c.type == ConditionType.STALLED]
    assert (stalled.reason, "not found: trainer:9" in stalled.message) == (Reason.IMAGE_PULL_FAILED, True)
    assert [action.type for action in planned.actions] == ["Warning"]
    run, planned = step(run, view_of(run, JobState.PENDING, reason="ImagePullBackOff", message="not found: trainer:9"))
    assert planned.actions == ()


def test_succeeded_and_failed_are_present_only_at_the_end_and_exclude_each_other() -> None:
    run = drive_to(make_run(), ref("export"))
    assert not {"Succeeded", "Failed"} & present(run)
    done, _ = step(run, view_of(run, JobState.COMPLETE))
    assert (done.status.phase, true_of(done)) == (Phase.SUCCEEDED, {"Succeeded"})
    failed, _ = step(run, view_of(run, JobState.FAILED, exit_code=64))
    assert (failed.status.phase, true_of(failed)) == (Phase.FAILED, {"Failed", "Stalled"})


def test_transition_times_move_only_with_the_status_of_the_condition() -> None:
    def wanted(status: bool, reason: Reason) -> tuple[Wanted, ...]:
        return (Wanted(type=ConditionType.RUNNING, status=status, reason=reason),)

    first = merge_conditions([], wanted(True, Reason.STAGE_RUNNING), generation=1, now=after(0))
    same = merge_conditions(first, wanted(True, Reason.STAGE_RETRYING), generation=2, now=after(60))
    other = merge_conditions(same, wanted(False, Reason.WAITING_FOR_NODES), generation=2, now=after(90))
    assert [c[0].last_transition_time for c in (first, same, other)] == [after(0), after(0), after(90)]
    assert [c[0].observed_generation for c in (first, same, other)] == [1, 2, 2]
    assert [c[0].reason for c in (first, same)] == [Reason.STAGE_RUNNING, Reason.STAGE_RETRYING]


def test_every_condition_carries_the_generation_that_it_speaks_of() -> None:
    run, _ = step(make_run())
    run, _ = step(with_spec(run, historyLimit=3), view_of(run, JobState.ACTIVE))
    assert {c.observed_generation for c in run.status.conditions} == {run.status.observed_generation} == {2}


def test_an_edit_after_the_end_is_observed_and_changes_nothing_else() -> None:
    run = drive_to(make_run(), ref("export"))
    run, _ = step(run, view_of(run, JobState.COMPLETE))
    edited, _ = step(with_spec(run, ttlSecondsAfterFinished=999), at=50)
    assert edited.status.observed_generation == run.status.observed_generation + 1
    assert true_of(edited) == {"Succeeded"}
