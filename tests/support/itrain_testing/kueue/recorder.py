"""What happens to Jobs and Workloads, in order: one line for each field that changed, whoever changed it.

The same lines come from Kueue and from its stand-in, so that one can be held against the other. Times, UIDs, messages
and counts of running pods are left out: they are never the same twice. So is readiness (`waitForPodsReady`), which the
stand-in does not judge.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

from itrain_operator.kube import KubeCluster
from itrain_operator.kubeapi import JOBS, WORKLOADS, ApiError, Resource, watch
from itrain_testing.kubeclient import open_cluster
from itrain_testing.kueue.rules import STOPPING, Object

Change = tuple[str, str, str]
"""Object, field, new value: `("job/run-i1-rollout-a1", "suspend", "true")`."""
QUEUE_PREFIX = "kueue.x-k8s.io/"
GONE = "gone"


class Recorder:
    """Watches a namespace between `start` and `stop`."""

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        self._kubeconfig = kubeconfig
        self._namespace = namespace
        self._seen: list[tuple[int, str, Object]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="recorder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> list[Change]:
        """All changes so far."""
        self._stop.set()
        self._thread.join(timeout=10)
        return changes(self._seen)

    async def _main(self) -> None:
        cluster = await open_cluster(self._kubeconfig, may_write=False)
        tasks = [asyncio.create_task(self._watch(cluster, resource)) for resource in (JOBS, WORKLOADS)]
        while not self._stop.is_set():
            await asyncio.sleep(0.1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await cluster.close()

    async def _watch(self, cluster: KubeCluster, resource: Resource) -> None:
        version = (await cluster.list(resource, self._namespace)).resource_version
        while True:
            with suppress(ApiError):
                async for kind, raw in watch(cluster, resource, self._namespace, version=version, silence_s=300.0):
                    version = raw["metadata"]["resourceVersion"]
                    if kind != "BOOKMARK":
                        self._seen.append((int(version), kind, raw))


def changes(seen: list[tuple[int, str, Object]]) -> list[Change]:
    """Versions of Jobs and Workloads as changes; versions of both count in one row, as they are etcd's."""
    found: list[Change] = []
    known: dict[str, dict[str, str]] = defaultdict(dict)
    for _, kind, raw in sorted(seen, key=lambda event: event[0]):
        name, now = (job_fields if raw["kind"] == "Job" else workload_fields)(raw)
        now = {"is": GONE} if kind == "DELETED" else now
        before = known[name]
        found += [(name, field, value) for field, value in now.items() if before.get(field) != value]
        if kind != "DELETED":
            found += [(name, field, "") for field in before if field not in now]
        known[name] = now
    return found


def job_fields(raw: Object) -> tuple[str, dict[str, str]]:
    metadata, spec, status = raw["metadata"], raw["spec"], raw.get("status", {})
    template = spec["template"]
    selector = template["spec"].get("nodeSelector") or {}
    labels = sorted(label for label in template["metadata"].get("labels") or {} if label.startswith(QUEUE_PREFIX))
    fields: dict[str, Any] = {
        "is": "there",
        "suspend": str(bool(spec.get("suspend"))).lower(),
        "parallelism": spec.get("parallelism"),
        "stopping": (metadata.get("annotations") or {}).get(STOPPING),
        "started": "yes" if status.get("startTime") else None,
        "active": "some" if status.get("active") else "none",
        "completedIndexes": status.get("completedIndexes"),
        "ended": next((c["type"] for c in status.get("conditions") or [] if _is_outcome(c)), None),
        "template.nodeSelector": json.dumps(selector, sort_keys=True) if selector else None,
        "template.labels": " ".join(label.removeprefix(QUEUE_PREFIX) for label in labels),
    }
    return f"job/{metadata['name']}", {key: str(value) for key, value in fields.items() if value}


def _is_outcome(condition: Object) -> bool:
    return condition["type"] in ("Complete", "Failed") and condition["status"] == "True"


def workload_fields(raw: Object) -> tuple[str, dict[str, str]]:
    spec, status = raw["spec"], raw.get("status") or {}
    owner = raw["metadata"]["ownerReferences"][0]["name"]
    fields: dict[str, Any] = {
        "is": "there",
        "active": str(spec.get("active", True)).lower(),
        "count": spec["podSets"][0]["count"],
        "minCount": spec["podSets"][0].get("minCount"),
        "reclaimable": sum(pods["count"] for pods in status.get("reclaimablePods") or []),
    }
    admission = status.get("admission")
    if admission:
        fields["admitted"] = admission["podSetAssignments"][0]["count"]
    for condition in status.get("conditions") or []:
        if condition["type"] != "PodsReady":
            fields[condition["type"]] = f"{condition['status']} {condition['reason']}"
    return f"workload/{owner}", {key: str(value) for key, value in fields.items() if value}


def by_field(found: list[Change], *objects: str) -> dict[str, list[str]]:
    """The values that each field of the objects had, one after the other."""
    values: dict[str, list[str]] = defaultdict(list)
    for name, field, value in found:
        if name in objects:
            values[f"{name} {field}"].append(value)
    return dict(values)


def in_order(found: list[Change], wanted: list[Change]) -> list[Change]:
    """Of the changes wanted, those that do not come in this order."""
    rest = iter(found)
    return [change for change in wanted if not any(other == change for other in rest)]
