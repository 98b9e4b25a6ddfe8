"""A pause and its end through the queue, on an API server in memory, with an operator that dies after any request."""

from __future__ import annotations

from typing import Any

from itrain_contract.names import Phase, Reason
from itrain_operator.kubeapi import JOBS, RUNS, WORKLOADS, Raw, RefusedError
from itrain_operator.settings import KueueSettings
from itrain_testing.clusterruns import SETTINGS, jobs_made, run_manifest
from itrain_testing.fakecluster import FakeServer, Fault, Request
from itrain_testing.fakejobs import JobWorld
from itrain_testing.fakeoperator import FakeOperator, KilledError

JOB = "run-i0-prepare-a1"


class QueueWorld(JobWorld):
    """Every Job for a queue gets a Workload at once; one that is active has quota, unless it is `full`."""

    full = False

    def tick(self) -> None:
        for job in self.server.all(JOBS):
            if not job.get("status", {}).get("conditions") and "deletionTimestamp" not in job["metadata"]:
                self._decide(job)
        super().tick()

    def _decide(self, job: Raw) -> None:
        metadata, name = job["metadata"], f"job-{job['metadata']['name']}"
        workload = self.server.find(WORKLOADS, metadata["namespace"], name)
        if workload is None:
            labels = {"kueue.x-k8s.io/job-uid": metadata["uid"]}
            found: Raw = {"metadata": {"name": name, "namespace": metadata["namespace"], "labels": labels}}
            workload = self.server.add(WORKLOADS, {**found, "spec": {"active": True}})
        held = self.full or not workload["spec"]["active"]
        if bool(job["spec"].get("suspend")) != held:
            job["spec"]["suspend"] = held
            job["status"] = {}
            self.server.touch(JOBS, job)

    def _advance(self, job: Raw) -> None:
        if not job["spec"].get("suspend"):
            super()._advance(job)


def operator_with_queue(*, enabled: bool = True) -> FakeOperator:
    server = FakeServer()
    server.add(RUNS, run_manifest(queue={"name": "gpus"}))
    settings = SETTINGS.model_copy(update={"kueue": KueueSettings(enabled=enabled)})
    return FakeOperator(server, QueueWorld(server), settings)


def edit(operator: FakeOperator, **fields: Any) -> None:
    operator.server.edit(RUNS, "team", "run", lambda raw: raw["spec"].update(fields))


def job(operator: FakeOperator) -> Raw | None:
    return operator.server.find(JOBS, "team", JOB)


def active(operator: FakeOperator) -> bool:
    (workload,) = operator.server.all(WORKLOADS)
    return bool(workload["spec"]["active"])


def paused_and_resumed(operator: FakeOperator) -> None:
    """The run's first Job is paused while its pods run, and let go twenty ticks later; then the run goes to its end."""
    operator.live(10, until=lambda: operator.status().reason == Reason.STAGE_RUNNING)
    edit(operator, suspend=True)
    operator.live(10)
    assert operator.status().phase == Phase.SUSPENDED
    edit(operator, suspend=False)
    operator.live(200, until=operator.ended)


def test_a_pause_keeps_the_job_and_its_end_lets_it_go() -> None:
    operator = operator_with_queue()
    operator.live(10, until=lambda: operator.status().reason == Reason.STAGE_RUNNING)
    before = job(operator)
    assert before is not None
    uid = before["metadata"]["uid"]
    edit(operator, suspend=True)
    operator.live(10)
    held = job(operator)
    assert held is not None
    assert (held["metadata"]["uid"], held["spec"]["suspend"], active(operator)) == (uid, True, False)
    requests = len(operator.server.requests)
    operator.live(10)
    assert len(operator.server.requests) - requests <= 4  # of hundred seconds at rest
    edit(operator, suspend=False)
    operator.live(200, until=operator.ended)
    status = operator.status()
    assert (status.phase, status.preemptions, status.retries) == (Phase.SUCCEEDED, 0, 0)
    assert len(jobs_made(operator.server)) == 8
    assert operator.errors == []


def test_an_operator_killed_after_any_request_of_a_pause_loses_nothing() -> None:
    undisturbed = operator_with_queue()
    paused_and_resumed(undisturbed)
    total = len(undisturbed.server.requests)
    for cut in range(total):
        operator = operator_with_queue()
        kill_after(operator, cut)
        paused_and_resumed(operator)
        status = operator.status()
        what = f"cut after {operator.server.requests[cut]}"
        assert operator.deaths <= 1, what  # a request that the server refuses has no answer to die after
        assert (status.phase, status.preemptions, status.retries) == (Phase.SUCCEEDED, 0, 0), what
        assert len(jobs_made(operator.server)) == 8, what


def kill_after(operator: FakeOperator, number: int) -> None:
    def fault(request: Request) -> Fault:
        return KilledError() if request.number == number else None

    operator.server.after = fault


def test_without_the_setting_a_pause_deletes_the_job_and_asks_for_no_workload() -> None:
    operator = operator_with_queue(enabled=False)
    paused_and_resumed(operator)
    assert operator.status().phase == Phase.SUCCEEDED
    assert jobs_made(operator.server)[:2] == [JOB, JOB]
    assert not [request for request in operator.server.requests if request.resource == WORKLOADS]


def test_without_the_rights_a_pause_deletes_the_job() -> None:
    operator = operator_with_queue()

    def forbidden(request: Request) -> Fault:
        return RefusedError("workloads is forbidden", code=403) if request.resource == WORKLOADS else None

    operator.server.before = forbidden
    paused_and_resumed(operator)
    assert operator.status().phase == Phase.SUCCEEDED
    assert jobs_made(operator.server)[:2] == [JOB, JOB]


def test_a_preemption_is_counted_and_the_run_says_what_it_waits_for() -> None:
    operator = operator_with_queue()
    world = operator.world
    assert isinstance(world, QueueWorld)
    operator.live(10, until=lambda: operator.status().reason == Reason.STAGE_RUNNING)
    world.full = True
    operator.live(5)
    status = operator.status()
    assert (status.phase, status.reason, status.preemptions) == (Phase.PENDING, Reason.WAITING_FOR_QUOTA, 1)
    assert status.message == f"{JOB} waits for quota in queue gpus"
    world.full = False
    operator.live(200, until=operator.ended)
    status = operator.status()
    assert (status.phase, status.preemptions, status.retries) == (Phase.SUCCEEDED, 1, 0)
    assert len(jobs_made(operator.server)) == 8


def test_a_job_is_given_to_its_queue_suspended_and_never_changed() -> None:
    operator = operator_with_queue()
    paused_and_resumed(operator)
    writes = [request for request in operator.server.requests if request.writes and request.resource == JOBS]
    assert {request.verb for request in writes} == {"create"}
