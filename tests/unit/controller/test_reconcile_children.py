"""Children of a run over its life: made in order, cleaned up, never made again on the word of an old cache."""

from __future__ import annotations

import pytest

from itrain_contract.names import Phase
from itrain_contract.stages import StageRef
from itrain_operator.kubeapi import CONFIG_MAPS, JOBS, RUNS, SERVICES, ExpiredError, UnavailableError
from itrain_testing.clusterruns import SETTINGS, jobs_made, start_run
from itrain_testing.fakecluster import Fault, Request, no_fault
from itrain_testing.fakejobs import JobEnd
from itrain_testing.fakeoperator import FakeOperator

TWO_NODES = {
    "score": {"shards": 2, "parallelism": 2},
    "rollout": {"shards": 2, "parallelism": 2},
    "train": {"nodes": 2, "retry": {"backoffSeconds": 1}},
}


def names(operator: FakeOperator, kind: str) -> list[str]:
    resource = {"jobs": JOBS, "configmaps": CONFIG_MAPS, "services": SERVICES}[kind]
    return [raw["metadata"]["name"] for raw in operator.server.all(resource)]


def test_config_map_and_service_are_there_before_the_job() -> None:
    operator = start_run(stages=TWO_NODES)
    operator.live(200, until=operator.ended)
    made = [
        (request.resource.plural, request.name)
        for request in operator.server.requests
        if request.verb == "create" and "train" in request.name and request.resource in (JOBS, CONFIG_MAPS, SERVICES)
    ]
    assert made == [(kind, "run-i1-train-a1") for kind in ("configmaps", "services", "jobs")]


def test_what_belongs_to_a_failed_attempt_goes_with_its_job() -> None:
    def script(ref: StageRef, attempt: int) -> JobEnd:
        return JobEnd(exit_code=75 if ref.kind == "train" and attempt == 1 else 0)

    operator = start_run(script, stages=TWO_NODES)
    operator.live(200, until=operator.ended)
    assert operator.status().phase == Phase.SUCCEEDED
    for kind in ("jobs", "configmaps", "services"):
        assert [name for name in names(operator, kind) if "train" in name] == ["run-i1-train-a2"]


def test_after_its_ttl_a_finished_run_has_no_children_and_stays_finished() -> None:
    operator = start_run(ttlSecondsAfterFinished=60)
    operator.live(200, until=operator.ended)
    made = jobs_made(operator.server)
    operator.live(12)
    assert names(operator, "jobs") == names(operator, "configmaps") == []
    assert operator.status().phase == Phase.SUCCEEDED
    operator.kill()
    operator.live(5)
    assert jobs_made(operator.server) == made


def test_a_leader_with_an_old_cache_makes_nothing_that_another_one_has_seen_done() -> None:
    """It saw the run before its first Job; since then another operator finished it, and a person deleted a Job."""
    late = start_run()
    late.live(0)
    stale = FakeOperator(late.server, late.world, SETTINGS)
    stale.live(0, deaf=True)
    late.live(200, until=late.ended)
    job = late.server.find(JOBS, "team", "run-i0-warmup-a1")
    assert job is not None
    late.server.remove(JOBS, job)
    made, written = jobs_made(late.server), late.run()["metadata"]["resourceVersion"]
    stale.live(5, deaf=True)
    assert jobs_made(late.server) == made
    assert late.run()["metadata"]["resourceVersion"] == written


def test_a_failed_attempt_whose_log_nobody_can_read_is_tried_again_all_the_same() -> None:
    def before(request: Request) -> Fault:
        return UnavailableError("dial tcp: no route to host") if request.verb == "log" else None

    def script(ref: StageRef, attempt: int) -> JobEnd:
        return JobEnd(exit_code=75 if ref.kind == "warmup" and attempt == 1 else 0)

    operator = start_run(script)
    operator.server.before = before
    operator.live(200, until=operator.ended)
    assert (operator.status().phase, operator.status().retries) == (Phase.SUCCEEDED, 1)


def test_the_result_of_a_stage_waits_until_its_pods_can_be_read() -> None:
    """Its metrics decide about the iterations: a stage is not latched without them."""
    failing = True

    def before(request: Request) -> Fault:
        reads_pods = request.verb == "list" and request.resource.plural == "pods"
        return UnavailableError("HTTP 500") if failing and reads_pods else None

    operator = start_run(lambda ref, attempt: JobEnd(metrics=(("dev/call_accuracy", 0.5),)))
    operator.server.before = before
    operator.live(10)
    assert operator.status().completed == []
    failing = False
    operator.live(200, until=operator.ended)
    assert operator.status().phase == Phase.SUCCEEDED
    assert operator.status().best is not None


