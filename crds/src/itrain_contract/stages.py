"""The stages of a run, their one total order, and who reads whose results."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from itrain_contract.spec import ITrainRunSpec
from itrain_contract.stagespec import ShardedStage, Stage


class StageKind(StrEnum):
    PREPARE = "prepare"
    WARMUP = "warmup"
    SCORE = "score"
    ROLLOUT = "rollout"
    TRAIN = "train"
    EVALUATE = "evaluate"
    EXPORT = "export"


TRAININGS = (StageKind.WARMUP, StageKind.TRAIN)
LOOP = (StageKind.SCORE, StageKind.ROLLOUT, StageKind.TRAIN, StageKind.EVALUATE)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class StageRef:
    """One stage of one iteration. Stages outside the loop (prepare, warmup, export) have iteration 0.

    Export keeps iteration 0 wherever the run stops, so its name does not depend on an early stop.
    """

    kind: StageKind
    iteration: int = 0

    def __str__(self) -> str:
        return f"i{self.iteration}/{self.kind.value}"


PREPARE = StageRef(kind=StageKind.PREPARE)
WARMUP = StageRef(kind=StageKind.WARMUP)
EXPORT = StageRef(kind=StageKind.EXPORT)


def stage_spec(spec: ITrainRunSpec, kind: StageKind) -> Stage:
    block: Stage = getattr(spec.stages, kind.value)
    return block


def shard_count(spec: ITrainRunSpec, kind: StageKind) -> int | None:
    """Completion indexes of a sharded stage; None for the others."""
    block = stage_spec(spec, kind)
    return block.shards if isinstance(block, ShardedStage) else None


def stage_sequence(spec: ITrainRunSpec, *, last_iteration: int | None = None) -> tuple[StageRef, ...]:
    """Every stage of a run in the order in which they run.

    `last_iteration` < iterations.max is an early stop. A run with resumeFrom has no warm-up: prepare brings the
    adapter of the run that it continues.
    """
    last = spec.iterations.max if last_iteration is None else last_iteration
    refs = [PREPARE, WARMUP, StageRef(kind=StageKind.EVALUATE)]
    refs += [StageRef(kind=kind, iteration=i) for i in range(1, last + 1) for kind in LOOP]
    refs.append(EXPORT)
    skipped = {WARMUP} if spec.resume_from is not None else set()
    return tuple(ref for ref in refs if stage_spec(spec, ref.kind).enabled and ref not in skipped)


def upstream(ref: StageRef, done: tuple[StageRef, ...]) -> tuple[StageRef, ...]:
    """The stages that `ref` reads, in the run's order; `done` holds the stages that succeeded, in that order."""
    wanted: set[StageRef] = {PREPARE}
    i = ref.iteration
    match ref.kind:
        case StageKind.PREPARE:
            return ()
        case StageKind.WARMUP:
            pass
        case StageKind.EVALUATE:
            wanted.add(StageRef(kind=StageKind.TRAIN, iteration=i) if i else WARMUP)
        case StageKind.SCORE:
            wanted |= _adapter(done, i) | {StageRef(kind=StageKind.SCORE, iteration=i - 1)}
        case StageKind.ROLLOUT:
            wanted |= _adapter(done, i) | {StageRef(kind=StageKind.SCORE, iteration=i)}
        case StageKind.TRAIN:
            wanted |= _adapter(done, i) | {StageRef(kind=StageKind.ROLLOUT, iteration=i)}
        case StageKind.EXPORT:
            wanted |= set(done)  # the report tells the whole run
    return tuple(other for other in done if other in wanted and other != ref)


def _adapter(done: tuple[StageRef, ...], iteration: int) -> set[StageRef]:
    """The newest adapter made before `iteration`."""
    made = [r for r in done if r.kind in TRAININGS and r.iteration < iteration]
    return {max(made, key=lambda r: r.iteration)} if made else set()
