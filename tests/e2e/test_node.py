"""The test node runs what the operator asks of a cluster: real pods, indexed Jobs, exit codes, names, GPUs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from itrain_testing.cluster.access import Access, eventually
from itrain_testing.cluster.hostpython import IMAGE, USER
from itrain_testing.cluster.images import Layer, write_archive
from itrain_testing.cluster.node import NAME, Node

pytestmark = pytest.mark.e2e

FAIL_INDEX = 70


def pod_spec(code: str, **container: Any) -> dict[str, Any]:
    """As the operator writes it: restricted, read-only root, a scratch /tmp."""
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 1,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": [{"name": "tmp", "emptyDir": {}}],
        "containers": [
            {
                "name": "stage",
                "image": IMAGE,
                "imagePullPolicy": "Never",
                "command": ["python", "-c", code],
                "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                **container,
            }
        ],
    }


def pod(name: str, code: str, **container: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod_spec(code, **container)}


def job(name: str, template: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"completionMode": "Indexed", "template": {"spec": template}, **spec},
    }


def finished(cluster: Access, namespace: str, name: str, *, timeout_s: float = 90) -> dict[str, Any]:
    """The state in which the pod's container ended."""

    def ended() -> Any:
        status = cluster.get("pod", name, namespace=namespace)["status"]
        states = [c["state"] for c in status.get("containerStatuses", [])]
        return next((state["terminated"] for state in states if "terminated" in state), None)

    found: dict[str, Any] = eventually(ended, timeout_s=timeout_s, what=f"pod {name} ended")
    return found


def logs(cluster: Access, namespace: str, name: str) -> str:
    return cluster.kubectl("logs", name, namespace=namespace)


def test_a_stage_container_starts_restricted(pods: Access, namespace: str) -> None:
    code = """
import json, os, pathlib
def writable(path):
    try:
        pathlib.Path(path).write_text("x")
    except OSError as error:
        return type(error).__name__
    return "yes"
status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
print(json.dumps({"uid": os.getuid(), "caps": status["CapEff"], "seccomp": status["Seccomp"],
                  "privs": status["NoNewPrivs"], "root": writable("/x"), "tmp": writable("/tmp/x")}))
"""
    pods.create(pod("restricted", code), namespace=namespace)
    assert finished(pods, namespace, "restricted")["exitCode"] == 0
    said = json.loads(logs(pods, namespace, "restricted"))
    assert said == {
        "uid": USER, "caps": "0" * 16, "seccomp": "2", "privs": "1", "root": "OSError", "tmp": "yes",
    }  # fmt: skip


def test_a_pod_imports_torch_and_transformers_and_runs_the_pipeline(pods: Access, namespace: str) -> None:
    code = """
import subprocess, sys, torch, transformers
print(torch.__version__, transformers.__version__, float(torch.ones(3) @ torch.ones(3)))
sys.exit(subprocess.run([sys.executable, "-m", "itrain_pipeline", "--help"]).returncode)
"""
    pods.create(pod("libraries", code), namespace=namespace)
    ended = finished(pods, namespace, "libraries", timeout_s=240)
    said = logs(pods, namespace, "libraries")
    assert ended["exitCode"] == 0, said
    assert "3.0" in said
    assert "rollout" in said


def test_termination_message_and_exit_code_arrive(pods: Access, namespace: str) -> None:
    code = "import sys; open('/dev/termination-log', 'w').write('{\"outcome\": \"data\"}'); sys.exit(65)"
    pods.create(pod("message", code), namespace=namespace)
    ended = finished(pods, namespace, "message")
    assert (ended["exitCode"], ended["reason"], ended["message"]) == (65, "Error", '{"outcome": "data"}')


def test_without_a_message_the_end_of_the_log_stands_in(pods: Access, namespace: str) -> None:
    made = pod("log-tail", "raise SystemExit('gone wrong')", terminationMessagePolicy="FallbackToLogsOnError")
    pods.create(made, namespace=namespace)
    assert "gone wrong" in finished(pods, namespace, "log-tail")["message"]


def test_too_much_memory_is_named(pods: Access, namespace: str) -> None:
    made = pod("memory", "x = bytearray(400 << 20); print(len(x))", resources={"limits": {"memory": "64Mi"}})
    pods.create(made, namespace=namespace)
    ended = finished(pods, namespace, "memory")
    assert (ended["exitCode"], ended["reason"]) == (137, "OOMKilled")


