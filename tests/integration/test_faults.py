"""Faults of the control plane and of people, made on a real API server; pods run by their status alone.

Which fault is shown by which test: docs/testing.md.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import ssl
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
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


def slow(stage: str) -> PodScript:
    """Pods of one stage take their time, until they are released."""

    def script(ref: StageRef, attempt: int, index: int) -> PodRun:
        return PodRun(seconds=600.0) if ref.kind.value == stage else PodRun()

    return script


def undisturbed(run: WatchedRun) -> None:
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
    node.script = slow("warmup")
    run.apply()
    run.wait_for_running("warmup")
    control_plane.etcd.kill()
    errors = eventually(lambda: server_errors(operator), what="the operator meets errors")
    assert errors
    control_plane.etcd.start()
    control_plane.apiserver.wait_until_ready()
    node.release()
    run.wait(phase="Succeeded", timeout_s=120)
    undisturbed(run)


def test_an_etcd_that_hangs_for_longer_than_the_lease_loses_no_stage(
    run: WatchedRun, node: SimulatedNode, operator: OperatorProcess, control_plane: ControlPlane
) -> None:
    """SIGSTOP: every request hangs, the lease cannot be renewed, the leader stops acting and leads again."""
    node.script = slow("warmup")
    run.apply()
    run.wait_for_running("warmup")
    assert control_plane.etcd.pid is not None
    os.kill(control_plane.etcd.pid, signal.SIGSTOP)
    try:
        eventually(lambda: not operator.leads, what="the lease ran out")
    finally:
        os.kill(control_plane.etcd.pid, signal.SIGCONT)
    node.release()
    run.wait(phase="Succeeded", timeout_s=120)
    undisturbed(run)


def server_errors(operator: OperatorProcess) -> dict[str, float]:
    """Requests that came to nothing, by code."""
    return {code: n for code in ("500", "503", "504", "error") if (n := answers(operator, code))}


def test_after_watches_that_are_too_far_behind_everything_is_listed_again(
    run: WatchedRun, node: SimulatedNode, proxy: ApiProxy, proxied: OperatorProcess, control_plane: ControlPlane
) -> None:
    """410 Gone: what happened while the operator was cut off is compacted, and the server has forgotten it too."""
    node.script = slow("warmup")
    run.apply()
    run.wait_for_running("warmup")
    proxy.cut()
    node.release()
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
    node.script = slow("warmup")
    run.apply()
    run.wait_for_running("warmup")
    assert proxy.hush() >= 3  # runs, Jobs, pods
    node.release()
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
    node.script = slow("prepare")
    proxy.plan = lambda call: "lost" if (call.method, call.kind, call.nth) == ("POST", "jobs", 1) else None
    run.apply()
    run.wait_for_running("prepare")
    uid = run.cluster.get("job", STAGES[0], namespace=run.namespace)["metadata"]["uid"]
    node.release()
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


def test_a_job_that_the_server_finds_invalid_is_told_in_its_words_and_mended_by_an_edit(
    run: WatchedRun, node: SimulatedNode, operator: OperatorProcess
) -> None:
    """422: what the schema of a run allows and that of a pod does not."""
    run.apply(template={"tolerations": [BAD_TOLERATION]})
    refused = run.wait(reason="CreateRejected")
    assert "effect must be 'NoExecute'" in refused["message"]
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
    """429 by the server's own priority and fairness: for the operator's Jobs there is one seat, and it is taken."""
    limited = control_plane.access_for("throttled")
    run.cluster.apply(*one_seat("throttled", run.namespace))
    process = OperatorProcess(tmp_path, kubeconfig=limited.kubeconfig, namespace=run.namespace)
    process.start()
    try:
        with taken_seat(control_plane, "throttled", f"/apis/batch/v1/namespaces/{run.namespace}/jobs"):
            run.apply()
            eventually(lambda: answers(process, "429") >= 2, what="the server refuses, and is asked again")
            assert run.job_names() == []
        run.wait(phase="Succeeded", timeout_s=120)
        undisturbed(run)
    finally:
        process.stop()


@contextmanager
def taken_seat(control_plane: ControlPlane, user: str, path: str) -> Iterator[None]:
    """A request of `user` that the server works on meanwhile: it waits for a body that never comes."""
    client = control_plane.authority.client(user)
    tls = ssl.create_default_context(cafile=str(control_plane.authority.pair.certificate))
    tls.load_cert_chain(client.certificate, client.key)
    connection = http.client.HTTPSConnection(control_plane.server.removeprefix("https://"), context=tls, timeout=30)
    connection.putrequest("POST", path)
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", "1000")
    connection.endheaders()
    try:
        yield
    finally:
        connection.close()


def answers(operator: OperatorProcess, code: str) -> float:
    """How many of its requests were answered so."""
    return sum(n for name, n in operator.metrics().items() if "requests_total" in name and f'"{code}"' in name)


def one_seat(user: str, namespace: str) -> list[dict[str, object]]:
    """A user who may do everything, but create one Job at a time; a second one is rejected.

    Without any share the server still lets one request through, when no other is under way.
    """
    name = f"one-seat-{namespace}"
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
    node.script = slow("warmup")
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
        node.release()
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
        assert all(answers(operator, "201") > 0 for operator in pair)
    finally:
        for operator in pair:
            operator.stop()


def test_an_edit_that_is_forbidden_while_a_stage_runs_changes_nothing(
    run: WatchedRun, node: SimulatedNode, operator: OperatorProcess
) -> None:
    node.script = slow("warmup")
    run.apply()
    run.wait_for_running("warmup")
    spec = run.raw()["spec"]
    for field, value in (("seed", 7), ("adapter", {"rank": 4}), ("model", {"uri": "hf://other/model"})):
        patch = json.dumps({"spec": {field: value}})
        said = run.cluster.try_kubectl("patch", "itr", "run", "--type=merge", "-p", patch, namespace=run.namespace)
        assert said.returncode != 0
        assert field in said.stderr
    assert run.raw()["spec"] == spec
    node.release()
    run.wait(phase="Succeeded")
    undisturbed(run)
