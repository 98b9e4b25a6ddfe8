"""Faults of the control plane and of people, made on a real API server; pods run by their status alone.

Which fault is shown by which test: docs/testing.md.
"""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from itrain_contract.stages import StageKind, StageRef
from itrain_testing.apiproxy import ApiProxy, Call, Fault
from itrain_testing.cluster.access import Access, eventually
from itrain_testing.cluster.controlplane import ControlPlane
from itrain_testing.operatorprocess import OperatorProcess
from itrain_testing.podstatus import PodRun
from itrain_testing.simkubelet import PodScript, SimulatedNode
from itrain_testing.watchrun import STAGES, WatchedRun

KINDS_WRITTEN = ("configmaps", "jobs", "itrainruns/status", "events")


def slow(stage: str, seconds: float = 600.0) -> PodScript:
    """Pods of one stage take their time."""

    def script(ref: StageRef, attempt: int, index: int) -> PodRun:
        return PodRun(seconds=seconds) if ref.kind.value == stage else PodRun()

    return script


def quick(ref: StageRef, attempt: int, index: int) -> PodRun:
    return PodRun()


def undisturbed(run: WatchedRun, **wanted: int) -> None:
    """The run has succeeded with one Job a stage, and nothing was counted as a failure."""
    done = run.status()
    assert run.job_names() == STAGES
    assert (done["phase"], done["retries"], done["preemptions"]) == ("Succeeded", 0, 0)
    assert len(done["completed"]) == len(STAGES)


@pytest.fixture
def proxy(control_plane: ControlPlane, tmp_path: Path) -> Iterator[ApiProxy]:
    between = ApiProxy(control_plane, tmp_path)
    between.start()
    yield between
    between.stop()


@pytest.fixture
def proxied(proxy: ApiProxy, namespace: str, tmp_path: Path) -> Iterator[OperatorProcess]:
    """An operator whose way to the server is the proxy; a request has three seconds."""
    process = OperatorProcess(tmp_path, kubeconfig=proxy.kubeconfig, namespace=namespace, requestTimeoutSeconds=3)
    process.start()
    yield process
    process.stop()


# --- the server and what lies behind it ---


def test_an_etcd_that_is_killed_and_comes_back_loses_no_stage(
    run: WatchedRun, node: SimulatedNode, operator: OperatorProcess, control_plane: ControlPlane
) -> None:
    node.script = slow("warmup", 6.0)
    run.apply()
    run.wait_for_running("warmup")
    control_plane.etcd.kill()
    errors = eventually(lambda: server_errors(operator), what="the operator meets errors")
    assert errors
    control_plane.etcd.start()
    control_plane.apiserver.wait_until_ready()
    run.wait(phase="Succeeded", timeout_s=120)
    undisturbed(run)


def test_an_etcd_that_hangs_for_longer_than_the_lease_loses_no_stage(
    run: WatchedRun, node: SimulatedNode, operator: OperatorProcess, control_plane: ControlPlane
) -> None:
    """SIGSTOP: every request hangs, the lease cannot be renewed, the leader stops acting and leads again."""
    node.script = slow("warmup", 3.0)
    run.apply()
    run.wait_for_running("warmup")
    assert control_plane.etcd.pid is not None
    os.kill(control_plane.etcd.pid, signal.SIGSTOP)
    try:
        eventually(lambda: not operator.leads, what="the lease ran out")
    finally:
        os.kill(control_plane.etcd.pid, signal.SIGCONT)
    run.wait(phase="Succeeded", timeout_s=120)
    undisturbed(run)


def server_errors(operator: OperatorProcess) -> dict[str, float]:
    """Requests that came to nothing, by verb and code."""
    told = operator.metrics().items()
    return {name: n for name, n in told if "requests_total" in name and any(c in name for c in ('"5', '"error"'))}