def test_an_indexed_job_retries_an_index_and_gives_up_another(pods: Access, namespace: str) -> None:
    """Index 0 succeeds, 1 fails for good (70: FailIndex, one pod), 2 fails retryably until its limit (two pods)."""
    code = "import os, sys; sys.exit({'0': 0, '1': 70, '2': 75}[os.environ['JOB_COMPLETION_INDEX']])"
    rules = [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailIndex", "onExitCodes": {"containerName": "stage", "operator": "In", "values": [FAIL_INDEX]}},
    ]
    made = job(
        "shards",
        pod_spec(code),
        completions=3,
        parallelism=3,
        backoffLimitPerIndex=1,
        maxFailedIndexes=2,
        podReplacementPolicy="Failed",
        podFailurePolicy={"rules": rules},
    )
    pods.create(made, namespace=namespace)

    def conditions() -> list[str]:
        status = pods.get("job", "shards", namespace=namespace)["status"]
        return [c["type"] for c in status.get("conditions", []) if c["status"] == "True"]

    eventually(lambda: "Failed" in conditions(), timeout_s=120, what="the Job ended")
    status = pods.get("job", "shards", namespace=namespace)["status"]
    assert (status["completedIndexes"], status["failedIndexes"]) == ("0", "1,2")
    assert (status["succeeded"], status["failed"]) == (1, 3)


def test_pods_of_a_job_find_each_other_by_a_headless_service(pods: Access, namespace: str) -> None:
    """What training on several nodes needs: rank 1 reaches rank 0 by name before rank 0 is ready."""
    code = """
import os, socket, time
master = ("ranks-0.ranks", 29500)
if os.environ["JOB_COMPLETION_INDEX"] == "0":
    server = socket.create_server(("", 29500))
    server.accept()[0].sendall(b"hello from rank 0")
else:
    deadline = time.monotonic() + 60
    while True:
        try:
            print(socket.create_connection(master, timeout=5).recv(100).decode())
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
"""
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "ranks"},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"batch.kubernetes.io/job-name": "ranks"},
        },
    }
    template = {**pod_spec(code), "subdomain": "ranks"}
    pods.create(service, job("ranks", template, completions=2, parallelism=2, backoffLimit=0), namespace=namespace)
    pods.kubectl("wait", "--for=condition=Complete", "job/ranks", "--timeout=120s", namespace=namespace)
    said = pods.kubectl("logs", "-l", "batch.kubernetes.io/job-completion-index=1", namespace=namespace)
    assert said.strip() == "hello from rank 0"


def test_a_pod_reaches_the_api_by_its_service(pods: Access, namespace: str) -> None:
    """As the operator's own pod does: the service account's token, the cluster's authority, a virtual address."""
    code = """
import os, ssl, urllib.request
folder = "/var/run/secrets/kubernetes.io/serviceaccount/"
context = ssl.create_default_context(cafile=folder + "ca.crt")
print(urllib.request.urlopen("https://kubernetes.default.svc/version", context=context, timeout=20).status)
"""
    made = pod("api", code)
    del made["spec"]["automountServiceAccountToken"]
    pods.create(made, namespace=namespace)
    ended = finished(pods, namespace, "api")
    assert (ended["exitCode"], logs(pods, namespace, "api").strip()) == (0, "200"), logs(pods, namespace, "api")


def test_a_pretended_gpu_is_scheduled(node: Node, namespace: str) -> None:
    node.pretend_gpus(8)
    try:
        made = pod("gpu", "print('ran')", resources={"limits": {"nvidia.com/gpu": "1"}})
        made["spec"]["nodeSelector"] = {"nvidia.com/gpu.product": "Tesla-V100-SXM2-32GB"}
        node.access.create(made, namespace=namespace)
        assert finished(node.access, namespace, "gpu")["exitCode"] == 0
        greedy = pod("greedy", "print('ran')", resources={"limits": {"nvidia.com/gpu": "9"}})
        node.access.create(greedy, namespace=namespace)
        eventually(
            lambda: "Insufficient nvidia.com/gpu" in node.access.kubectl("get", "events", namespace=namespace),
            what="the ninth GPU is missed",
        )
    finally:
        node.pretend_gpus(0)


def test_an_image_from_an_archive_runs_alone(node: Node, namespace: str) -> None:
    """`runtimeClassName: plain`: nothing of the host is in it. The program is the pause program's twin, static."""
    program = (node.folder / "pause").read_bytes()
    archive = node.folder / "own.tar"
    write_archive(archive, name="localhost/own:1", layer=Layer(files={"own": program}), config={"Cmd": ["/own", "-v"]})
    node.containerd.load_image(archive)
    assert "localhost/own:1" in node.containerd.images()
    made = pod("own", "")
    made["spec"] |= {"runtimeClassName": "plain"}
    made["spec"]["containers"][0] |= {"image": "localhost/own:1", "command": ["/own", "-v"]}
    node.access.create(made, namespace=namespace)
    assert finished(node.access, namespace, "own")["exitCode"] == 0
    assert logs(node.access, namespace, "own").startswith("pause")


def test_pods_outlive_a_kubelet_that_is_started_again(node: Node, namespace: str) -> None:
    node.access.create(pod("long", "import time; time.sleep(6); print('done')"), namespace=namespace)
    node.access.kubectl("wait", "--for=condition=Ready", "pod/long", "--timeout=60s", namespace=namespace)
    node.kubelet.kill()
    node.kubelet.start()
    assert finished(node.access, namespace, "long")["exitCode"] == 0
    assert node.access.get("node", NAME)["metadata"]["name"] == NAME
