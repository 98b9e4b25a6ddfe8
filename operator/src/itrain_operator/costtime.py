"""From tokens to seconds and GPU-hours: what a profile's process does in a second, and how many work at once. Pure.

Not in it: waiting for nodes and images, downloads, transfers of artifacts, retries, and shards of unequal work.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from itrain_contract.measurements import DecodeRate, EngineProfile, Rates
from itrain_contract.spec import ITrainRunSpec
from itrain_contract.stages import TRAININGS, StageKind, StageRef, stage_spec
from itrain_contract.stagespec import ShardedStage, TrainStage
from itrain_operator.cost import Work
from itrain_operator.localmachine import Machine, share

DEVICES_TOGETHER = 0.9
"""Of n times one device's training rate, what n devices reach; assumed."""
QUESTIONS_TOGETHER = 64
"""Sequences that evaluate decodes at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTime:
    """Wall clock of a stage without waiting, and the GPU-hours of its pods."""

    seconds: float
    gpu_hours: float
    pods: int
    at_a_time: int


def stage_time(
    spec: ITrainRunSpec, ref: StageRef, work: Work, profile: EngineProfile, machine: Machine | None = None
) -> StageTime:
    """`machine` is given for a run with child processes: it bounds the processes at a time and their threads."""
    block = stage_spec(spec, ref.kind)
    pods, at_a_time, threads = 1, 1, None
    if isinstance(block, ShardedStage):
        pods, at_a_time = block.shards, min(block.shards, block.parallelism)
    elif isinstance(block, TrainStage):
        pods = at_a_time = block.nodes
    if machine is not None:
        ours = share(machine, shards=pods, parallelism=at_a_time, gpus=block.gpus)
        at_a_time, threads = min(at_a_time, ours.slots), ours.threads
    rates = rates_for(profile, threads)
    if isinstance(block, ShardedStage):
        pod = _start(ref, profile) + _seconds(spec, ref, work, rates, profile, pods=pods)
        seconds = pod * math.ceil(pods / at_a_time)
        used = pod * pods * block.gpus
    else:
        devices = max(1, block.gpus) * pods if ref.kind in TRAININGS else 1
        seconds = _start(ref, profile) + _seconds(spec, ref, work, rates, profile, pods=1) / _speed_up(devices)
        used = seconds * block.gpus * pods
    return StageTime(seconds=seconds, gpu_hours=used / 3600, pods=pods, at_a_time=at_a_time)


def _start(ref: StageRef, profile: EngineProfile) -> float:
    by_kind = {
        StageKind.PREPARE: profile.prepare_start_s,
        StageKind.WARMUP: profile.train_start_s,
        StageKind.TRAIN: profile.train_start_s,
    }
    return profile.start_s if (found := by_kind.get(ref.kind)) is None else found


def _speed_up(devices: int) -> float:
    return devices if devices == 1 else devices * DEVICES_TOGETHER


def _seconds(
    spec: ITrainRunSpec, ref: StageRef, work: Work, rates: Rates, profile: EngineProfile, *, pods: int
) -> float:
    """Of one pod at its own part of the work, the start left out."""
    match ref.kind:
        case StageKind.PREPARE:
            return work.rows / profile.prepare_rows_per_s
        case StageKind.WARMUP | StageKind.TRAIN:
            return work.trained / rates.train_tokens_per_s
        case StageKind.SCORE:
            return work.scored / pods / rates.score_tokens_per_s
        case StageKind.ROLLOUT:
            stage = spec.stages.rollout
            trees = max(1, math.ceil(work.rows / pods))  # in flight are as many as the engine's memory holds
            rows = min(stage.trees_in_flight or trees, trees) * stage.actions
            return _generation(work, rates, profile, rows=rows) / pods
        case StageKind.EVALUATE:
            return _generation(work, rates, profile, rows=QUESTIONS_TOGETHER)
        case StageKind.EXPORT:
            return profile.export_s


def _generation(work: Work, rates: Rates, profile: EngineProfile, *, rows: int) -> float:
    fitting = min(rows, profile.max_rows or rows)
    return work.computed / rates.prefill_tokens_per_s + work.decoded / decode_rate(rates.decode, fitting)


def decode_rate(points: Sequence[DecodeRate], rows: int) -> float:
    """Tokens a second of `rows` sequences: straight between the measured points, flat beyond the last, and below the
    first in proportion."""
    first, last = points[0], points[-1]
    if rows <= first.rows:
        return first.tokens_per_s * rows / first.rows
    for low, high in itertools.pairwise(points):
        if rows <= high.rows:
            part = (rows - low.rows) / (high.rows - low.rows)
            return low.tokens_per_s + part * (high.tokens_per_s - low.tokens_per_s)
    return last.tokens_per_s


def rates_for(profile: EngineProfile, threads: int | None) -> Rates:
    """Those measured with as many threads, or with the next number below; the first where none is."""
    if threads is None:
        return profile.rates[-1]
    fitting = [rates for rates in profile.rates if rates.threads is None or rates.threads <= threads]
    return fitting[-1] if fitting else profile.rates[0]
