"""Queues for a test: on Kueue itself where the cluster has it, on the stand-in everywhere else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from itrain_contract.names import LABEL_QUEUE, LABEL_QUEUE_PRIORITY, LABEL_WORKLOAD_JOB
from itrain_testing.cluster.access import Access, eventually
from itrain_testing.kueue.objects import (
    GROUP,
    KINDS,
    STAND_IN_LABEL,
    Object,
    cluster_queue,
    definitions,
    flavor,
    local_queue,
    priority,
)
from itrain_testing.kueue.standin import StandIn

LOW, HIGH = "itrain-test-low", "itrain-test-high"
QUEUE = "gpus"
POOL = "itrain-test-pool"
"""Label of the node that the tests' flavour names."""


@contextmanager
def queueing(cluster: Access) -> Iterator[bool]:
    """Something that queues, on this cluster; whether it is Kueue itself."""
    if _has_kueue(cluster):
        yield True
        return
    cluster.apply(*definitions())
    eventually(lambda: _served(cluster), what="the queue's resources are served")
    standin = StandIn(cluster.kubeconfig)
    standin.start()
    try:
        yield False
        assert not standin.refused, f"the API server refused the stand-in: {standin.refused}"
    finally:
        # Workloads go while somebody is there to take their finalizers off.
        cluster.try_kubectl("delete", "crd", f"workloads.{GROUP}", "--timeout=30s")
        cluster.try_kubectl("delete", "crd", f"--selector={STAND_IN_LABEL}", "--timeout=30s")
        standin.stop()


def _has_kueue(cluster: Access) -> bool:
    found = cluster.try_kubectl("get", "crd", f"workloads.{GROUP}", "-o", "json")
    return found.returncode == 0 and STAND_IN_LABEL not in json.loads(found.stdout)["metadata"].get("labels", {})


def _served(cluster: Access) -> bool:
    return all(cluster.try_kubectl("get", f"{plural}.{GROUP}").returncode == 0 for plural in KINDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Queues:
    """A queue of this test's own, in its namespace, with a quota that nobody else uses."""

    cluster: Access
    namespace: str

    def open(self, cpu: int, *, node: str = "") -> None:
        """A quota of CPUs; `node`: the flavour's nodes are those with this value of the label POOL."""
        labels = {POOL: node} if node else {}
        self.cluster.apply(
            priority(LOW, 10),
            priority(HIGH, 100),
            flavor(self.namespace, **labels),
            cluster_queue(self.namespace, self.namespace, cpu=cpu),
            local_queue(QUEUE, self.namespace, self.namespace),
        )

    def put(self, name: str, *, pods: int, priority: str = LOW) -> None:
        """A Job of somebody else: it holds its quota until `take`, on nodes that there are not."""
        container = {
            "name": "work",
            "image": "example.org/work:1",
            "resources": {"requests": {"cpu": "1"}},
        }
        job: Object = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {
                "name": name,
                "namespace": self.namespace,
                "labels": {LABEL_QUEUE: QUEUE, LABEL_QUEUE_PRIORITY: priority},
            },
            "spec": {
                "suspend": True,
                "parallelism": pods,
                "completions": pods,
                "template": {
                    "spec": {
                        "restartPolicy": "Never",
                        "nodeSelector": {"itrain-test/nowhere": "true"},
                        "containers": [container],
                    }
                },
            },
        }
        self.cluster.create(job)

    def take(self, name: str) -> None:
        self.cluster.kubectl("delete", "job", name, "--wait=false", namespace=self.namespace)

    def job(self, name: str) -> Object:
        return self.cluster.get("job", name, namespace=self.namespace)

    def runs(self, name: str) -> bool:
        """Whether a Job is let go."""
        return not self.job(name)["spec"]["suspend"]

    def workload(self, job: str) -> Object:
        """Of a Job; empty while there is none."""
        selector = f"--selector={LABEL_WORKLOAD_JOB}={self.job(job)['metadata']['uid']}"
        items = self.cluster.get(f"workloads.{GROUP}", selector, namespace=self.namespace)["items"]
        return dict(items[0]) if items else {}

    def conditions(self, job: str) -> dict[str, str]:
        """Of its Workload: type to status and reason."""
        status: Any = self.workload(job).get("status") or {}
        return {c["type"]: f"{c['status']} {c['reason']}" for c in status.get("conditions") or []}
