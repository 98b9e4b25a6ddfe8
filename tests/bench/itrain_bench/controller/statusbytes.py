"""How large a status can get: the planner takes a run through all its stages, and the largest status is stored."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from itrain_bench.controller.world import NAMESPACE
from itrain_contract.stageio import TerminationSummary
from itrain_contract.stages import StageKind, StageRef
from itrain_contract.status import ITrainRunStatus, size_bytes
from itrain_operator.observed import JobState, JobView, Run
from itrain_operator.sequence import current_ref
from itrain_testing.builders import make_run, make_spec, step, view_of
from itrain_testing.cluster.controlplane import ControlPlane
from itrain_testing.clusterruns import run_manifest

SHARDED = (StageKind.SCORE, StageKind.ROLLOUT)
METRICS = {f"bfcl/live_parallel_multiple_{n}/accuracy": 0.123456789 for n in range(63)} | {"dev/call_accuracy": 0.5}


def spec_fields(*, shards: int, iterations: int) -> dict[str, Any]:
    block = {"shards": shards, "parallelism": shards, "minSucceeded": 1}
    return {
        "iterations": {"max": iterations},
        "historyLimit": min(100, iterations),
        "stages": {"score": block, "rollout": block},
    }


def largest_status(*, shards: int, iterations: int) -> ITrainRunStatus:
    """The largest status that the planner writes in such a run; every other shard of every stage fails."""
    run = make_run(make_spec(**spec_fields(shards=shards, iterations=iterations)))
    largest = run.status
    at = 0.0
    while not run.status.phase.terminal:
        for view in _life(run, shards):
            at += 1.0
            run, _ = step(run, *([view] if view else []), at=at)
            if size_bytes(run.status) > size_bytes(largest):
                largest = run.status
    return largest


def _life(run: Run, shards: int) -> list[JobView | None]:
    """How the Job of the run's current stage looks in one pass after another."""
    ref = current_ref(run.status)
    if ref is None:
        return [None]
    half, rest = frozenset(range(0, shards, 2)), frozenset(range(1, shards, 2))
    holed = {"completed": half, "failed_indexes": rest} if ref.kind in SHARDED else {}
    return [
        view_of(run, JobState.ACTIVE, **holed),
        view_of(run, JobState.COMPLETE, **holed, summary=TerminationSummary(exit_code=0, metrics=_metrics(ref))),
    ]


def _metrics(ref: StageRef) -> dict[str, float]:
    if ref.kind != StageKind.EVALUATE:
        return {}
    return METRICS | {"dev/call_accuracy": ref.iteration / 1000}


async def stored_bytes(folder: Path, status: ITrainRunStatus) -> int:
    """The size of the status as an API server gives it back."""
    return await asyncio.to_thread(_store, folder, status)


def _store(folder: Path, status: ITrainRunStatus) -> int:
    plane = ControlPlane(folder)
    try:
        plane.etcd.start()
        plane.apiserver.start()
        plane.access.apply_crd()
        plane.access.kubectl("create", "namespace", NAMESPACE)
        plane.access.create(run_manifest("large", NAMESPACE), namespace=NAMESPACE)
        patch = json.dumps({"status": status.model_dump(mode="json", by_alias=True, exclude_none=True)})
        arguments = ["patch", "itr", "large", "--subresource=status", "--type=merge", f"--patch={patch}"]
        plane.access.kubectl(*arguments, namespace=NAMESPACE)
        found = plane.access.get("itr", "large", namespace=NAMESPACE)["status"]
    finally:
        plane.stop()
    if ITrainRunStatus.model_validate(found) != status:
        raise RuntimeError("the API server did not keep the status as it was written")
    return len(json.dumps(found, separators=(",", ":")).encode())
