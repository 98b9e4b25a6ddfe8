"""What Kueue did to a rollout that was preempted, recorded from Kueue, put before the planner change by change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from itrain_contract.names import Phase, Reason
from itrain_operator.kubeobserve import job_view, parse_job
from itrain_operator.observed import Observed, Run
from itrain_operator.workloads import queue_view
from itrain_testing.builders import after, drive_to, make_run, make_spec, ref, step

RECORDING = json.loads((Path(__file__).parents[2] / "data/kueue/preemption.json").read_text())
ROLLOUT = ref("rollout", 1)
NAME = "run-i1-rollout-a1"
STEP_S = 10.0


def replayed() -> list[tuple[dict[str, Any], dict[str, Any] | None]]:
    """The rollout's Job and its Workload after each change to one of them."""
    job: dict[str, str] = {}
    workload: dict[str, str] = {}
    states = []
    for at, (name, field, value) in enumerate(RECORDING["changes"]):
        fields = {f"job/{NAME}": job, f"workload/{NAME}": workload}.get(name)
        if fields is None:
            continue
        fields[field] = value
        if field == "started" and value:
            fields[field] = after(STEP_S * at).isoformat()
        states.append((_job(job), _workload(workload)))
    return states


def _job(fields: dict[str, str]) -> dict[str, Any]:
    completed = fields.get("completedIndexes", "")
    running = int(fields.get("parallelism", 1)) if fields.get("active") == "some" else 0
    status: dict[str, Any] = {"active": running, "ready": running, "completedIndexes": completed}
    status["succeeded"] = {"": 0, "0": 1, "0-1": 2, "0,2": 2, "0-2": 3}[completed]
    if fields.get("started"):
        status["startTime"] = fields["started"]
    if fields.get("ended"):
        status["conditions"] = [{"type": fields["ended"], "status": "True"}]
    labels = {
        "itrain.dev/run": "run",
        "itrain.dev/run-uid": make_run().uid,
        "itrain.dev/stage": "rollout",
        "itrain.dev/iteration": "1",
        "itrain.dev/attempt": "1",
        "kueue.x-k8s.io/queue-name": "gpus",
    }
    owner = {"apiVersion": "itrain.dev/v1alpha1", "kind": "ITrainRun", "name": "run", "uid": make_run().uid}
    return {
        "metadata": {"name": NAME, "namespace": "team", "uid": "u", "labels": labels, "ownerReferences": [owner]},
        "spec": {"completions": 3, "suspend": fields.get("suspend") == "true"},
        "status": status,
    }


def _workload(fields: dict[str, str]) -> dict[str, Any] | None:
    if fields.get("is") != "there":
        return None
    conditions = [
        dict(zip(("type", "status", "reason", "message"), (kind, *value.split(" ")[:2], "said"), strict=True))
        for kind, value in fields.items()
        if value and kind[0].isupper()
    ]
    spec = {"active": fields.get("active") == "true"}
    return {"metadata": {"name": f"job-{NAME}-abcde"}, "spec": spec, "status": {"conditions": conditions}}


STATES = replayed()


def at_rollout() -> Run:
    stages = {"rollout": {"shards": 3, "parallelism": 3}}
    return drive_to(make_run(make_spec(queue={"name": "gpus"}, stages=stages)), ROLLOUT)


def see(run: Run, number: int) -> Run:
    """A pass over what there was after a change."""
    job, workload = STATES[number]
    queue = queue_view(workload) if workload is not None else None
    view = job_view(parse_job(job), run_uid=run.uid, ref=ROLLOUT, queue=queue)
    assert Observed(jobs=(view,)).ours()
    run, _ = step(run, view, at=STEP_S * number)
    return run


def test_the_recording_is_of_kueue_and_has_a_preemption_in_it() -> None:
    assert RECORDING["kueue"].startswith("v0.")
    assert [f"workload/{NAME}", "Evicted", "True Preempted"] in RECORDING["changes"]


def test_whoever_sees_every_change_counts_one_preemption_and_no_failure() -> None:
    run = at_rollout()
    waited = []
    for number, (job, _) in enumerate(STATES):
        run = see(run, number)
        assert (run.status.failures, run.status.retries) == (0, 0)
        if run.status.stage == "rollout":
            assert run.status.attempt == 1
            assert (run.status.reason == Reason.WAITING_FOR_QUOTA) == job["spec"]["suspend"]
            assert run.status.phase in (Phase.PENDING, Phase.RUNNING)
            waited.append(run.status.reason)
    assert run.status.preemptions == 1
    changes = [b for a, b in zip([None, *waited], waited, strict=False) if a != b]
    assert changes[0] == changes[2] if len(changes) > 2 else False


@pytest.mark.parametrize("blind", range(1, 12))
def test_whoever_misses_some_changes_counts_no_failure_and_no_preemption_twice(blind: int) -> None:
    """An operator that is away for `blind` changes, wherever that is, and then sees all the others."""
    for first in range(len(STATES)):
        run = at_rollout()
        for number in (*range(first), *range(min(first + blind, len(STATES)), len(STATES))):
            run = see(run, number)
        assert (run.status.failures, run.status.retries) == (0, 0)
        assert run.status.preemptions <= 1
