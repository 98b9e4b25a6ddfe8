"""GPU nodes without GPUs: labels and taints of real ones, faked capacity, and pods that run by their status alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from itrain_contract.stages import StageRef
from itrain_testing.cluster.access import Access, eventually
from itrain_testing.podstatus import PodRun
from itrain_testing.simkubelet import PodScript, SimulatedNode

GPU_TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
V100, A100 = "gpu-v100", "gpu-a100"
LABELS = {
    V100: {"nvidia.com/gpu.product": "Tesla-V100-SXM2-32GB", "nvidia.com/gpu.family": "volta"}
    | {"nvidia.com/gpu.compute.major": "7", "nvidia.com/gpu.compute.minor": "0", "nvidia.com/gpu.memory": "32768"},
    A100: {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB", "nvidia.com/gpu.family": "ampere"}
    | {"nvidia.com/gpu.compute.major": "8", "nvidia.com/gpu.compute.minor": "0", "nvidia.com/gpu.memory": "81920"},
}
TAINTS = {V100: [GPU_TAINT, {"key": "dedicated", "value": "v100", "effect": "NoSchedule"}], A100: [GPU_TAINT]}
CAPACITY = {"cpu": "64", "memory": "512Gi", "pods": "110", "nvidia.com/gpu": "8", "ephemeral-storage": "1Ti"}


def train_fails_once(ref: StageRef, attempt: int, index: int) -> PodRun:
    return PodRun(exit_code=75 if ref.kind == "train" and attempt == 1 else 0)


@contextmanager
def gpu_nodes(access: Access, folder: Path, *, script: PodScript) -> Iterator[None]:
    """A node with eight V100s and one with eight A100s, Ready; both are gone afterwards."""
    with ExitStack() as stack:
        for name in (V100, A100):
            (folder / name).mkdir(parents=True)
            node = SimulatedNode(
                access.kubeconfig,
                folder / name,
                name=name,
                script=script,
                labels=LABELS[name],
                taints=TAINTS[name],
                capacity=CAPACITY,
            )
            stack.callback(access.kubectl, "delete", "node", name, "--ignore-not-found")
            node.start()
            stack.callback(node.stop)
        eventually(lambda: is_schedulable(access, V100) and is_schedulable(access, A100), what="GPU nodes are there")
        yield


def is_schedulable(access: Access, name: str) -> bool:
    """The node has no taints but its own: the node controller has seen it ready."""
    found = access.try_kubectl("get", "node", name, "-o", "jsonpath={.spec.taints[*].key}")
    return sorted(found.stdout.split()) == sorted(taint["key"] for taint in TAINTS[name])


def pools_run(name: str, namespace: str, storage: Mapping[str, Any]) -> dict[str, Any]:
    """Preparation on CPU nodes, training on newer GPUs, everything else on V100s."""
    fast = {"retry": {"limit": 2, "backoffSeconds": 1}}
    stages: dict[str, dict[str, Any]] = {
        "prepare": {"template": {"nodePool": "cpu"}},
        "warmup": {"gpus": 2},
        "score": {"gpus": 1, "shards": 2, "parallelism": 2},
        "rollout": {"gpus": 1, "shards": 3, "parallelism": 3},
        "train": {"gpus": 4, "nodes": 2, "deepspeed": "zero2", "template": {"nodePool": "current"}},
        "evaluate": {"gpus": 1},
        "export": {"gpus": 1},
    }
    spec = {
        "model": {"uri": "builtin://toolworld"},
        "data": {
            "uri": "builtin://toolworld?split=train&rows=64&seed=1",
            "dev": {"uri": "builtin://toolworld?split=dev&rows=16&seed=2"},
        },
        "storage": dict(storage),
        "precision": "fp16",
        "iterations": {"max": 1},
        "template": {"nodePool": "volta"},
        "stages": {stage: {**fields, **fast} for stage, fields in stages.items()},
    }
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "itrain.dev/v1alpha1", "kind": "ITrainRun", "metadata": metadata, "spec": spec}