def test_after_watches_that_are_too_far_behind_everything_is_listed_again(
    run: WatchedRun, node: SimulatedNode, proxy: ApiProxy, proxied: OperatorProcess, control_plane: ControlPlane
) -> None:
    """410 Gone: what happened while the operator was cut off is compacted, and the server has forgotten it too."""
    node.script = slow("warmup", 3.0)
    run.apply()
    run.wait_for_running("warmup")
    proxy.cut()
    run.until(lambda: job_is_complete(run, "run-i0-warmup-a1"), "the stage ended unseen")
    control_plane.compact()
    control_plane.apiserver.restart()
    proxy.mend()
    run.wait(phase="Succeeded", timeout_s=120)
    assert proxy.gone >= 2
    undisturbed(run)


def job_is_complete(run: WatchedRun, name: str) -> bool:
    conditions = run.cluster.get("job", name, namespace=run.namespace)["status"].get("conditions") or []
    return any(c["type"] == "Complete" and c["status"] == "True" for c in conditions)


@pytest.mark.timeout(240)
def test_watches_that_fall_silent_are_noticed_and_made_again(
    run: WatchedRun, node: SimulatedNode, proxy: ApiProxy, proxied: OperatorProcess
) -> None:
    """A connection that is dead and not closed. The next whole list would come after five minutes only."""
    node.script = slow("warmup", 2.0)
    run.apply()
    run.wait_for_running("warmup")
    assert proxy.hush() >= 3  # runs, Jobs, pods
    run.until(lambda: job_is_complete(run, "run-i0-warmup-a1"), "the stage ended unheard")
    assert run.status()["stage"] == "warmup"
    run.wait(phase="Succeeded", timeout_s=120)
    undisturbed(run)


# --- single answers ---


def test_every_kind_of_write_may_fail_throttle_or_be_carried_out_without_an_answer(
    run: WatchedRun, node: SimulatedNode, proxy: ApiProxy, proxied: OperatorProcess
) -> None:
    """Of each kind the third write meets a 500, the sixth a 429, the ninth takes effect and is never answered."""

    def plan(call: Call) -> Fault | None:
        if call.method in ("POST", "PATCH") and call.kind in KINDS_WRITTEN:
            faults: dict[int, Fault] = {3: "500", 6: "429", 9: "lost"}
            return faults.get(call.nth)
        return None

    proxy.plan = plan
    run.apply()
    run.wait(phase="Succeeded", timeout_s=120)
    undisturbed(run)
    assert proxy.faults["500"] >= 3
    assert proxy.faults["429"] >= 3
    assert proxy.faults["lost"] >= 2


def test_a_job_made_without_an_answer_is_found_and_not_made_twice(
    run: WatchedRun, node: SimulatedNode, proxy: ApiProxy, proxied: OperatorProcess
) -> None:
    node.script = slow("prepare", 8.0)
    proxy.plan = lambda call: "lost" if (call.method, call.kind, call.nth) == ("POST", "jobs", 1) else None
    run.apply()
    run.wait_for_running("prepare")
    uid = run.cluster.get("job", STAGES[0], namespace=run.namespace)["metadata"]["uid"]
    run.wait(phase="Succeeded", timeout_s=120)
    assert run.cluster.get("job", STAGES[0], namespace=run.namespace)["metadata"]["uid"] == uid
    undisturbed(run)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_an_operator_killed_around_every_kind_of_write_loses_nothing(
    before: bool, run: WatchedRun, node: SimulatedNode, proxy: ApiProxy, proxied: OperatorProcess
) -> None:
    """SIGKILL right before the second write of a kind reaches the server, or right after the server carried it out."""
    killed: Counter[str] = Counter()

    def plan(call: Call) -> Fault | None:
        if call.method == "GET" or call.kind not in KINDS_WRITTEN or killed[call.kind] or call.nth < 2:
            return None
        killed[call.kind] += 1
        if before and proxied.pid is not None:
            os.kill(proxied.pid, signal.SIGKILL)
            return "500"  # to nobody: the one who asked is dead
        return "lost"

    proxy.plan = plan
    run.apply()
    for number in range(1, len(KINDS_WRITTEN) + 1):
        run.until(lambda number=number: killed.total() >= number, f"write {number}")
        if not before:
            eventually(lambda: proxy.faults["lost"] >= killed.total(), what="the server carried it out")
        proxied.kill()
        proxied.start()
    run.wait(phase="Succeeded", timeout_s=120)
    assert set(killed) == set(KINDS_WRITTEN)
    undisturbed(run)


