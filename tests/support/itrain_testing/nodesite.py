"""A team's namespace on the test's node, with a real S3 server and its Secret; an operator as a process or none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itrain_contract.loading import load_run
from itrain_testing.cluster import hostpython, sessions
from itrain_testing.cluster.access import ROOT, Access, eventually
from itrain_testing.cluster.machine import ADDRESS, in_pod
from itrain_testing.cluster.node import Node
from itrain_testing.operatorprocess import OperatorProcess
from itrain_testing.s3server import BUCKET, S3Server, admin, running_server
from itrain_testing.watchrun import WatchedRun

SECRET = "storage"
SETTINGS: dict[str, Any] = {
    "images": {"cpu": {"pipeline": hostpython.IMAGE}},
    "defaultPool": "cpu",
    "imagePullPolicy": "Never",
    "defaultResources": {kind: {"requests": {"cpu": "400m"}} for kind in ("data", "training", "inference")},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TeamSite:
    """Where runs are applied; whichever operator serves it."""

    node: Node
    namespace: str
    s3: S3Server

    @property
    def access(self) -> Access:
        return self.node.access

    def apply(self, example: str, name: str, *, nodes: int = 1, iterations: int = 0) -> WatchedRun:
        """A run of crds/examples under another name, its artifacts on the S3 server; it trains on so many nodes.

        0 iterations: the example's.
        """
        document = load_run(ROOT / "crds/examples" / example).model_dump(mode="json", by_alias=True, exclude_unset=True)
        document["metadata"] = {"name": name, "namespace": self.namespace}
        document["spec"]["storage"] = {"uri": f"s3://{BUCKET}/runs", "secretRef": {"name": SECRET}}
        document["spec"]["stages"]["train"]["nodes"] = nodes
        if iterations:
            document["spec"]["iterations"] = {"max": iterations}
        for stage in document["spec"]["stages"].values():
            stage["retry"] = {"limit": 3, "backoffSeconds": 1}
        self.access.apply(document)
        return WatchedRun(cluster=self.access, namespace=self.namespace, name=name)

    def itrain(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The user's command, with the user's own credentials."""
        code = "from itrain_operator.cli import main; main()"
        environ = {**os.environ, **self.s3.environ, "KUBECONFIG": str(self.access.kubeconfig)}
        command = [sys.executable, "-c", code, *arguments, "-n", self.namespace]
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)

    def objects(self, prefix: str) -> dict[str, str]:
        """Key below `prefix` → ETag, of every object of a run (`<name>-…`)."""
        pages = admin(self.s3.environ).get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"runs/{prefix}")
        return {item["Key"].split("/", 2)[2]: item["ETag"] for page in pages for item in page.get("Contents", [])}

    def read(self, run: str, key: str) -> bytes:
        """One object of a run, by its key below the run's folder."""
        client = admin(self.s3.environ)
        found = client.list_objects_v2(Bucket=BUCKET, Prefix=f"runs/{run}-")["Contents"]
        folder = "/".join(found[0]["Key"].split("/", 2)[:2])
        body: bytes = client.get_object(Bucket=BUCKET, Key=f"{folder}/{key}")["Body"].read()
        return body

    def pods(self, run: str, stage: str) -> list[dict[str, Any]]:
        selector = f"--selector=itrain.dev/run={run},itrain.dev/stage={stage}"
        return list(self.access.get("pods", selector, namespace=self.namespace)["items"])

    def evict(self, pod: str) -> None:
        """What a drain does to a pod: the Eviction API, which marks it as a DisruptionTarget."""
        eviction = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod, "namespace": self.namespace},
        }
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/eviction"
        self.access.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))

    def kill_process(self, stage: str) -> int:
        """SIGKILL one process of a stage that runs in a pod, as the kernel does for lack of memory; its pid."""
        pid = eventually(lambda: next(iter(stage_processes(stage)), 0), timeout_s=60, what=f"a process of {stage}")
        os.kill(pid, signal.SIGKILL)
        return int(pid)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSite(TeamSite):
    """The same with an operator of its own."""

    operator: OperatorProcess


def stage_processes(stage: str) -> list[int]:
    """Pids of this machine whose command is a stage's and whose control group is a pod's."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            found_one = words[-4:-1] == [b"-m", b"itrain_pipeline", stage.encode()] and in_pod(folder)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        if found_one:
            found.append(int(folder.name))
    return sorted(found)


@contextmanager
def team_site(node: Node, folder: Path) -> Iterator[TeamSite]:
    with (
        sessions.fresh_namespace(node.access) as namespace,
        running_server(folder / "s3", address=ADDRESS) as s3,
    ):
        s3.create_bucket()
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "stringData": s3.environ}
        node.access.apply(secret, namespace=namespace)
        node.access.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
        yield TeamSite(node=node, namespace=namespace, s3=s3)


@contextmanager
def running_site(node: Node, folder: Path) -> Iterator[NodeSite]:
    with team_site(node, folder) as team:
        operator = OperatorProcess(
            folder / "operator", kubeconfig=node.access.kubeconfig, namespace=team.namespace, **SETTINGS
        )
        try:
            operator.start()
            yield NodeSite(node=node, namespace=team.namespace, s3=team.s3, operator=operator)
        finally:
            operator.stop()
