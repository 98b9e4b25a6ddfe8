"""Queues, flavours and priorities as people write them, and the least of Kueue's resources for a server without Kueue.

The definitions are ours, with the names, versions and subresources of Kueue 0.19's and no schema: Workloads of the
stand-in are as Kueue's, others would not be refused.
"""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]

GROUP = "kueue.x-k8s.io"
VERSION = "v1beta2"
STAND_IN_LABEL = "itrain.dev/stand-in"
KINDS = {
    "workloads": ("Workload", "Namespaced", True),
    "localqueues": ("LocalQueue", "Namespaced", True),
    "clusterqueues": ("ClusterQueue", "Cluster", True),
    "resourceflavors": ("ResourceFlavor", "Cluster", False),
    "workloadpriorityclasses": ("WorkloadPriorityClass", "Cluster", False),
}
"""Plural to kind, scope, and whether it has a status of its own."""


def definitions() -> tuple[Object, ...]:
    return tuple(_definition(plural, *how) for plural, how in KINDS.items())


def _definition(plural: str, kind: str, scope: str, status: bool) -> Object:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}", "labels": {STAND_IN_LABEL: "true"}},
        "spec": {
            "group": GROUP,
            "scope": scope,
            "names": {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower()},
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}} if status else {},
                    "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
                }
            ],
        },
    }


def flavor(name: str, **node_labels: str) -> Object:
    labels = {key.replace("_", "-"): value for key, value in node_labels.items()}
    return _object("ResourceFlavor", name, spec={"nodeLabels": labels} if labels else {})


def cluster_queue(name: str, flavor: str, *, cpu: int) -> Object:
    """A quota of CPUs for everybody; who has a lower priority makes room."""
    quota = {"name": flavor, "resources": [{"name": "cpu", "nominalQuota": str(cpu)}]}
    return _object(
        "ClusterQueue",
        name,
        spec={
            "namespaceSelector": {},
            "resourceGroups": [{"coveredResources": ["cpu"], "flavors": [quota]}],
            "preemption": {"withinClusterQueue": "LowerPriority"},
        },
    )


def local_queue(name: str, namespace: str, queue: str) -> Object:
    return _object("LocalQueue", name, namespace=namespace, spec={"clusterQueue": queue})


def priority(name: str, value: int) -> Object:
    return _object("WorkloadPriorityClass", name, value=value)


def _object(kind: str, name: str, *, namespace: str = "", **fields: Any) -> Object:
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": kind, "metadata": metadata, **fields}