def test_a_job_that_the_server_finds_invalid_says_so_field_by_field_and_an_edit_mends_it(
    run: WatchedRun, node: SimulatedNode, operator: OperatorProcess
) -> None:
    """422: a label that the schema of a run cannot know to be reserved."""
    run.apply(template={"nodeSelector": {"kubernetes.io/hostname": "simulated"}, "tolerations": [BAD_TOLERATION]})
    refused = run.wait(reason="CreateRejected")
    assert "tolerations[0]" in refused["message"]
    stalled = next(c for c in refused["conditions"] if c["type"] == "Stalled")
    assert stalled["status"] == "True"
    run.until(lambda: any(e.startswith("CreateRefused: ") for e in run.events()), "the event")
    run.patch({"template": {"tolerations": None}})
    run.wait(phase="Succeeded")
    undisturbed(run)


BAD_TOLERATION = {"key": "gpu", "operator": "Exists", "effect": "NoSchedule", "tolerationSeconds": 5}
"""Seconds are allowed for the effect NoExecute only."""


def test_a_server_that_throttles_the_operator_for_itself_is_obeyed(
    run: WatchedRun, node: SimulatedNode, control_plane: ControlPlane, tmp_path: Path
) -> None:
    """429 by the server's own priority and fairness: the operator's writes of Jobs get no seat at all."""
    limited = control_plane.access_for("throttled")
    run.cluster.apply(*no_seats("throttled", run.namespace))
    process = OperatorProcess(tmp_path, kubeconfig=limited.kubeconfig, namespace=run.namespace)
    process.start()
    try:
        run.apply()
        refused = '{code="429",verb="POST"}'
        eventually(lambda: process.metrics().get(f"itrain_api_requests_total{refused}", 0) >= 2, what="refusals")
        assert run.job_names() == []
        run.cluster.kubectl("delete", "flowschema", f"no-seats-{run.namespace}")
        run.wait(phase="Succeeded", timeout_s=120)
        undisturbed(run)
    finally:
        process.stop()


def no_seats(user: str, namespace: str) -> list[dict[str, object]]:
    """A user who may do everything and whose creations of Jobs are rejected as too many."""
    name = f"no-seats-{namespace}"
    subject = {"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}
    limited = {"nominalConcurrencyShares": 0, "lendablePercent": 0, "borrowingLimitPercent": 0}
    rule = {"verbs": ["create"], "apiGroups": ["batch"], "resources": ["jobs"], "namespaces": [namespace]}
    return [
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [subject],
        },
        {
            "apiVersion": "flowcontrol.apiserver.k8s.io/v1",
            "kind": "PriorityLevelConfiguration",
            "metadata": {"name": name},
            "spec": {"type": "Limited", "limited": {**limited, "limitResponse": {"type": "Reject"}}},
        },
        {
            "apiVersion": "flowcontrol.apiserver.k8s.io/v1",
            "kind": "FlowSchema",
            "metadata": {"name": name},
            "spec": {
                "priorityLevelConfiguration": {"name": name},
                "matchingPrecedence": 2,
                "rules": [
                    {"subjects": [{"kind": "User", "user": {"name": user}}], "resourceRules": [rule]},
                ],
            },
        },
    ]


# --- people and other operators ---


