"""What is asked of a queue, how often, and what is made of the answer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from itrain_operator.actions import SetActive
from itrain_operator.kubeapi import WORKLOADS, ApiError, NotFoundError, Raw, RefusedError, UnavailableError
from itrain_operator.kubeobserve import JobRecord, parse_job
from itrain_operator.observed import QueueView
from itrain_operator.workloads import NOT_QUEUED, WorkloadReader, queue_view
from itrain_testing.fakecluster import FakeCluster, FakeServer, Request

UID = "uid-of-the-job"
NAME = "job-run-i1-rollout-a1-abcde"


def job(*, suspended: bool = True, queue: str = "v100") -> JobRecord:
    labels = {"itrain.dev/run": "run", **({"kueue.x-k8s.io/queue-name": queue} if queue else {})}
    metadata = {"name": "run-i1-rollout-a1", "namespace": "team", "uid": UID, "labels": labels}
    return parse_job({"metadata": metadata, "spec": {"suspend": suspended}, "status": {"ready": int(not suspended)}})


def workload(*conditions: tuple[str, str, str, str], active: bool = True) -> Raw:
    """Conditions as type, status, reason, message."""
    fields = ("type", "status", "reason", "message")
    return {
        "metadata": {"name": NAME, "namespace": "team", "labels": {"kueue.x-k8s.io/job-uid": UID}},
        "spec": {"active": active},
        "status": {"conditions": [dict(zip(fields, condition, strict=True)) for condition in conditions]},
    }


class World:
    """A server, a reader and a clock."""

    def __init__(self, *workloads: Raw, enabled: bool = True) -> None:
        self.server = FakeServer()
        for raw in workloads:
            self.server.add(WORKLOADS, raw)
        self.now = 0.0
        self.reader = WorkloadReader(FakeCluster(self.server), enabled=enabled, clock=lambda: self.now)

    def view(self, record: JobRecord, *, needed: bool = False) -> QueueView | None:
        return asyncio.run(self.reader.view(record, needed=needed))

    def fail(self, error: ApiError) -> None:
        def fault(request: Request) -> ApiError:
            return error

        self.server.before = fault


PENDING = ("QuotaReserved", "False", "Pending", "insufficient unused quota for cpu")
RESERVED = ("QuotaReserved", "True", "QuotaReserved", "Quota reserved in ClusterQueue all")
PREEMPTED = ("Evicted", "True", "Preempted", "Preempted to accommodate a workload")


@pytest.mark.parametrize(
    ("raw", "reason", "message", "active"),
    [
        (workload(), "", "", True),
        (workload(PENDING), "Pending", PENDING[3], True),
        (workload(RESERVED, PREEMPTED), "Preempted", PREEMPTED[3], True),
        (workload(PENDING, PREEMPTED), "Preempted", PENDING[3], True),
        (workload(PENDING, ("Evicted", "False", "QuotaReserved", "Previously")), "Pending", PENDING[3], True),
        (
            workload(RESERVED, ("Admitted", "False", "UnsatisfiedChecks", "not all checks ready")),
            "UnsatisfiedChecks",
            "not all checks ready",
            True,
        ),
        (workload(RESERVED, ("Admitted", "True", "Admitted", "The workload is admitted")), "", "", True),
        (workload(RESERVED, active=False), "Deactivated", f"spec.active of Workload {NAME} is false", False),
        (
            workload(PENDING, ("Evicted", "True", "DeactivatedDueToRequeuingLimitExceeded", "too often"), active=False),
            "DeactivatedDueToRequeuingLimitExceeded",
            PENDING[3],
            False,
        ),
    ],
)
def test_a_workload_is_one_reason_and_one_message(raw: Raw, reason: str, message: str, active: bool) -> None:
    assert queue_view(raw) == QueueView(workload=NAME, active=active, reason=reason, message=message)


def test_a_job_that_waits_is_asked_after_now_and_then() -> None:
    world = World(workload(PENDING))
    for second in range(61):
        world.now = float(second)
        found = world.view(job())
        assert found is not None
        assert found.reason == "Pending"
    assert len(world.server.requests) == 4
    wake = world.reader.wake_s(job())
    assert wake is not None
    assert 0 < wake <= 20


def test_many_that_wait_share_the_requests() -> None:
    world = World()
    records = []
    for number in range(400):
        labels = {"kueue.x-k8s.io/queue-name": "v100"}
        metadata = {"name": f"j{number}", "namespace": "team", "uid": f"u{number}", "labels": labels}
        raw: Raw = {"metadata": metadata, "spec": {"suspend": True}}
        records.append(parse_job(raw))
    for second in range(0, 300, 2):
        world.now = float(second)
        for record in records:
            world.view(record)
    assert len(world.server.requests) <= 400 * 2 + 300 * 10 + 400


@pytest.mark.parametrize(
    ("record", "enabled"),
    [(job(queue=""), True), (job(), False), (job(suspended=False), True)],
    ids=["in no queue", "not enabled", "runs"],
)
def test_nothing_is_asked_of_a_job_that_waits_for_no_queue(record: JobRecord, enabled: bool) -> None:
    world = World(workload(PENDING), enabled=enabled)
    assert world.view(record) is None
    assert world.server.requests == []
    assert world.reader.wake_s(record) is None


def test_a_pause_asks_whatever_the_job_does() -> None:
    world = World(workload(RESERVED))
    found = world.view(job(suspended=False), needed=True)
    assert found is not None
    assert (found.workload, found.active) == (NAME, True)


def test_a_job_without_a_workload_is_given_a_moment_before_that_is_said() -> None:
    world = World()
    assert world.view(job()) is None
    world.now = 3.0
    assert world.view(job()) == NOT_QUEUED
    assert world.view(job(), needed=True) == NOT_QUEUED


@pytest.mark.parametrize("error", [RefusedError("forbidden", code=403), NotFoundError("no such resource")])
def test_who_may_not_ask_knows_nothing_and_goes_on(error: ApiError) -> None:
    world = World(workload(PENDING))
    world.fail(error)
    assert world.view(job()) is None
    assert world.view(job(), needed=True) is None


def test_a_server_that_does_not_answer_stops_a_pause_and_not_a_wait() -> None:
    world = World(workload(PENDING))
    before = world.view(job())
    world.fail(UnavailableError("no answer"))
    world.now = 100.0
    assert world.view(job()) == before
    with pytest.raises(UnavailableError):
        world.view(job(), needed=True)


def test_setting_active_is_known_at_once_and_is_no_error_when_the_workload_is_gone() -> None:
    world = World(workload(PENDING))
    world.view(job())
    asyncio.run(world.reader.set_active("team", SetActive(job_uid=UID, workload=NAME, active=False)))
    found = world.view(job())
    assert found is not None
    assert not found.active
    assert world.reader.wake_s(job()) is None
    stored: Any = world.server.find(WORKLOADS, "team", NAME)
    assert stored["spec"]["active"] is False
    asyncio.run(world.reader.set_active("team", SetActive(job_uid="gone", workload="gone", active=True)))
