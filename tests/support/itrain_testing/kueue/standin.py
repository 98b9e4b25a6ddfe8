"""Kueue's part in a test: suspends, admits, evicts and admits again as `rules` says, on a real API server.

One thread looks at everything ten times a second; at every look it takes at most one step with each Job and one with
each queue, as Kueue's reconcilers and its scheduler do at each event.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itrain_contract.names import LABEL_QUEUE, LABEL_QUEUE_PRIORITY, LABEL_WORKLOAD_JOB
from itrain_operator.kube import KubeCluster
from itrain_operator.kubeapi import (
    JOBS,
    WORKLOADS,
    AlreadyExistsError,
    ApiError,
    ConflictError,
    NotFoundError,
    RefusedError,
    Resource,
    pages,
)
from itrain_testing.kubeclient import open_cluster
from itrain_testing.kueue import rules
from itrain_testing.kueue.objects import GROUP, VERSION
from itrain_testing.kueue.rules import Conditions, Object, Write
from itrain_testing.podstatus import stamp

POLL_S = 0.1


def _resource(plural: str) -> Resource:
    return Resource(api_version=f"{GROUP}/{VERSION}", plural=plural)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everything at one look, by name (and namespace)."""

    jobs: list[Object]
    workloads: dict[str, Object]
    """By the UID of their Job."""
    queues: dict[tuple[str, str], str]
    """LocalQueue to ClusterQueue."""
    cluster_queues: dict[str, Object]
    flavors: dict[str, Object]
    priorities: dict[str, int]


