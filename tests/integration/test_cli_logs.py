"""`itrain logs` through a real API server, from a node's log endpoint that breaks off."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from itrain_testing.cluster.access import Access, eventually
from itrain_testing.cluster.controlplane import ControlPlane
from itrain_testing.fakelogs import LogNode
from itrain_testing.recorded import lives

ITRAIN = str(Path(sys.executable).parent / "itrain")


@pytest.fixture
def node(control_plane: ControlPlane) -> Iterator[LogNode]:
    serving = control_plane.authority.server("log-node", ["127.0.0.1"])
    made = LogNode(control_plane.access, serving, name=f"log-{uuid.uuid4().hex[:6]}")
    made.start()
    yield made
    made.stop()


def pod(run: dict[str, Any], name: str, node: LogNode, *, attempt: int) -> dict[str, Any]:
    labels = {
        "itrain.dev/run": "run",
        "itrain.dev/run-uid": run["metadata"]["uid"],
        "itrain.dev/iteration": "0",
        "itrain.dev/stage": "warmup",
        "itrain.dev/attempt": str(attempt),
    }
    container = {"name": "stage", "image": "example.org/none:1"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {"nodeName": node.name, "containers": [container], "terminationGracePeriodSeconds": 0},
    }


def set_status(cluster: Access, namespace: str, kind: str, name: str, status: dict[str, Any]) -> None:
    patch = json.dumps({"status": status})
    cluster.kubectl("patch", kind, name, "--subresource=status", "--type=merge", "-p", patch, namespace=namespace)


def test_a_followed_log_survives_a_broken_stream_and_goes_on_with_the_next_attempt(
    cluster: Access, namespace: str, node: LogNode
) -> None:
    life = lives()["succeeds"]
    raw = {**life[0].raw, "metadata": {"name": "run"}}
    raw.pop("status", None)
    cluster.create(raw, namespace=namespace)
    run = cluster.get("itr", "run", namespace=namespace)
    stamps = [f"2026-03-01T12:00:0{second}.000000000Z" for second in range(4)]
    node.scripts = {
        "first": [[f"{stamps[0]} one", f"{stamps[1]} two"], [f"{stamps[1]} two", f"{stamps[2]} three"]],
        "second": [[f"{stamps[3]} four"]],
    }
    cluster.create(pod(run, "first", node, attempt=1), namespace=namespace)
    set_status(cluster, namespace, "pod", "first", {"phase": "Running"})
    place = ["--kubeconfig", str(cluster.kubeconfig), "-n", namespace]
    following = subprocess.Popen(
        [ITRAIN, "logs", "run", "-f", *place], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    eventually(lambda: len(node.queries.get("first", [])) >= 2, what="the log is opened again")
    set_status(cluster, namespace, "pod", "first", {"phase": "Failed"})
    cluster.create(pod(run, "second", node, attempt=2), namespace=namespace)
    set_status(cluster, namespace, "pod", "second", {"phase": "Succeeded"})
    set_status(cluster, namespace, "itr", "run", life[-1].status)
    out, err = following.communicate(timeout=60)
    assert following.returncode == 0, err
    assert out.splitlines() == ["one", "two", "three", "four"]
    assert [line for line in err.splitlines() if "==>" in line] == [
        "==> i0/warmup attempt 1 <==",
        "==> i0/warmup attempt 2 <==",
    ]
    assert node.queries["first"][0]["follow"] == "true"
    assert node.queries["first"][1]["sinceTime"] == "2026-03-01T12:00:01Z"
    node.scripts = {"second": [["the end"]]}
    shown = subprocess.run([ITRAIN, "logs", "run", *place], text=True, capture_output=True, check=True)
    assert shown.stdout == "the end\n"
