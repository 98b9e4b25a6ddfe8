"""Where a run stands in the order of its stages, and what the next stage reads. Pure."""

from __future__ import annotations

from itrain_contract.layout import ADAPTER_DIR
from itrain_contract.spec import ITrainRunSpec
from itrain_contract.stageio import StageInput, UpstreamResult, build_stage_input
from itrain_contract.stages import EXPORT, LOOP, StageKind, StageRef, shard_count, stage_sequence, upstream
from itrain_contract.status import ITrainRunStatus, StageRecord
from itrain_operator.observed import Run

BEFORE_THE_LOOP = (StageKind.PREPARE, StageKind.WARMUP, StageKind.EVALUATE)


def order_key(ref: StageRef) -> tuple[int, int]:
    """A total order over every stage that any spec can ask for; it never depends on the spec."""
    if ref.kind == StageKind.EXPORT:
        return (10**9, 0)
    order = LOOP if ref.iteration else BEFORE_THE_LOOP
    return (ref.iteration, order.index(ref.kind) if ref.kind in order else len(order))


def current_ref(status: ITrainRunStatus) -> StageRef | None:
    """The stage that the status points at. Export stands outside the loop whatever iteration the status shows."""
    if status.stage is None:
        return None
    outside = status.stage in (StageKind.PREPARE, StageKind.WARMUP, StageKind.EXPORT)
    return StageRef(kind=status.stage, iteration=0 if outside else status.iteration)


def completed_refs(status: ITrainRunStatus) -> tuple[StageRef, ...]:
    return tuple(record.ref for record in status.completed)


def next_ref(spec: ITrainRunSpec, status: ITrainRunStatus) -> StageRef | None:
    """The first stage after the last completed one; None when the run is over.

    Never an earlier one: a stage that an edit enables after its turn has passed does not send the run back.
    """
    reached = max((order_key(ref) for ref in completed_refs(status)), default=(-1, 0))
    sequence = stage_sequence(spec, last_iteration=status.last_iteration)
    return next((ref for ref in sequence if order_key(ref) > reached), None)


def newest_iteration(status: ITrainRunStatus) -> int:
    return max((ref.iteration for ref in completed_refs(status)), default=0)


def published_iteration(status: ITrainRunStatus) -> int:
    """The iteration whose adapter export publishes: the best one; without a metric the newest; 0 is the warm-up's."""
    if status.best is not None:
        return status.best.iteration
    return max((ref.iteration for ref in completed_refs(status) if ref.kind == StageKind.TRAIN), default=0)


def adapter_uri(run: Run, completed: list[StageRecord], iteration: int) -> str:
    """Where the adapter of an iteration lies; empty text where it has none."""
    makers = [StageKind.TRAIN] if iteration else [StageKind.WARMUP]
    if not iteration and run.spec.resume_from is not None:
        makers.append(StageKind.PREPARE)
    for record in completed:
        if record.kind in makers and record.iteration == iteration:
            return run.identity.layout.attempt(record.ref, record.attempt) + ADAPTER_DIR
    return ""


def stage_input(run: Run, ref: StageRef, attempt: int) -> StageInput:
    """The input of one attempt, from the spec as it is now and the stages that the status calls completed."""
    layout = run.identity.layout
    reads = set(upstream(ref, completed_refs(run.status)))
    return build_stage_input(
        run=run.identity,
        spec=run.spec,
        ref=ref,
        attempt=attempt,
        shards=shard_count(run.spec, ref.kind),
        upstream=tuple(
            UpstreamResult(
                kind=record.kind,
                iteration=record.iteration,
                prefix=layout.attempt(record.ref, record.attempt),
                digest=record.digest,
                shards=record.shards,
            )
            for record in run.status.completed
            if record.ref in reads
        ),
        best_iteration=published_iteration(run.status) if ref == EXPORT else None,
    )
