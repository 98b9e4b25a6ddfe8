"""Runs in a queue. Operator and Job controller are real; so is Kueue where the cluster has it (docs/testing.md)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from itrain_contract.stages import StageRef
from itrain_testing.cluster.access import Access
from itrain_testing.kueue.queues import HIGH, LOW, POOL, QUEUE, Queues, queueing
from itrain_testing.kueue.recorder import Change, Recorder, by_field, in_order
from itrain_testing.operatorprocess import OperatorProcess
from itrain_testing.simkubelet import PodRun, SimulatedNode
from itrain_testing.watchrun import SMALL, STAGES, WatchedRun

TRACE = Path(__file__).parents[1] / "data/kueue/preemption.json"
RECORD = "ITRAIN_RECORD_KUEUE"
"""Names a file: what the preempted rollout went through is written there."""
ROLLOUT = "run-i1-rollout-a1"
ONE_CPU = {"requests": {"cpu": 1}}


@pytest.fixture(scope="module")
def kueue(cluster: Access) -> Iterator[bool]:
    with queueing(cluster) as real:
        yield real


@pytest.fixture
def queues(cluster: Access, namespace: str, kueue: bool) -> Queues:
    return Queues(cluster=cluster, namespace=namespace)


@pytest.fixture
def operator(cluster: Access, namespace: str, tmp_path: Path) -> Iterator[OperatorProcess]:
    """Every pod asks for one CPU: quotas are in pods."""
    process = OperatorProcess(
        tmp_path,
        kubeconfig=cluster.kubeconfig,
        namespace=namespace,
        kueue={"enabled": True},
        defaultResources={"data": ONE_CPU, "training": ONE_CPU, "inference": ONE_CPU},
    )
    process.start()
    yield process
    process.stop()


def queue(**fields: Any) -> dict[str, Any]:
    return {"name": QUEUE, "priorityClass": LOW, **fields}


def lasting(stage: str, *, but: int | None = None) -> Any:
    """Pods of a stage run until they are released, except the shard `but`."""

    def script(ref: StageRef, attempt: int, index: int) -> PodRun:
        return PodRun(seconds=600.0) if ref.kind.value == stage and index != but else PodRun()

    return script


def condition(status: dict[str, Any], kind: str) -> dict[str, Any]:
    return next((c for c in status["conditions"] if c["type"] == kind), {})


def quota_is_free(conditions: list[dict[str, Any]]) -> bool:
    return condition({"conditions": conditions}, "QuotaReserved").get("status") == "False"


def unhurt(status: dict[str, Any]) -> bool:
    """No failure was counted, and every stage ended in its first attempt."""
    first = all(record.split()[1] == "a1" for record in status["completed"])
    return first and (status.get("retries", 0), status.get("failures", 0)) == (0, 0)


def test_a_run_waits_in_its_queue_with_the_queues_own_words_and_no_clock_runs(
    run: WatchedRun, node: SimulatedNode, queues: Queues, operator: OperatorProcess
) -> None:
    label = ("label", "node", "simulated", f"{POOL}=a", "--overwrite")
    run.until(lambda: queues.cluster.try_kubectl(*label).returncode == 0, "the node is there and has its label")
    queues.open(3, node="a")
    queues.put("other", pods=3)
    run.until(lambda: queues.runs("other"), "the other Job has the quota")
    short = {"pendingDeadlineSeconds": 8, "activeDeadlineSeconds": 60, "gpus": 0}
    run.apply(queue=queue(), activeDeadlineSeconds=120, stages={**SMALL["stages"], "prepare": short})
    waiting = run.wait(reason="WaitingForQuota", message=lambda text: bool(text) and "unused quota" in text)
    assert waiting["message"].startswith(f"{STAGES[0]} waits for quota in queue {QUEUE} (Pending): ")
    assert "insufficient unused quota for cpu" in waiting["message"]
    assert condition(waiting, "QuotaReserved")["status"] == "False"
    assert waiting["phase"] == "Pending"
    assert "startTime" not in waiting
    run.until(lambda: age_s(queues.job(STAGES[0])) > 10, "it waited for longer than it may be pending")
    still = run.status()
    assert (still["reason"], still.get("pendingSeconds", 0), still.get("runningSeconds", 0)) == (
        "WaitingForQuota",
        0,
        0,
    )
    assert queues.cluster.get("pods", "-l", "itrain.dev/run=run", namespace=run.namespace)["items"] == []
    queues.take("other")
    done = run.wait(phase="Succeeded")
    assert unhurt(done)
    assert done.get("preemptions", 0) == 0
    assert run.job_names() == STAGES
    template = queues.job(STAGES[-1])["spec"]["template"]
    assert template["spec"]["nodeSelector"] == {POOL: "a"}
    assert template["metadata"]["labels"]["kueue.x-k8s.io/podset"] == "main"
    assert queues.conditions(STAGES[0])["Finished"] == "True Succeeded"
    assert operator.metrics()["itrain_quota_wait_seconds_count"] >= 1


def test_a_rollout_that_is_preempted_goes_on_where_it_was_and_counts_no_failure(
    run: WatchedRun, node: SimulatedNode, queues: Queues, operator: OperatorProcess
) -> None:
    recorder = Recorder(queues.cluster.kubeconfig, run.namespace)
    recorder.start()
    queues.open(3)
    node.script = lasting("rollout", but=0)
    run.apply(queue=queue())
    run.wait_for_running("rollout")
    run.until(lambda: queues.job(ROLLOUT)["status"].get("completedIndexes") == "0", "the first shard is done")
    before = queues.job(ROLLOUT)
    queues.put("urgent", pods=3, priority=HIGH)
    waiting = run.wait(reason="WaitingForQuota")
    run.until(lambda: queues.runs("urgent"), "the urgent Job has the quota")
    assert (waiting["preemptions"], waiting.get("retries", 0), waiting["stage"]) == (1, 0, "rollout")
    shown = run.wait(message=lambda text: "(Preempted)" in text)
    assert f"{ROLLOUT} waits for quota in queue {QUEUE} (Preempted): " in shown["message"]
    assert condition(shown, "QuotaReserved")["status"] == "False"
    assert shown["current"]["active"] == 0
    node.script = lambda ref, attempt, index: PodRun()
    queues.take("urgent")
    done = run.wait(phase="Succeeded")
    assert unhurt(done)
    assert done["preemptions"] == 1
    after = queues.job(ROLLOUT)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["status"]["succeeded"] == 3
    hashes = {job["metadata"]["annotations"]["itrain.dev/template-hash"] for job in (before, after)}
    assert len(hashes) == 1
    assert [event for event in run.events() if event.startswith("StageDisrupted: ") and "lost its quota" in event]
    assert len(indexes_run(queues, ROLLOUT)) == 3
    check_trace(recorder.stop())


def test_a_rollout_starts_with_as_many_shards_at_a_time_as_the_quota_has_room_for(
    run: WatchedRun, node: SimulatedNode, queues: Queues, operator: OperatorProcess
) -> None:
    queues.open(2)
    node.script = lasting("rollout")
    run.apply(queue=queue(minParallelism=1))
    running = run.wait_for_running("rollout")
    job = queues.job(ROLLOUT)["spec"]
    assert (job["parallelism"], job["completions"]) == (2, 3)
    run.until(lambda: run.status()["current"]["active"] == 2, "two shards run")
    assert running["stage"] == "rollout"
    assert queues.job("run-i1-score-a1")["spec"]["parallelism"] == 2
    node.script = lambda ref, attempt, index: PodRun()
    node.release()
    done = run.wait(phase="Succeeded")
    assert unhurt(done)
    assert done["completed"][4].endswith(" 0-2")


def test_without_a_minimum_a_rollout_that_does_not_fit_waits(
    run: WatchedRun, node: SimulatedNode, queues: Queues, operator: OperatorProcess
) -> None:
    queues.open(2)
    run.apply(queue=queue())
    waiting = run.wait(stage="rollout", reason="WaitingForQuota", message=lambda text: "for cpu in flavor" in text)
    assert waiting["phase"] == "Pending"
    assert not queues.runs(ROLLOUT)


def test_each_shard_that_is_done_gives_its_quota_back(
    run: WatchedRun, node: SimulatedNode, queues: Queues, operator: OperatorProcess
) -> None:
    queues.open(3)
    node.script = lasting("rollout", but=1)
    run.apply(queue=queue())
    run.wait_for_running("rollout")
    queues.put("next", pods=1)
    run.until(lambda: queues.runs("next"), "the next Job has the quota of the shard that is done")
    (given_back,) = queues.workload(ROLLOUT)["status"]["reclaimablePods"]
    assert given_back == {"name": "main", "count": 1}
    status = run.status()
    assert (status["reason"], status["current"]["active"], status["current"]["completedIndexes"]) == (
        "StageRunning",
        2,
        "1",
    )
    node.release()
    node.script = lambda ref, attempt, index: PodRun()
    done = run.wait(phase="Succeeded")
    assert unhurt(done)
    assert done.get("preemptions", 0) == 0


@pytest.mark.parametrize("lingering_s", [0.0, 4.0])
def test_a_pause_goes_through_the_workload_and_leaves_job_and_suspension_alone(
    run: WatchedRun, node: SimulatedNode, queues: Queues, operator: OperatorProcess, lingering_s: float
) -> None:
    """Also where the Job controller looks while the pod, ended with 143, is still there."""
    warmup = "run-i0-warmup-a1"
    node.lingering_s = lingering_s
    queues.open(3)
    node.script = lasting("warmup")
    run.apply(queue=queue())
    run.wait_for_running("warmup")
    before = queues.job(warmup)
    run.patch({"suspend": True})
    paused = run.wait(phase="Suspended", current=lambda job: bool(job) and job.get("active", 0) == 0)
    run.until(lambda: not queues.runs(warmup), "Kueue suspended the Job")
    assert queues.workload(warmup)["spec"]["active"] is False
    assert queues.conditions(warmup)["Evicted"] == "True Deactivated"
    queues.put("next", pods=3)
    run.until(lambda: queues.runs("next"), "the quota is somebody else's")
    assert (paused.get("preemptions", 0), paused.get("retries", 0)) == (0, 0)
    rests = run.wait(phase="Suspended", conditions=quota_is_free)
    assert condition(rests, "Suspended")["status"] == "True"
    run.patch({"suspend": False})
    run.wait(reason="WaitingForQuota")
    assert queues.workload(warmup)["spec"]["active"] is True
    node.script = lambda ref, attempt, index: PodRun()
    queues.take("next")
    done = run.wait(phase="Succeeded")
    assert unhurt(done)
    assert done.get("preemptions", 0) == 0
    assert queues.job(warmup)["metadata"]["uid"] == before["metadata"]["uid"]
    assert run.job_names() == STAGES


def test_a_workload_that_an_administrator_stops_is_not_set_going_again(
    run: WatchedRun, node: SimulatedNode, queues: Queues, operator: OperatorProcess
) -> None:
    queues.open(1)
    node.script = lasting("warmup")
    run.apply(queue=queue())
    run.wait_for_running("warmup")
    name = queues.workload("run-i0-warmup-a1")["metadata"]["name"]
    patch = json.dumps({"spec": {"active": False}})
    kind = "workloads.kueue.x-k8s.io"
    queues.cluster.kubectl("patch", kind, name, "--type=merge", f"--patch={patch}", namespace=run.namespace)
    stopped = run.wait(reason="WaitingForQuota", message=lambda text: "(Deactivated)" in text)
    assert (stopped["phase"], stopped["preemptions"], stopped.get("retries", 0)) == ("Pending", 1, 0)
    assert queues.workload("run-i0-warmup-a1")["spec"]["active"] is False


def age_s(job: dict[str, Any]) -> float:
    return (datetime.now(tz=UTC) - datetime.fromisoformat(job["metadata"]["creationTimestamp"])).total_seconds()


def indexes_run(queues: Queues, job: str) -> list[str]:
    """The completion index of each pod that succeeded."""
    found = queues.cluster.get("pods", "-l", f"batch.kubernetes.io/job-name={job}", namespace=queues.namespace)
    label = "batch.kubernetes.io/job-completion-index"
    return [p["metadata"]["labels"][label] for p in found["items"] if p["status"]["phase"] == "Succeeded"]


MILESTONES: list[Change] = [
    (f"job/{ROLLOUT}", "is", "there"),
    (f"workload/{ROLLOUT}", "is", "there"),
    (f"workload/{ROLLOUT}", "Admitted", "True Admitted"),
    (f"job/{ROLLOUT}", "suspend", "false"),
    (f"job/{ROLLOUT}", "completedIndexes", "0"),
    (f"workload/{ROLLOUT}", "reclaimable", "1"),
    (f"workload/{ROLLOUT}", "Evicted", "True Preempted"),
    (f"job/{ROLLOUT}", "suspend", "true"),
    (f"job/{ROLLOUT}", "started", ""),
    (f"workload/{ROLLOUT}", "QuotaReserved", "False Pending"),
    ("workload/urgent", "Admitted", "True Admitted"),
    ("job/urgent", "suspend", "false"),
    (f"workload/{ROLLOUT}", "Admitted", "True Admitted"),
    (f"workload/{ROLLOUT}", "Finished", "True Succeeded"),
]


def steady(fields: dict[str, list[str]]) -> dict[str, list[str]]:
    """Without those that depend on how close together shards end."""
    return {
        field: values for field, values in fields.items() if not field.endswith(("completedIndexes", "reclaimable"))
    }


def check_trace(found: list[Change]) -> None:
    """What the rollout and its Workload went through is what Kueue itself put them through, field by field."""
    names = (f"job/{ROLLOUT}", f"workload/{ROLLOUT}")
    mine = [change for change in found if change[0] in (*names, "job/urgent", "workload/urgent")]
    if os.environ.get(RECORD):
        lines = ",\n".join(f"  {json.dumps(list(change))}" for change in mine)
        Path(os.environ[RECORD]).write_text(f'{{"changes": [\n{lines}\n]}}\n')
    assert in_order(mine, MILESTONES) == []
    recorded = [tuple(change) for change in json.loads(TRACE.read_text())["changes"]]
    assert steady(by_field(mine, *names)) == steady(by_field(recorded, *names))
    assert in_order(recorded, MILESTONES) == []
