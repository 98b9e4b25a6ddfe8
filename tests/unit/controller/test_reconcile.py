"""The shell around the planner on an API server in memory: whole runs, and what goes wrong on the way."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from random import Random

import pytest

from itrain_contract.names import Phase, Reason
from itrain_contract.stages import StageRef
from itrain_operator.kubeapi import (
    CONFIG_MAPS,
    EVENTS,
    JOBS,
    RUNS,
    ConflictError,
    Raw,
    RefusedError,
    ThrottledError,
    UnavailableError,
)
from itrain_testing.clusterruns import SETTINGS, jobs_made, live_jobs, run_manifest, start_run
from itrain_testing.fakecluster import Fault, Request
from itrain_testing.fakejobs import JobEnd
from itrain_testing.fakeoperator import FakeOperator, KilledError

STAGES = [
    "run-i0-prepare-a1",
    "run-i0-warmup-a1",
    "run-i0-evaluate-a1",
    "run-i1-score-a1",
    "run-i1-rollout-a1",
    "run-i1-train-a1",
    "run-i1-evaluate-a1",
    "run-i0-export-a1",
]


def whole_run(operator: FakeOperator, ticks: int = 200) -> None:
    operator.live(ticks, until=operator.ended)


def test_a_run_goes_from_apply_to_succeeded_with_one_job_a_stage() -> None:
    operator = start_run()
    whole_run(operator)
    status = operator.status()
    assert status.phase == Phase.SUCCEEDED
    assert jobs_made(operator.server) == STAGES
    assert operator.errors == []
    assert status.template_hash


def test_metrics_and_counters_come_from_the_termination_messages_of_the_pods() -> None:
    def script(ref: StageRef, attempt: int) -> JobEnd:
        return JobEnd(metrics=(("dev/call_accuracy", 0.25 + ref.iteration / 4),))

    operator = start_run(script)
    whole_run(operator)
    best = operator.status().best
    assert best is not None
    assert (best.iteration, best.value) == (1, 0.5)


def test_a_failed_attempt_is_deleted_before_the_next_one_is_made() -> None:
    def script(ref: StageRef, attempt: int) -> JobEnd:
        return JobEnd(exit_code=75 if str(ref) == "i0/warmup" and attempt == 1 else 0)

    operator = start_run(script)
    whole_run(operator)
    assert operator.status().phase == Phase.SUCCEEDED
    assert operator.status().retries == 1
    assert [name for name in jobs_made(operator.server) if "warmup" in name] == ["run-i0-warmup-a1", "run-i0-warmup-a2"]
    assert operator.server.find(JOBS, "team", "run-i0-warmup-a1") is None


def test_exit_code_and_last_words_of_a_failure_are_in_the_status() -> None:
    operator = start_run(lambda ref, attempt: JobEnd(exit_code=65))
    whole_run(operator)
    status = operator.status()
    assert (status.phase, status.reason) == (Phase.FAILED, Reason.DATA_ERROR)
    assert "exit code 65" in status.message
    assert "it broke" in status.message


def test_a_disrupted_attempt_is_a_preemption_and_no_retry() -> None:
    def script(ref: StageRef, attempt: int) -> JobEnd:
        return JobEnd(disrupted=str(ref) == "i0/warmup" and attempt == 1)

    operator = start_run(script)
    whole_run(operator)
    status = operator.status()
    assert (status.phase, status.preemptions, status.retries) == (Phase.SUCCEEDED, 1, 0)


def test_an_operator_killed_after_any_request_ends_the_run_all_the_same() -> None:
    undisturbed = start_run()
    whole_run(undisturbed)
    expected = undisturbed.status()
    for cut in range(len(undisturbed.server.requests)):
        operator = start_run()
        kill_once(operator, cut)
        whole_run(operator)
        status = operator.status()
        assert operator.deaths == 1, f"request {cut} never came"
        assert status.phase == Phase.SUCCEEDED, f"cut after request {operator.server.requests[cut]}"
        assert jobs_made(operator.server) == STAGES, f"cut after request {operator.server.requests[cut]}"
        assert [str(r.ref) for r in status.completed] == [str(r.ref) for r in expected.completed]
        assert [r.digest for r in status.completed] == [digest_of(operator, r.ref) for r in status.completed]


def digest_of(operator: FakeOperator, ref: StageRef) -> str:
    job = next(j for j in operator.server.all(JOBS) if j["metadata"]["name"] == f"run-i{ref.iteration}-{ref.kind}-a1")
    return str(job["metadata"]["annotations"]["itrain.dev/input-digest"])[:16]


def test_an_operator_killed_after_any_request_keeps_the_count_of_failures() -> None:
    def script(ref: StageRef, attempt: int) -> JobEnd:
        return JobEnd(exit_code=75 if str(ref) == "i0/prepare" and attempt < 3 else 0)

    undisturbed = start_run(script, stages={**SHORT_STAGES, "prepare": {"retry": {"limit": 2, "backoffSeconds": 1}}})
    whole_run(undisturbed)
    assert undisturbed.status().retries == 2
    for cut in range(0, 60, 3):
        operator = start_run(script, stages={**SHORT_STAGES, "prepare": {"retry": {"limit": 2, "backoffSeconds": 1}}})
        kill_once(operator, cut)
        whole_run(operator)
        status = operator.status()
        assert (status.phase, status.retries) == (Phase.SUCCEEDED, 2), f"cut after {operator.server.requests[cut]}"


SHORT_STAGES = {"score": {"shards": 2, "parallelism": 2}, "rollout": {"shards": 2, "parallelism": 2}}


def kill_once(operator: FakeOperator, cut: int) -> None:
    """SIGKILL after request `cut` took effect and before its answer came."""

    def after(request: Request) -> Fault:
        if request.number != cut:
            return None
        return KilledError(f"killed after {request}")

    operator.server.after = after


@pytest.mark.parametrize(
    "fault",
    [
        UnavailableError("HTTP 500"),
        ThrottledError("slow down", retry_after_s=2.0),
        ConflictError("the object has been modified"),
    ],
    ids=["500", "429", "409"],
)
def test_every_request_may_fail_once_and_the_run_ends_the_same(fault: Exception) -> None:
    failed: set[str] = set()

    def before(request: Request) -> Fault:
        what = f"{request.verb} {request.resource.plural} {request.name}"
        if what in failed or (isinstance(fault, ConflictError) and not request.writes):
            return None
        failed.add(what)
        return fault

    operator = start_run()
    operator.server.before = before
    whole_run(operator)
    assert operator.status().phase == Phase.SUCCEEDED
    assert jobs_made(operator.server) == STAGES


def test_a_time_out_after_the_server_carried_it_out_makes_nothing_twice() -> None:
    """Every write loses its first answer."""
    lost: set[str] = set()

    def after(request: Request) -> Fault:
        what = f"{request.verb} {request.resource.plural} {request.name}"
        if not request.writes or what in lost:
            return None
        lost.add(what)
        return UnavailableError("no answer within 30 s")

    operator = start_run()
    operator.server.after = after
    whole_run(operator)
    assert operator.status().phase == Phase.SUCCEEDED
    assert jobs_made(operator.server) == STAGES


def test_two_operators_that_both_act_still_make_one_job_a_stage_and_lose_none() -> None:
    """What the lease prevents: both plan and act on the same run, their requests mixed at random."""
    for seed in range(8):
        first = start_run()
        pair = [FakeOperator(first.server, first.world, SETTINGS, Random(seed + n)) for n in (0, 1000)]

        async def both(operators: list[FakeOperator] = pair) -> None:
            await asyncio.gather(*(operator.passes() for operator in operators))

        for _ in range(100):
            asyncio.run(both())
            if first.ended():
                break
            first.world.tick()
            assert len(live_jobs(first.server)) <= 1, f"seed {seed}"
        assert first.status().phase == Phase.SUCCEEDED, f"seed {seed}"
        assert jobs_made(first.server) == STAGES, f"seed {seed}"
        assert [str(r.ref) for r in first.status().completed] == STAGE_REFS


STAGE_REFS = [
    "i0/prepare",
    "i0/warmup",
    "i0/evaluate",
    "i1/score",
    "i1/rollout",
    "i1/train",
    "i1/evaluate",
    "i0/export",
]


def test_a_refused_creation_shows_the_servers_message_in_status_and_event_and_is_tried_again() -> None:
    allowed = False

    def before(request: Request) -> Fault:
        if request.verb == "create" and request.resource == JOBS and not allowed:
            return RefusedError("exceeded quota: gpus", code=403, quota=True)
        return None

    operator = start_run()
    operator.server.before = before
    operator.live(3)
    status = operator.status()
    assert status.reason == Reason.CREATE_FORBIDDEN
    assert "exceeded quota: gpus" in status.message
    assert [e["reason"] for e in operator.server.all(EVENTS) if e["type"] == "Warning"] == ["CreateRefused"]
    tries = sum(1 for r in operator.server.requests if r.verb == "create" and r.resource == JOBS)
    assert tries == 1, "a refused creation is tried once a minute"
    allowed = True
    whole_run(operator)
    assert operator.status().phase == Phase.SUCCEEDED


def test_a_namespace_that_is_being_deleted_is_left_in_peace() -> None:
    def before(request: Request) -> Fault:
        if request.verb == "create" and request.resource != EVENTS:
            return RefusedError("being terminated", code=403, terminating=True)
        return None

    operator = start_run()
    operator.server.before = before
    operator.live(5)
    assert operator.status().reason == Reason.STAGE_STARTING
    assert operator.errors == []


def test_a_foreign_job_under_the_name_fails_the_run_with_a_reason() -> None:
    operator = start_run()
    operator.server.add(JOBS, {"metadata": {"name": "run-i0-prepare-a1", "namespace": "team"}, "spec": {}})
    operator.live(3)
    assert (operator.status().phase, operator.status().reason) == (Phase.FAILED, Reason.FOREIGN_OBJECT)


def test_a_foreign_config_map_under_the_name_is_left_alone_and_named() -> None:
    operator = start_run()
    operator.server.add(CONFIG_MAPS, {"metadata": {"name": "run-i0-prepare-a1", "namespace": "team"}, "data": {}})
    operator.live(3)
    assert operator.status().reason == Reason.CREATE_REJECTED
    assert "ConfigMap run-i0-prepare-a1 exists and does not belong to this run" in operator.status().message


def test_a_run_deleted_and_applied_again_waits_for_the_former_runs_job() -> None:
    operator = start_run()
    operator.live(2)
    old = operator.run()
    operator.server.remove(RUNS, old)
    operator.server.add(RUNS, run_manifest())
    operator.live(0)
    assert operator.status().reason == Reason.WAITING_FOR_CLEANUP
    assert len(jobs_made(operator.server)) == 1
    whole_run(operator)
    assert operator.status().phase == Phase.SUCCEEDED
    owners = {job["metadata"]["ownerReferences"][0]["uid"] for job in operator.server.all(JOBS)}
    assert owners == {operator.run()["metadata"]["uid"]}


def test_a_config_map_of_a_former_run_is_waited_for_and_is_no_trouble() -> None:
    operator = start_run()
    operator.live(2)
    operator.server.remove(RUNS, operator.run())
    job = operator.server.find(JOBS, "team", "run-i0-prepare-a1")
    assert job is not None
    operator.server.remove(JOBS, job)
    operator.server.add(RUNS, run_manifest())
    operator.live(0)
    status = operator.status()
    assert status.reason == Reason.WAITING_FOR_CLEANUP
    assert not [c.type for c in status.conditions if c.type == "Stalled" and c.status == "True"]
    whole_run(operator)
    assert operator.status().phase == Phase.SUCCEEDED


def test_nothing_is_made_for_a_run_that_is_being_deleted() -> None:
    operator = start_run()

    def ask_for_deletion(raw: Raw) -> None:
        raw["metadata"]["deletionTimestamp"] = operator.server.stamp()

    operator.server.edit(RUNS, "team", "run", ask_for_deletion)
    operator.live(3)
    assert jobs_made(operator.server) == []


def test_a_run_deleted_behind_a_deaf_watch_gets_no_job() -> None:
    operator = start_run()
    operator.live(0)
    made = len(jobs_made(operator.server))
    operator.server.remove(RUNS, operator.run())
    operator.world.tick()
    operator.live(5, deaf=True)
    assert len(jobs_made(operator.server)) == made


def test_suspension_deletes_the_job_and_resuming_makes_the_same_attempt_again() -> None:
    operator = start_run()
    operator.live(6)
    running = live_jobs(operator.server)[0]["metadata"]["name"]
    operator.server.edit(RUNS, "team", "run", lambda raw: raw["spec"].update(suspend=True))
    operator.live(3)
    assert operator.status().phase == Phase.SUSPENDED
    assert live_jobs(operator.server) == []
    operator.server.edit(RUNS, "team", "run", lambda raw: raw["spec"].update(suspend=False))
    whole_run(operator)
    assert operator.status().phase == Phase.SUCCEEDED
    assert jobs_made(operator.server).count(running) == 2


def test_a_config_map_of_an_earlier_pass_with_another_input_is_replaced() -> None:
    """The operator dies between ConfigMap and Job; the spec is edited before the next one starts."""
    operator = start_run()
    kill_once(operator, next_number(operator, "create", "configmaps"))
    operator.live(0)
    assert operator.deaths == 1
    operator.server.edit(RUNS, "team", "run", lambda raw: raw["spec"]["stages"]["prepare"].update(maxLength=4096))
    whole_run(operator)
    assert operator.status().phase == Phase.SUCCEEDED
    config_map = operator.server.find(CONFIG_MAPS, "team", "run-i0-prepare-a1")
    job = operator.server.find(JOBS, "team", "run-i0-prepare-a1")
    assert config_map is not None
    assert job is not None
    assert job["metadata"]["annotations"]["itrain.dev/input-digest"] in next(iter(config_map["data"].values()))


def next_number(operator: FakeOperator, verb: str, plural: str) -> int:
    """The number of the first request of a kind in an undisturbed run."""
    twin = start_run()
    twin.live(1)
    return next(r.number for r in twin.server.requests if (r.verb, r.resource.plural) == (verb, plural))


def test_an_invalid_spec_is_told_once_and_mended_by_an_edit() -> None:
    operator = start_run()
    operator.server.edit(RUNS, "team", "run", lambda raw: raw["spec"].update(surprise=1))
    operator.live(3)
    assert operator.status().reason == Reason.INVALID_SPEC
    assert "spec.surprise" in operator.status().message
    assert [e["reason"] for e in operator.server.all(EVENTS)] == ["InvalidSpec"]
    operator.server.edit(RUNS, "team", "run", lambda raw: raw["spec"].pop("surprise"))
    whole_run(operator)
    assert operator.status().phase == Phase.SUCCEEDED


def test_a_quiet_run_costs_no_writes() -> None:
    operator = start_run()
    operator.live(1)
    before = sum(1 for r in operator.server.requests if r.writes)
    operator.live(0)
    assert sum(1 for r in operator.server.requests if r.writes) == before


def test_an_undisturbed_run_needs_few_requests() -> None:
    operator = start_run()
    whole_run(operator)
    per_stage = len(operator.server.requests) / len(STAGES)
    assert per_stage < 25, f"{per_stage:.1f} requests a stage"


def test_a_new_process_writes_down_few_runs_that_only_got_older_and_every_one_that_moved_on() -> None:
    operator = start_run()
    for number in range(11):
        operator.server.add(RUNS, run_manifest(f"run-{number}"))
    operator.live(2)
    assert all(run["status"]["current"]["active"] for run in operator.server.all(RUNS))

    def status_writes() -> int:
        return sum(request.verb == "patch" and request.resource == RUNS for request in operator.server.requests)

    for _ in range(2):
        operator.server.now += timedelta(minutes=10)
        operator.kill()
        before = status_writes()
        operator.live(0)
        operator.server.now += timedelta(seconds=0.2)  # by then a new process has looked at each of them
        operator.live(0)
        assert status_writes() - before == 2
    operator.kill()
    operator.world.tick()
    before = len(jobs_made(operator.server))
    operator.live(0)
    assert len(jobs_made(operator.server)) - before == 12
