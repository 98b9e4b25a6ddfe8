"""A constant number of runs: one that has succeeded is deleted and another one takes its place."""

from __future__ import annotations

import asyncio

from itrain_bench.controller.errands import Errands, repeat
from itrain_bench.controller.ledger import is_complete
from itrain_contract.names import LABEL_RUN, LABEL_STAGE, Phase
from itrain_contract.stages import StageKind
from itrain_operator.kube import KubeCluster
from itrain_operator.kubeapi import RUNS, Raw
from itrain_testing.clusterruns import run_manifest

AT_ONCE = 8
POLL_S, POLLS = 0.5, 240
ONE_SHARD = {"gpus": 0, "shards": 1, "parallelism": 1}
STAGES = {
    **{stage: {"gpus": 0} for stage in ("prepare", "warmup", "train", "evaluate", "export")},
    "score": ONE_SHARD,
    "rollout": ONE_SHARD,
}
CHILDREN = 8
"""Jobs of a run with one iteration."""


def build_run(name: str, namespace: str) -> Raw:
    """One iteration, one pod a Job."""
    return run_manifest(name, namespace, stages=STAGES)


class Population:
    """Use it in one event loop; `see` every Job."""

    def __init__(self, cluster: KubeCluster, namespace: str) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._made = 0
        self._ending: set[str] = set()
        self.errands = Errands()
        self.succeeded = 0

    async def fill(self, size: int) -> None:
        """Create the runs, as fast as the server takes them."""
        await repeat(self._create, size, at_once=AT_ONCE)

    def see(self, job: Raw, deleted: bool, at: float) -> None:
        labels = job["metadata"]["labels"]
        run = labels[LABEL_RUN]
        if deleted or labels[LABEL_STAGE] != StageKind.EXPORT or run in self._ending or not is_complete(job):
            return
        self._ending.add(run)
        self.errands.run(self._replace(run))

    async def _create(self) -> None:
        self._made += 1
        await self._cluster.create(RUNS, self._namespace, build_run(f"run-{self._made:05d}", self._namespace))

    async def _replace(self, name: str) -> None:
        for _ in range(POLLS):
            run = await self._cluster.get(RUNS, self._namespace, name)
            if run["status"]["phase"] == Phase.SUCCEEDED:
                break
            await asyncio.sleep(POLL_S)
        else:
            raise RuntimeError(f"{name} has completed its export and is still {run['status']['phase']}")
        self.succeeded += 1
        await self._cluster.delete(RUNS, self._namespace, name, uid=run["metadata"]["uid"])
        await self._create()
