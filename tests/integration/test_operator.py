"""The operator as a process on a real API server, with the real Job controller; pods run by their status alone."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from itrain_contract.stages import StageRef
from itrain_testing.cluster.access import Access, eventually
from itrain_testing.cluster.controlplane import ControlPlane
from itrain_testing.operatorprocess import OperatorProcess
from itrain_testing.rights import RIGHTS
from itrain_testing.simkubelet import PodRun, SimulatedNode
from itrain_testing.watchrun import SMALL, STAGES, WatchedRun


def slow(seconds: float = 600.0, *, stage: str = "") -> object:
    """Pods of a stage (of all) run for so long."""

    def script(ref: StageRef, attempt: int, index: int) -> PodRun:
        return PodRun(seconds=seconds) if stage in ("", ref.kind.value) else PodRun()

    return script


def test_a_run_goes_from_apply_to_succeeded_and_leaves_no_mark_of_kopf(
    run: WatchedRun, node: SimulatedNode, operator: OperatorProcess
) -> None:
    node.script = lambda ref, attempt, index: PodRun(
        metrics={"dev/call_accuracy": 0.5 + ref.iteration / 10} if ref.kind == "evaluate" else {},
        counters={"pairs": 7, "failed_trees": 1} if ref.kind == "rollout" else {},
    )
    run.apply()
    done = run.wait(phase="Succeeded")
    assert run.job_names() == STAGES
    assert [record.split()[0] for record in done["completed"]][3:5] == ["i1/score", "i1/rollout"]
    assert done["best"]["value"] == 0.6
    assert done["history"][-1]["pairs"] == 21
    assert done["history"][-1]["failedTrees"] == 3
    metadata = run.raw()["metadata"]
    assert "finalizers" not in metadata
    assert not [name for name in metadata.get("annotations", {}) if "kopf" in name]
    assert any(event.startswith("Succeeded: ") for event in run.events())
    run.cluster.kubectl("wait", "itr/run", "--for=condition=Succeeded", "--timeout=5s", namespace=run.namespace)
    metrics = operator.metrics()
    assert metrics['itrain_runs{phase="Succeeded"}'] == 1
    assert metrics['itrain_stage_duration_seconds_count{stage="rollout"}'] == 1


def test_an_operator_that_is_killed_again_and_again_makes_no_job_twice(
    run: WatchedRun, node: SimulatedNode, operator: OperatorProcess
) -> None:
    run.apply()
    for stage in ("prepare", "evaluate", "rollout", "train"):
        run.wait(stage=lambda now, stage=stage: now == stage)
        operator.kill()
        operator.start()
    run.wait(phase="Succeeded")
    assert run.job_names() == STAGES
    assert run.status()["retries"] == 0


def test_of_two_operators_one_acts_and_the_other_takes_over_within_its_lease(
    run: WatchedRun, node: SimulatedNode, operator: OperatorProcess, tmp_path: Path
) -> None:
    second = OperatorProcess(tmp_path, kubeconfig=run.cluster.kubeconfig, namespace=run.namespace, name="second")
    second.start()
    try:
        eventually(lambda: operator.leads, what="the first operator leads")
        assert not second.leads
        node.script = slow(8.0, stage="warmup")
        run.apply()
        run.wait_for_running("warmup")
        operator.kill()
        eventually(lambda: second.leads, timeout_s=10.0, what="the second operator leads")
        run.wait(phase="Succeeded")
        assert run.job_names() == STAGES
    finally:
        second.stop()


def test_a_leader_that_slept_through_its_lease_changes_nothing_when_it_wakes(
    run: WatchedRun, node: SimulatedNode, operator: OperatorProcess, tmp_path: Path
) -> None:
    """SIGSTOP is what a frozen virtual machine looks like from outside."""
    second = OperatorProcess(tmp_path, kubeconfig=run.cluster.kubeconfig, namespace=run.namespace, name="second")
    second.start()
    try:
        eventually(lambda: operator.leads, what="the first operator leads")
        node.script = slow(10.0, stage="warmup")
        run.apply()
        run.wait_for_running("warmup")
        assert operator.pid is not None
        os.kill(operator.pid, signal.SIGSTOP)
        eventually(lambda: second.leads, timeout_s=10.0, what="the second operator leads")
        os.kill(operator.pid, signal.SIGCONT)
        run.wait(phase="Succeeded")
        assert second.leads
        assert not operator.leads
        assert run.job_names() == STAGES
    finally:
        second.stop()


def test_an_operator_that_is_asked_to_stop_hands_its_lease_over_at_once(
    run: WatchedRun, operator: OperatorProcess, tmp_path: Path
) -> None:
    eventually(lambda: operator.leads, what="the operator leads")
    operator.stop()
    lease = run.cluster.get("lease", "itrain-operator", namespace=run.namespace)
    assert not lease["spec"].get("holderIdentity")


def test_suspend_ends_the_pods_and_resume_makes_the_same_attempt_again(
    run: WatchedRun, node: SimulatedNode, operator: OperatorProcess
) -> None:
    node.script = slow(stage="warmup")
    run.apply()
    run.wait_for_running("warmup")
    run.patch({"suspend": True})
    run.wait(phase="Suspended")
    run.until(lambda: "run-i0-warmup-a1" not in run.job_names(), "the Job is gone")
    node.script = lambda ref, attempt, index: PodRun()
    run.patch({"suspend": False})
    done = run.wait(phase="Succeeded")
    assert (done["retries"], done["preemptions"]) == (0, 0)
    assert sorted(run.job_names()) == sorted(STAGES)


def test_a_run_deleted_in_the_middle_takes_its_children_with_it(
    run: WatchedRun, node: SimulatedNode, operator: OperatorProcess
) -> None:
    node.script = slow(stage="warmup")
    run.apply()
    run.wait_for_running("warmup")
    run.delete()
    eventually(lambda: run.job_names() == [], timeout_s=60.0, what="no Job is left")
    left = run.cluster.get("configmaps", "-l", "itrain.dev/run=run", namespace=run.namespace)["items"]
    assert left == []
    assert operator.metrics()['itrain_runs{phase="Running"}'] == 0


def test_a_run_applied_again_under_the_same_name_starts_afresh(
    run: WatchedRun, node: SimulatedNode, operator: OperatorProcess
) -> None:
    node.script = slow(stage="warmup")
    run.apply()
    run.wait_for_running("warmup")
    former = run.raw()["metadata"]["uid"]
    run.delete("itr", "run", "--wait=true")
    node.script = lambda ref, attempt, index: PodRun()
    run.apply()
    run.wait(phase="Succeeded")
    owners = {
        owner["uid"]
        for job in run.cluster.get("jobs", namespace=run.namespace)["items"]
        for owner in job["metadata"]["ownerReferences"]
    }
    assert owners == {run.raw()["metadata"]["uid"]}
    assert former not in owners


def test_a_job_that_a_person_deletes_is_made_again(
    run: WatchedRun, node: SimulatedNode, operator: OperatorProcess
) -> None:
    node.script = slow(stage="warmup")
    run.apply()
    run.wait_for_running("warmup")
    node.script = lambda ref, attempt, index: PodRun()
    run.delete("job", "run-i0-warmup-a1", "--wait=false")
    done = run.wait(phase="Succeeded")
    assert done["retries"] == 0
    assert len([record for record in done["completed"] if "warmup" in record]) == 1


def test_a_job_of_somebody_else_under_our_name_is_named_and_left_alone(
    run: WatchedRun, operator: OperatorProcess
) -> None:
    container = {"name": "main", "image": "example.org/other"}
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    foreign = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "run-i0-prepare-a1"},
        "spec": {"suspend": True, "template": template},
    }
    run.cluster.create(foreign, namespace=run.namespace)
    run.apply()
    done = run.wait(phase="Failed")
    assert done["reason"] == "ForeignObject"
    assert run.job_names() == ["run-i0-prepare-a1"]


def test_an_edit_while_running_holds_from_the_next_stage_on(
    run: WatchedRun, node: SimulatedNode, operator: OperatorProcess
) -> None:
    node.script = slow(6.0, stage="warmup")
    run.apply()
    run.wait_for_running("warmup")
    run.patch({"stages": {"evaluate": {"limit": 3}}, "iterations": {"max": 2}})
    done = run.wait(phase="Succeeded", timeout_s=120)
    assert done["iterationText"] == "2/2"
    assert done["observedGeneration"] == run.raw()["metadata"]["generation"]
    config_map = run.cluster.get("configmap", "run-i0-evaluate-a1", namespace=run.namespace)
    assert json.loads(config_map["data"]["stage-input.json"])["spec"]["stage"]["limit"] == 3


def test_a_failed_attempt_is_tried_again_under_the_next_number(
    run: WatchedRun, node: SimulatedNode, operator: OperatorProcess
) -> None:
    def script(ref: StageRef, attempt: int, index: int) -> PodRun:
        return PodRun(exit_code=75, message="a hiccup") if ref.kind == "warmup" and attempt == 1 else PodRun()

    node.script = script
    run.apply()
    done = run.wait(phase="Succeeded")
    assert done["retries"] == 1
    assert "run-i0-warmup-a2" in run.job_names()
    assert "run-i0-warmup-a1" not in run.job_names()
    assert any("exit code 75" in event and "a hiccup" in event for event in run.events())


def test_a_configuration_error_ends_the_run_with_the_processes_own_words(
    run: WatchedRun, node: SimulatedNode, operator: OperatorProcess
) -> None:
    node.script = lambda ref, attempt, index: PodRun(exit_code=64, message="the model has no chat template")
    run.apply()
    done = run.wait(phase="Failed")
    assert done["reason"] == "ConfigError"
    assert "the model has no chat template" in done["message"]


def test_a_sharded_stage_succeeds_with_its_quorum(
    run: WatchedRun, node: SimulatedNode, operator: OperatorProcess
) -> None:
    def script(ref: StageRef, attempt: int, index: int) -> PodRun:
        return PodRun(exit_code=70 if ref.kind == "rollout" and index == 1 else 0)

    node.script = script
    run.apply()
    done = run.wait(phase="Succeeded")
    rollout = next(record for record in done["completed"] if "rollout" in record)
    assert rollout.endswith(" 0,2")


def test_a_shard_too_many_that_fails_ends_the_run(
    run: WatchedRun, node: SimulatedNode, operator: OperatorProcess
) -> None:
    def script(ref: StageRef, attempt: int, index: int) -> PodRun:
        return PodRun(exit_code=70 if ref.kind == "rollout" and index else 0, message="diverged")

    node.script = script
    run.apply()
    done = run.wait(phase="Failed")
    assert done["reason"] == "QuorumNotMet"
    assert "shard 1" in done["message"]
    assert "diverged" in done["message"]


def test_a_quota_on_jobs_shows_in_status_and_event_and_the_run_goes_on_when_it_is_lifted(
    run: WatchedRun, node: SimulatedNode, operator: OperatorProcess
) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "no-jobs"},
        "spec": {"hard": {"count/jobs.batch": "0"}},
    }
    run.cluster.create(quota, namespace=run.namespace)
    run.until(
        lambda: run.cluster.get("resourcequota", "no-jobs", namespace=run.namespace).get("status", {}).get("hard"),
        "the quota is in force",
    )
    run.apply()
    refused = run.wait(reason="CreateForbidden")
    assert "exceeded quota: no-jobs" in refused["message"]
    stalled = next(c for c in refused["conditions"] if c["type"] == "Stalled")
    assert stalled["status"] == "True"
    run.until(lambda: any(e.startswith("CreateRefused: ") for e in run.events()), "the event")
    run.delete("resourcequota", "no-jobs")
    run.patch({"ttlSecondsAfterFinished": 1000})  # an edit is a reason to try at once
    run.wait(phase="Succeeded")


def test_a_quota_on_pods_shows_as_the_reason_of_waiting(
    run: WatchedRun, node: SimulatedNode, operator: OperatorProcess
) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "no-pods"},
        "spec": {"hard": {"pods": "0"}},
    }
    run.cluster.create(quota, namespace=run.namespace)
    run.until(
        lambda: run.cluster.get("resourcequota", "no-pods", namespace=run.namespace).get("status", {}).get("hard"),
        "the quota is in force",
    )
    run.apply()
    run.wait(reason="WaitingForNodes", message=lambda text: "exceeded quota: no-pods" in (text or ""), timeout_s=60)


def test_an_image_that_cannot_be_pulled_shows_within_a_minute(
    run: WatchedRun, node: SimulatedNode, operator: OperatorProcess
) -> None:
    node.script = lambda ref, attempt, index: PodRun(stuck=True)
    run.apply()
    waiting = run.wait(reason="ImagePullFailed", timeout_s=60)
    assert "Back-off pulling image" in waiting["message"]


def test_pods_that_fit_no_node_show_the_schedulers_words_within_a_minute(
    run: WatchedRun, node: SimulatedNode, operator: OperatorProcess
) -> None:
    prepare = {"gpus": 0, "resources": {"requests": {"cpu": 1_000_000}}}
    run.apply(stages={**SMALL["stages"], "prepare": prepare})
    waiting = run.wait(reason="WaitingForNodes", message=lambda text: "Insufficient cpu" in (text or ""), timeout_s=60)
    assert "Unschedulable" in waiting["message"]


def test_the_progress_of_a_training_is_read_from_its_log_and_seldom(
    run: WatchedRun, node: SimulatedNode, operator: OperatorProcess
) -> None:
    line = "2026-03-01T12:00:05Z INFO    itrain_pipeline.progress: 30/120 step, loss 0.41\n"
    node.script = lambda ref, attempt, index: PodRun(seconds=10.0 if ref.kind == "warmup" else 0.2, log=line)
    before = node.log_requests
    run.apply()
    running = run.wait(stage="warmup", progress=lambda shown: bool(shown) and shown["total"] == 120)
    assert running["progress"]["percent"] == 25
    assert running["progress"]["text"] == "step, loss 0.41"
    run.wait(stage=lambda now: now == "evaluate")
    # Every two seconds of ten, and once or twice in each of the short stages before.
    assert node.log_requests - before <= 9


def test_a_drained_pod_of_a_training_is_a_preemption_and_no_failure(
    run: WatchedRun, node: SimulatedNode, operator: OperatorProcess
) -> None:
    def script(ref: StageRef, attempt: int, index: int) -> PodRun:
        return PodRun(seconds=600.0 if ref.kind == "train" and attempt == 1 else 0.2)

    node.script = script
    run.apply()
    run.wait_for_running("train")
    pod = run.cluster.get("pods", "-l", "itrain.dev/stage=train", namespace=run.namespace)["items"][0]
    name = pod["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": run.namespace}}
    path = f"/api/v1/namespaces/{run.namespace}/pods/{name}/eviction"
    run.cluster.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
    done = run.wait(phase="Succeeded")
    assert (done["preemptions"], done["retries"]) == (1, 0)


def test_watches_that_are_cut_with_the_api_server_lose_nothing(
    run: WatchedRun, node: SimulatedNode, operator: OperatorProcess, control_plane: ControlPlane
) -> None:
    node.script = slow(6.0, stage="warmup")
    run.apply()
    run.wait_for_running("warmup")
    control_plane.apiserver.kill()
    control_plane.apiserver.start()
    eventually(lambda: operator.leads, what="the operator leads again")
    run.wait(phase="Succeeded", timeout_s=120)
    assert run.job_names() == STAGES
    assert run.status()["retries"] == 0


def test_these_rights_are_enough_and_no_secret_is_among_them(
    run: WatchedRun, node: SimulatedNode, control_plane: ControlPlane, tmp_path: Path
) -> None:
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "operator"},
        "rules": [
            {"apiGroups": [group], "resources": [resource], "verbs": sorted(verbs)}
            for (group, resource), verbs in RIGHTS.items()
        ],
    }
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "operator"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "operator"},
        "subjects": [{"kind": "User", "name": "operator", "apiGroup": "rbac.authorization.k8s.io"}],
    }
    run.cluster.create(role, binding, namespace=run.namespace)
    limited = control_plane.access_for("operator")
    process = OperatorProcess(tmp_path, kubeconfig=limited.kubeconfig, namespace=run.namespace)
    process.start()
    try:
        node.script = lambda ref, attempt, index: PodRun(
            seconds=5.0 if ref.kind == "train" and attempt == 2 else 0.2,
            exit_code=75 if ref.kind == "train" and attempt == 1 else 0,
        )
        run.apply()
        run.wait(phase="Succeeded")
        run.until(lambda: any(e.startswith("Succeeded: ") for e in run.events()), "the event")
        refused = {name: n for name, n in process.metrics().items() if "requests_total" in name and '"403"' in name}
        assert refused == {}
    finally:
        process.stop()


def test_one_operator_for_all_namespaces(
    run: WatchedRun, node: SimulatedNode, cluster: Access, namespace: str, tmp_path: Path
) -> None:
    everywhere = OperatorProcess(tmp_path, kubeconfig=cluster.kubeconfig, namespace=namespace, namespaces=[])
    everywhere.start()
    try:
        run.apply()
        run.wait(phase="Succeeded")
    finally:
        everywhere.stop()


def test_a_namespace_that_is_deleted_goes_without_a_word_of_trouble(
    run: WatchedRun, node: SimulatedNode, operator: OperatorProcess
) -> None:
    node.script = slow(stage="warmup")
    run.apply()
    run.wait_for_running("warmup")
    run.cluster.kubectl("delete", "namespace", run.namespace, "--timeout=60s")
    errors = {key: value for key, value in operator.metrics().items() if "reconcile_errors_total" in key}
    assert errors == {}


def test_applying_the_same_manifest_twice_changes_nothing(
    run: WatchedRun, node: SimulatedNode, operator: OperatorProcess
) -> None:
    run.apply()
    run.wait(phase="Succeeded")
    before = run.raw()["metadata"]
    run.apply()
    after = run.raw()["metadata"]
    assert (after["generation"], after["resourceVersion"]) == (before["generation"], before["resourceVersion"])
