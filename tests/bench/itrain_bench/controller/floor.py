"""What the machine itself can do: the same Jobs in the same number and rhythm, made by a bare loop and no operator.

The loop watches Jobs and makes a finished one's successor at once: no resource is read, no status, event or ConfigMap
written, nothing decided. What it takes is the API server's, etcd's, the Job controller's and this bench's share, below
which no operator comes on this machine.
"""

from __future__ import annotations

import copy
from pathlib import Path

from itrain_bench.controller.errands import Errands, repeat
from itrain_bench.controller.ledger import is_complete
from itrain_bench.controller.load import Figures, Say, Scale, arriving, closed, filled, times
from itrain_bench.controller.population import CHILDREN
from itrain_bench.controller.world import NAMESPACE, World, open_world
from itrain_contract.names import LABEL_RUN, LABEL_STAGE
from itrain_contract.stages import StageKind
from itrain_operator.kube import KubeCluster
from itrain_operator.kubeapi import CONFIG_MAPS, JOBS, Raw

FIGURES = ("children_per_s", "transition_p50_s", "transition_p99_s", "cores_apiserver", "cores_others")
SET_BY_SERVER = ("controller-uid", "job-name")
"""Labels that the API server gives a Job's pods; in both spellings, with and without a prefix."""
AT_ONCE = 8


class BareLoop:
    """Chains of CHILDREN Jobs each, all like `template`; a finished chain is deleted and another one takes its place.

    A chain's Jobs belong to a ConfigMap, so that the garbage collector has the work that it has with a run's.
    """

    def __init__(self, cluster: KubeCluster, template: Raw) -> None:
        self._cluster = cluster
        self._template = template
        self._owners: dict[str, Raw] = {}
        self._seen: set[str] = set()
        self.errands = Errands()
        self._chains = 0

    async def fill(self, size: int) -> None:
        await repeat(self._begin, size, at_once=AT_ONCE)

    def see(self, job: Raw, deleted: bool, at: float) -> None:
        name = job["metadata"]["name"]
        if deleted or name in self._seen or not is_complete(job):
            return
        self._seen.add(name)
        chain, _, place = name.rpartition("-")
        self.errands.run(self._next(chain, int(place) + 1))

    async def _begin(self) -> None:
        self._chains += 1
        chain = f"bare-{self._chains:05d}"
        self._owners[chain] = await self._cluster.create(CONFIG_MAPS, NAMESPACE, {"metadata": {"name": chain}})
        await self._next(chain, 0)

    async def _next(self, chain: str, place: int) -> None:
        owner = self._owners[chain]["metadata"]
        if place < CHILDREN:
            await self._cluster.create(JOBS, NAMESPACE, build_job(self._template, owner, place))
        else:
            del self._owners[chain]
            await self._cluster.delete(CONFIG_MAPS, NAMESPACE, chain, uid=owner["uid"])
            await self._begin()


def build_job(template: Raw, owner: Raw, place: int) -> Raw:
    """Job `place` of the chain of `owner`: what a Job of the operator asks for, without what the server added."""
    job = copy.deepcopy({key: template[key] for key in ("apiVersion", "kind", "spec") if key in template})
    job["spec"].pop("selector", None)
    pod = job["spec"]["template"]["metadata"]
    stage = StageKind.EXPORT if place == CHILDREN - 1 else StageKind.PREPARE
    labels = {**template["metadata"]["labels"], LABEL_RUN: owner["name"], LABEL_STAGE: stage.value}
    labels = {key: value for key, value in labels.items() if not key.endswith(SET_BY_SERVER)}
    pod["labels"] = labels
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": owner["name"], "uid": owner["uid"]}
    job["metadata"] = {
        "name": f"{owner['name']}-{place}",
        "labels": labels,
        "ownerReferences": [{**reference, "controller": True, "blockOwnerDeletion": True}],
    }
    return job


async def measure_floor(scale: Scale, folder: Path, template: Raw, say: Say) -> Figures:
    """The figures of `FIGURES`; `template` is a Job that the operator made on another cluster."""
    async with open_world(folder, operator=False) as world:
        loop = BareLoop(world.cluster, template)
        world.watch_jobs(loop)
        await loop.fill(scale.runs)
        await filled(world, scale.runs)
        async with arriving(world, scale.rate, scale.seed):
            figures = await _window(world, scale)
        say(f"{scale.runs} chains of a bare loop: {figures}")
        return figures


async def _window(world: World, scale: Scale) -> Figures:
    before = world.cpu()
    await world.pause(scale.seconds)
    after = world.cpu()
    await closed(world, after.at)
    seconds = after.at - before.at
    found = times(world, before.at, after.at)
    found["children_per_s"] = round(world.ledger.made_between(before.at, after.at) / seconds, 2)
    found |= {f"cores_{name}": round((after.by_name[name] - was) / seconds, 3) for name, was in before.by_name.items()}
    return {name: found[name] for name in FIGURES}