class StandIn:
    """Runs between `start` and `stop`."""

    def __init__(self, kubeconfig: Path) -> None:
        self._kubeconfig = kubeconfig
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="kueue", daemon=True)
        self.refused: list[str] = []
        """What the API server did not take, and what ended the stand-in: each is a fault of it."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    async def _main(self) -> None:
        cluster = await open_cluster(self._kubeconfig)
        while not self._stop.is_set():
            try:
                world = await self._look(cluster)
                for writes in (*self._of_jobs(world), *self._of_workloads(world), *schedule(world)):
                    await self._write(cluster, writes)
            except ApiError:
                await asyncio.sleep(1.0)  # an API server that a test stopped
            except Exception as error:
                self.refused.append(f"{type(error).__name__}: {error}")
                raise
            await asyncio.sleep(POLL_S)
        await cluster.close()

    async def _look(self, cluster: KubeCluster) -> World:
        async def all_of(resource: Resource, labels: str = "") -> list[Object]:
            return [raw async for page in pages(cluster, resource, "", labels=labels) for raw in page.items]

        local = await all_of(_resource("localqueues"))
        classes = await all_of(_resource("workloadpriorityclasses"))
        return World(
            cluster_queues=_by_name(await all_of(_resource("clusterqueues"))),
            flavors=_by_name(await all_of(_resource("resourceflavors"))),
            priorities={found["metadata"]["name"]: found["value"] for found in classes},
            queues={(q["metadata"]["namespace"], q["metadata"]["name"]): q["spec"]["clusterQueue"] for q in local},
            workloads={w["metadata"]["labels"][LABEL_WORKLOAD_JOB]: w for w in await all_of(WORKLOADS)},
            jobs=await all_of(JOBS, LABEL_QUEUE),
        )

    def _of_jobs(self, world: World) -> Iterable[list[Write]]:
        def make(job: Object) -> Object:
            named = job["metadata"]["labels"].get(LABEL_QUEUE_PRIORITY)
            return rules.new_workload(job, world.priorities[named] if named else 0, named)

        for job in world.jobs:
            workload = world.workloads.get(job["metadata"]["uid"])
            yield rules.plan_job(job, workload, now=stamp(), flavors=world.flavors, make=make)

    def _of_workloads(self, world: World) -> Iterable[list[Write]]:
        there = {job["metadata"]["uid"] for job in world.jobs}
        for uid, workload in world.workloads.items():
            if uid not in there and workload["metadata"].get("finalizers"):
                yield [rules.without_finalizer(workload)]  # reconciler `finalizeWorkloads`
            yield rules.plan_active(workload, now=stamp())

    async def _write(self, cluster: KubeCluster, writes: list[Write]) -> None:
        """In order; what changed meanwhile is looked at anew."""
        with suppress(ConflictError, NotFoundError, AlreadyExistsError):
            for write in writes:
                try:
                    if write.create:
                        await cluster.create(write.resource, write.namespace, write.body)
                    else:
                        await cluster.merge_patch(
                            write.resource, write.namespace, write.name, write.body, subresource=write.subresource
                        )
                except RefusedError as error:
                    if not error.terminating:
                        self.refused.append(f"{write.resource.plural} {write.name}: {error}")
                    raise


def schedule(world: World) -> Iterable[list[Write]]:
    """scheduler `schedule`: of each ClusterQueue the first that fits, by priority, then by age (BestEffortFIFO)."""
    for name, queue in world.cluster_queues.items():
        mine = [w for w in world.workloads.values() if world.queues.get(_queue_of(w)) == name]
        yield _cycle(name, queue, mine)
    for workload in world.workloads.values():
        namespace, queue_name = _queue_of(workload)
        if _waits(workload) and (namespace, queue_name) not in world.queues:
            yield rules.refuse(workload, f"LocalQueue {queue_name} doesn't exist", now=stamp())


def _cycle(name: str, queue: Object, workloads: list[Object]) -> list[Write]:
    (group,) = queue["spec"]["resourceGroups"]
    (flavor,) = group["flavors"]
    quota = {found["name"]: float(found["nominalQuota"]) for found in flavor["resources"]}
    holders = [w for w in workloads if _is(w, "QuotaReserved") and not _is(w, "Finished")]
    free = {kind: quota[kind] - sum(_usage(w, kind) for w in holders) for kind in quota}
    said: list[Write] = []
    for workload in sorted((w for w in workloads if _waits(w)), key=_rank):
        pods = workload["spec"]["podSets"][0]
        request = {kind: _request(pods["template"], kind) for kind in quota}
        count = pods["count"] - _reclaimed(workload)
        room = min(int(free[kind] // request[kind]) if request[kind] else count for kind in quota)
        if room < count and not any(_is(w, "Evicted") for w in holders):
            victims = _victims(workload, holders, count - room)
            if victims:
                return [rules.preempt(victim, workload, now=stamp()) for victim in victims]
        least = pods.get("minCount", count)
        if room >= count or (room >= least and not any(_is(w, "Evicted") for w in holders)):
            given = min(room, count)
            resources = {kind: f"{request[kind] * given:g}" for kind in quota}
            return [*said, rules.admit(workload, name, flavor["name"], resources, given, now=stamp())]
        missing = ", ".join(
            f"insufficient unused quota for {kind} in flavor {flavor['name']}, "
            f"{request[kind] * count - free[kind]:g} more needed"
            for kind in quota
            if request[kind] * count > free[kind]
        )
        said += rules.refuse(workload, f"couldn't assign flavors to pod set main: {missing}", now=stamp())
    return said


def _victims(workload: Object, holders: list[Object], pods: int) -> list[Object]:
    """scheduler/preemption: lower priorities, the lowest and youngest first, until there is room; else nobody.

    All pods here ask for the same, so that room is counted in pods.
    """
    lower = [w for w in holders if _priority(w) < _priority(workload)]
    chosen: list[Object] = []
    for victim in sorted(lower, key=lambda w: (_priority(w), _reversed(w["metadata"]["creationTimestamp"]))):
        if pods <= 0:
            break
        chosen.append(victim)
        pods -= _held(victim)
    return chosen if pods <= 0 else []


def _reversed(text: str) -> tuple[int, ...]:
    return tuple(-ord(letter) for letter in text)


def _waits(workload: Object) -> bool:
    """workload `IsAdmissible`: active, without quota, not ended, not held back by `Requeued`."""
    if not workload["spec"].get("active", True) or "deletionTimestamp" in workload["metadata"]:
        return False
    requeued = Conditions(workload, "").get("Requeued").get("status") != "False"
    return requeued and not _is(workload, "QuotaReserved") and not _is(workload, "Finished")


def _is(workload: Object, kind: str) -> bool:
    return Conditions(workload, "").is_true(kind)


def _rank(workload: Object) -> tuple[int, str, str]:
    metadata = workload["metadata"]
    return (-_priority(workload), metadata["creationTimestamp"], metadata["name"])


def _priority(workload: Object) -> int:
    return int(workload["spec"].get("priority", 0))


def _reclaimed(workload: Object) -> int:
    return sum(pods["count"] for pods in (workload.get("status") or {}).get("reclaimablePods") or [])


def _held(workload: Object) -> int:
    """workload `totalRequestsFromAdmission`: pods that it was admitted with, but no more than are left to run."""
    assigned = int(workload["status"]["admission"]["podSetAssignments"][0]["count"])
    return min(assigned, workload["spec"]["podSets"][0]["count"] - _reclaimed(workload))


def _usage(workload: Object, kind: str) -> float:
    return _held(workload) * _request(workload["spec"]["podSets"][0]["template"], kind)


def _request(template: Object, kind: str) -> float:
    containers: list[Any] = template["spec"]["containers"]
    return sum(float(c.get("resources", {}).get("requests", {}).get(kind, 0)) for c in containers)


def _queue_of(workload: Object) -> tuple[str, str]:
    return workload["metadata"]["namespace"], workload["spec"]["queueName"]


def _by_name(objects: list[Object]) -> dict[str, Object]:
    return {found["metadata"]["name"]: found for found in objects}