def test_a_list_that_expires_between_two_pages_is_asked_for_again() -> None:
    expired = False

    def before(request: Request) -> Fault:
        nonlocal expired
        if request.verb == "list" and not expired:
            expired = True
            return ExpiredError("the provided continue parameter is too old")
        return None

    operator = start_run()
    operator.server.before = before
    operator.live(200, until=operator.ended)
    assert operator.status().phase == Phase.SUCCEEDED


def test_children_that_somebody_else_labelled_are_not_deleted_with_the_job() -> None:
    def script(ref: StageRef, attempt: int) -> JobEnd:
        return JobEnd(exit_code=75 if ref.kind == "prepare" and attempt == 1 else 0)

    operator = start_run(script, stages={**TWO_NODES, "prepare": {"retry": {"backoffSeconds": 1}}})
    operator.server.add(SERVICES, {"metadata": {"name": "run-i0-prepare-a1", "namespace": "team"}, "spec": {}})
    operator.live(200, until=operator.ended)
    assert operator.status().retries == 1
    assert "run-i0-prepare-a1" in names(operator, "services")


def person_deletes(operator: FakeOperator, name: str) -> None:
    job = operator.server.find(JOBS, "team", name)
    assert job is not None
    operator.server.remove(JOBS, job)


@pytest.mark.parametrize("restarted", [False, True], ids=["seen", "while no operator ran"])
def test_what_belongs_to_a_finished_job_that_a_person_deletes_goes_too(restarted: bool) -> None:
    operator = start_run(stages=TWO_NODES)
    operator.live(200, until=lambda: operator.status().stage == "export")
    if restarted:
        operator.kill()
    person_deletes(operator, "run-i1-train-a1")
    operator.live(200, until=operator.ended)
    assert operator.status().phase == Phase.SUCCEEDED
    for kind in ("jobs", "configmaps", "services"):
        assert [name for name in names(operator, kind) if "train" in name] == []
    assert len(names(operator, "configmaps")) == len(names(operator, "jobs")) == 7


def test_what_belongs_to_the_last_job_of_an_ended_run_goes_with_it() -> None:
    operator = start_run(lambda ref, attempt: JobEnd(exit_code=64 if ref.kind == "prepare" else 0))
    operator.live(200, until=operator.ended)
    assert names(operator, "configmaps") == ["run-i0-prepare-a1"]
    person_deletes(operator, "run-i0-prepare-a1")
    operator.live(2)
    assert names(operator, "configmaps") == []


def test_of_a_failed_attempt_whose_job_a_person_deletes_first_nothing_is_left() -> None:
    operator = start_run(
        lambda ref, attempt: JobEnd(exit_code=75 if (ref.kind, attempt) == ("warmup", 1) else 0),
        stages={"warmup": {"retry": {"backoffSeconds": 1}}},
    )

    def race(request: Request) -> Fault:
        if request.verb == "delete" and request.name == "run-i0-warmup-a1" and request.resource == JOBS:
            person_deletes(operator, request.name)
            operator.server.before = no_fault
            return UnavailableError("the connection broke")
        return None

    operator.server.before = race
    operator.live(200, until=operator.ended)
    assert operator.status().retries == 1
    assert [name for name in names(operator, "configmaps") if "warmup" in name] == ["run-i0-warmup-a2"]


def test_what_was_cleaned_up_is_not_looked_for_again() -> None:
    operator = start_run()
    operator.live(200, until=operator.ended)
    person_deletes(operator, "run-i0-warmup-a1")
    operator.live(2)
    before = len(operator.server.requests)
    operator.server.edit(RUNS, "team", "run", lambda raw: raw["spec"].update(historyLimit=9))
    operator.live(2)
    assert not [r for r in operator.server.requests[before:] if r.resource in (CONFIG_MAPS, SERVICES)]


def test_an_attempt_that_is_suspended_and_made_again_keeps_what_belongs_to_it() -> None:
    operator = start_run()
    operator.live(200, until=lambda: operator.status().stage == "warmup" and bool(operator.status().current))
    operator.server.edit(RUNS, "team", "run", lambda raw: raw["spec"].update(suspend=True))
    operator.live(5)
    assert "run-i0-warmup-a1" not in names(operator, "configmaps")
    operator.server.edit(RUNS, "team", "run", lambda raw: raw["spec"].update(suspend=False))
    operator.live(200, until=operator.ended)
    assert "run-i0-warmup-a1" in names(operator, "configmaps")
    person_deletes(operator, "run-i0-warmup-a1")
    operator.live(2)
    assert "run-i0-warmup-a1" not in names(operator, "configmaps")
