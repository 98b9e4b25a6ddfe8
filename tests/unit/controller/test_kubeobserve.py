"""Jobs as a real API server writes them, seen as the planner wants them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from itrain_contract.names import ExitCode
from itrain_operator.kubeobserve import JobDetails, indexes, job_view, parse_job
from itrain_operator.observed import JobState, JobView
from itrain_testing.builders import ref

RUN_UID = "7c1d1c4e-5a0f-4a52-9b44-3d2b6f1f0c11"


def owner(uid: str = RUN_UID) -> dict[str, Any]:
    return {
        "apiVersion": "itrain.dev/v1alpha1",
        "kind": "ITrainRun",
        "name": "run",
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def job(
    stage: str = "rollout", status: dict[str, Any] | None = None, *, suspend: bool = False, **metadata: Any
) -> dict[str, Any]:
    """A Job with the fields that the API server adds."""
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": f"run-i1-{stage}-a2",
            "namespace": "team",
            "uid": "job-uid",
            "resourceVersion": "812",
            "generation": 1,
            "creationTimestamp": "2026-11-25T16:17:57Z",
            "labels": {
                "itrain.dev/run": "run",
                "itrain.dev/run-uid": RUN_UID,
                "itrain.dev/iteration": "1",
                "itrain.dev/stage": stage,
                "itrain.dev/attempt": "2",
            },
            "annotations": {
                "itrain.dev/input-digest": "ab" * 32,
                "itrain.dev/template-hash": "0123456789abcdef",
                "batch.kubernetes.io/job-tracking": "",
            },
            "ownerReferences": [owner()],
            **metadata,
        },
        "spec": {
            "parallelism": 3,
            "completions": 3,
            "completionMode": "Indexed",
            "backoffLimitPerIndex": 3,
            "suspend": suspend,
            "template": {"spec": {}},
        },
        "status": status or {},
    }


def view(raw: dict[str, Any], details: JobDetails | None = None) -> JobView:
    record = parse_job(raw)
    return job_view(record, run_uid=RUN_UID, ref=ref("prepare"), details=details or JobDetails())


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ({}, JobState.PENDING),
        ({"startTime": "2026-11-25T16:17:57Z", "active": 3, "ready": 0, "terminating": 0}, JobState.PENDING),
        ({"active": 3, "ready": 2}, JobState.ACTIVE),
        ({"active": 1, "ready": 0, "failed": 1}, JobState.ACTIVE),
        ({"active": 0, "ready": 0, "uncountedTerminatedPods": {"succeeded": ["pod-uid"]}}, JobState.ACTIVE),
        ({"active": 1, "ready": 0, "uncountedTerminatedPods": {}}, JobState.PENDING),
        ({"active": 1, "ready": 0, "succeeded": 2, "completedIndexes": "0,1"}, JobState.ACTIVE),
        ({"conditions": [{"type": "SuccessCriteriaMet", "status": "True"}], "succeeded": 3}, JobState.ACTIVE),
        ({"conditions": [{"type": "FailureTarget", "status": "True"}], "failed": 1}, JobState.ACTIVE),
        ({"conditions": [{"type": "Complete", "status": "False"}]}, JobState.PENDING),
        ({"conditions": [{"type": "Complete", "status": "True"}], "succeeded": 3}, JobState.COMPLETE),
        ({"conditions": [{"type": "Failed", "status": "True"}], "failed": 3}, JobState.FAILED),
    ],
)
def test_the_state_of_a_job_follows_from_its_status(status: dict[str, Any], state: JobState) -> None:
    assert view(job(status=status)).state == state


def test_a_job_that_its_queue_holds_waits_and_one_that_is_deleted_is_neither_running_nor_ended() -> None:
    held = {"conditions": [{"type": "Suspended", "status": "True"}]}
    assert view(job(status=held, suspend=True)).state == JobState.WAITING
    done = {"conditions": [{"type": "Complete", "status": "True"}]}
    assert view(job(status=done, deletionTimestamp="2026-11-25T16:18:00Z")).state == JobState.DELETING


def test_a_running_sharded_job_shows_counts_indexes_and_identity() -> None:
    status = {
        "startTime": "2026-11-25T16:17:57Z",
        "active": 2,
        "ready": 1,
        "succeeded": 1,
        "failed": 2,
        "completedIndexes": "0",
        "failedIndexes": "2",
    }
    assert view(job(status=status)) == JobView(
        name="run-i1-rollout-a2",
        uid="job-uid",
        ref=ref("rollout", 1),
        attempt=2,
        state=JobState.ACTIVE,
        digest="ab" * 32,
        shards=3,
        active=1,
        succeeded=1,
        failed=2,
        completed=frozenset({0}),
        failed_indexes=frozenset({2}),
        started=datetime(2026, 11, 25, 16, 17, 57, tzinfo=UTC),
    )


def test_the_nodes_of_a_training_are_no_shards() -> None:
    seen = view(job("train", {"active": 3, "ready": 3, "completedIndexes": "1"}))
    assert (seen.shards, seen.completed, seen.active) == (None, frozenset(), 3)


def test_a_failed_job_tells_its_exit_code_although_its_pods_are_gone() -> None:
    """The message as Kubernetes 1.34 writes it."""
    message = (
        "Container stage for pod team/run-i0-warmup-a1-8xk2v failed with exit code 65 matching FailJob rule at index 1"
    )
    failed = {
        "type": "Failed",
        "status": "True",
        "reason": "PodFailurePolicy",
        "message": message,
        "lastTransitionTime": "2026-11-25T16:20:00Z",
    }
    seen = view(job("train", {"failed": 1, "conditions": [failed]}))
    assert (seen.exit_code, seen.reason, seen.disrupted) == (ExitCode.DATA, "PodFailurePolicy", False)
    assert seen.finished == datetime(2026, 11, 25, 16, 20, tzinfo=UTC)


def test_a_job_that_failed_by_a_disruption_is_disrupted() -> None:
    message = "Pod team/run-i1-train-a2-0-x has condition DisruptionTarget matching FailJob rule at index 0"
    failed = {"type": "Failed", "status": "True", "reason": "PodFailurePolicy", "message": message}
    seen = view(job("train", {"failed": 1, "conditions": [failed]}))
    assert (seen.disrupted, seen.exit_code) == (True, None)


@pytest.mark.parametrize(
    ("details", "code"),
    [(JobDetails(), ExitCode.INTERRUPTED), (JobDetails(reason="UnexpectedAdmissionError"), None)],
)
def test_a_job_that_no_rule_failed_was_asked_to_stop_unless_its_pod_says_else(
    details: JobDetails, code: int | None
) -> None:
    failed = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "Job has reached…"}
    assert view(job("train", {"failed": 1, "conditions": [failed]}), details).exit_code == code


def test_what_the_pods_said_goes_before_what_the_job_says() -> None:
    failed = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "Job has reached…"}
    details = JobDetails(exit_code=137, reason="OOMKilled", message="exit code 137", log_tail="last line")
    seen = view(job("train", {"failed": 1, "conditions": [failed]}), details)
    assert (seen.exit_code, seen.reason, seen.message, seen.log_tail) == (
        137,
        "OOMKilled",
        "exit code 137",
        "last line",
    )


@pytest.mark.parametrize(
    ("changes", "ours", "former", "foreign"),
    [
        ({}, True, False, False),
        ({"ownerReferences": [owner("another-uid")]}, False, True, False),
        ({"ownerReferences": []}, False, False, True),
        ({"ownerReferences": [{**owner(), "apiVersion": "other.dev/v1"}]}, False, False, True),
        ({"ownerReferences": [], "labels": {"itrain.dev/run": "run", "itrain.dev/run-uid": "old"}}, False, True, False),
        ({"labels": {}}, False, False, True),
        ({"ownerReferences": [], "labels": None}, False, False, True),
        ({"labels": {"itrain.dev/stage": "rollout", "itrain.dev/iteration": "x"}}, False, False, True),
    ],
)
def test_owner_and_labels_decide_whose_a_job_is(
    changes: dict[str, Any], ours: bool, former: bool, foreign: bool
) -> None:
    seen = view(job(**changes))
    assert (seen.ours, seen.former_run, seen.foreign) == (ours, former, foreign)


def test_indexes_that_cannot_be_read_are_none() -> None:
    assert indexes("0-2,7") == frozenset({0, 1, 2, 7})
    assert indexes("many") == frozenset()


def test_a_record_is_small_enough_for_fifteen_thousand_jobs() -> None:
    import tracemalloc

    raws = [job(uid=f"job-{n}", name=f"run-i1-rollout-a{n}") for n in range(200)]
    tracemalloc.start()
    records = [parse_job(raw) for raw in raws]
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size / len(records) < 1500