def test_a_run_can_be_suspended_and_resumed_in_every_stage(
    run: WatchedRun, node: SimulatedNode, operator: OperatorProcess
) -> None:
    held: set[StageRef] = set()

    def script(ref: StageRef, attempt: int, index: int) -> PodRun:
        return PodRun() if ref in held else PodRun(seconds=600.0)

    node.script = script
    run.apply()
    for job in STAGES:
        _, iteration, stage, _ = job.split("-")
        run.wait(stage=stage, reason="StageRunning", current=lambda now, job=job: bool(now) and now["jobName"] == job)
        run.patch({"suspend": True})
        run.wait(phase="Suspended")
        run.until(lambda job=job: job not in run.job_names(), "the Job is gone")
        held.add(StageRef(kind=StageKind(stage), iteration=int(iteration.removeprefix("i"))))
        run.patch({"suspend": False})
    run.wait(phase="Succeeded")
    undisturbed(run)


def test_an_operator_that_is_upgraded_adopts_the_running_job_and_makes_the_next_by_its_own_templates(
    run: WatchedRun, node: SimulatedNode, operator: OperatorProcess, tmp_path: Path
) -> None:
    node.script = slow("warmup", 8.0)
    run.apply()
    run.wait_for_running("warmup")
    before = run.cluster.get("job", "run-i0-warmup-a1", namespace=run.namespace)
    operator.stop()
    newer = OperatorProcess(
        tmp_path / "newer",
        kubeconfig=run.cluster.kubeconfig,
        namespace=run.namespace,
        images={"current": {"pipeline": "example.org/itrain:2"}},
    )
    newer.start()
    try:
        eventually(lambda: newer.leads, what="the newer operator leads")
        run.patch({"ttlSecondsAfterFinished": 1000})  # so that the newer one has to look at it
        run.wait(observedGeneration=2, stage="warmup")
        running = run.cluster.get("job", "run-i0-warmup-a1", namespace=run.namespace)
        assert running["metadata"]["uid"] == before["metadata"]["uid"]
        assert run.status()["templateHash"] == before["metadata"]["annotations"]["itrain.dev/template-hash"]
        run.wait(phase="Succeeded")
        undisturbed(run)
    finally:
        newer.stop()
    jobs = {job["metadata"]["name"]: job for job in run.cluster.get("jobs", namespace=run.namespace)["items"]}
    images = [jobs[name]["spec"]["template"]["spec"]["containers"][0]["image"] for name in STAGES]
    assert images == ["example.org/itrain:1"] * 2 + ["example.org/itrain:2"] * 6


def test_two_operators_that_both_act_make_no_job_twice(
    run: WatchedRun, node: SimulatedNode, cluster: Access, namespace: str, tmp_path: Path
) -> None:
    """Nobody asks for a lease: what a split brain would do."""
    pair = [
        OperatorProcess(
            tmp_path, kubeconfig=cluster.kubeconfig, namespace=namespace, name=name, lease={"enabled": False}
        )
        for name in ("one", "other")
    ]
    for operator in pair:
        operator.start()
    try:
        run.apply()
        run.wait(phase="Succeeded")
        undisturbed(run)
        assert all(operator.metrics()['itrain_api_requests_total{code="201",verb="POST"}'] > 0 for operator in pair)
    finally:
        for operator in pair:
            operator.stop()


def test_an_edit_that_is_forbidden_while_a_stage_runs_changes_nothing(
    run: WatchedRun, node: SimulatedNode, operator: OperatorProcess
) -> None:
    node.script = slow("warmup", 3.0)
    run.apply()
    run.wait_for_running("warmup")
    spec = run.raw()["spec"]
    for field, value in (("seed", 7), ("adapter", {"rank": 4}), ("model", {"uri": "hf://other/model"})):
        patch = json.dumps({"spec": {field: value}})
        said = run.cluster.try_kubectl("patch", "itr", "run", "--type=merge", "-p", patch, namespace=run.namespace)
        assert said.returncode != 0
        assert field in said.stderr
    assert run.raw()["spec"] == spec
    run.wait(phase="Succeeded")
    undisturbed(run)
