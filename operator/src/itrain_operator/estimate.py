"""What a run will ask of the cluster, before it starts: its stages, pods and GPUs, and a bound on GPU-hours. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from itrain_contract.spec import ITrainRunSpec
from itrain_contract.stages import StageRef, stage_sequence, stage_spec, upstream
from itrain_contract.stagespec import ShardedStage, TrainStage


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStage:
    """One stage of the run's order. `pods` in all, `parallel` at a time, `gpus` each."""

    ref: StageRef
    pods: int
    parallel: int
    gpus: int
    quorum: int
    retries: int
    deadline_s: int | None
    reads: tuple[StageRef, ...]

    @property
    def gpus_at_a_time(self) -> int:
        return self.parallel * self.gpus

    @property
    def gpu_hours_bound(self) -> float | None:
        """All attempts running to their deadline; None without a deadline, 0 without GPUs."""
        if not self.gpus:
            return 0.0
        if self.deadline_s is None:
            return None
        return self.gpus_at_a_time * self.deadline_s * (1 + self.retries) / 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    stages: tuple[PlannedStage, ...]
    gpu_hours_bound: float | None
    """The least of what limits the run; None when nothing does."""
    bound_by: str
    """Which field sets the bound, or what to set."""

    @property
    def pods(self) -> int:
        return sum(stage.pods for stage in self.stages)

    @property
    def peak_gpus(self) -> int:
        return max(stage.gpus_at_a_time for stage in self.stages)


def estimate(spec: ITrainRunSpec) -> Estimate:
    """Every iteration counted; an early stop (`stopWhen`) only makes it less."""
    sequence = stage_sequence(spec)
    stages = tuple(_planned(spec, ref, upstream(ref, sequence[:at])) for at, ref in enumerate(sequence))
    peak = max(stage.gpus_at_a_time for stage in stages)
    bounds: list[tuple[float, str]] = []
    if not peak:
        bounds.append((0.0, "no stage asks for a GPU"))
    if spec.max_gpu_hours is not None:
        bounds.append((spec.max_gpu_hours, "maxGpuHours"))
    if spec.active_deadline_seconds is not None:
        bounds.append((peak * spec.active_deadline_seconds / 3600, "activeDeadlineSeconds × GPUs at a time"))
    of_stages = [stage.gpu_hours_bound for stage in stages]
    known = [hours for hours in of_stages if hours is not None]
    if len(known) == len(of_stages):
        bounds.append((sum(known), "the stages' activeDeadlineSeconds, every retry used"))
    if not bounds:
        return Estimate(stages=stages, gpu_hours_bound=None, bound_by="set maxGpuHours or activeDeadlineSeconds")
    hours, reason = min(bounds)
    return Estimate(stages=stages, gpu_hours_bound=hours, bound_by=reason)


def _planned(spec: ITrainRunSpec, ref: StageRef, reads: tuple[StageRef, ...]) -> PlannedStage:
    block = stage_spec(spec, ref.kind)
    pods = parallel = quorum = 1
    if isinstance(block, ShardedStage):
        pods, parallel, quorum = block.shards, min(block.shards, block.parallelism), block.quorum
    elif isinstance(block, TrainStage):
        pods = parallel = quorum = block.nodes
    return PlannedStage(
        ref=ref,
        pods=pods,
        parallel=parallel,
        gpus=block.gpus,
        quorum=quorum,
        retries=block.retry.limit,
        deadline_s=block.active_deadline_seconds,
        reads=reads,
    )
