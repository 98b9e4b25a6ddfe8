"""A finished run of a few rows, for what is sent to trackers."""

from __future__ import annotations

import json
from pathlib import Path

from itrain_contract.stageio import StageResult
from itrain_contract.stages import StageKind
from itrain_pipeline.evals.collect import prediction_file
from itrain_pipeline.records import write_jsonl
from itrain_testing.comparedruns import answers
from itrain_testing.stageports import stage_result

RIGHT = {"base": 1, "warmup": 2, "iteration-1": 3, "iteration-2": 4}
"""Of four items, those that a point answers rightly."""


def tracked_results(folder: Path) -> list[StageResult]:
    """In the order in which the stages ended."""
    folder.mkdir(parents=True, exist_ok=True)
    results = [
        stage_result(StageKind.PREPARE, counters={"rows": 9.0}, started=100.0, seconds=1.0),
        _trained(folder, StageKind.WARMUP, 0, [{"step": 1, "loss": 2.0}], {}, started=110.0),
        _evaluated(folder, 0, ("base", "warmup"), started=120.0),
    ]
    for iteration in (1, 2):
        begun = 200.0 * iteration
        if iteration == 1:
            results += [
                stage_result(StageKind.ROLLOUT, 1, shard=0, started=begun, seconds=9.0, counters={"pairs": 4.0}),
                stage_result(StageKind.ROLLOUT, 1, shard=1, started=begun + 1, seconds=5.0, counters={"pairs": 3.0}),
            ]
        log = [
            {"step": 1, "loss": 1.1 - 0.2 * iteration},
            {"step": 2, "loss": 1.0 - 0.2 * iteration, "validity": 1.0 - 0.25 * iteration},
        ]
        first = {"train/validity_first": 1.25 - 0.25 * iteration}
        results.append(_trained(folder, StageKind.TRAIN, iteration, log, first, started=begun + 10))
        results.append(_evaluated(folder, iteration, (f"iteration-{iteration}",), started=begun + 20))
    return [*results, stage_result(StageKind.EXPORT, started=900.0, seconds=3.0)]


def _trained(
    folder: Path,
    kind: StageKind,
    iteration: int,
    log: list[dict[str, float]],
    metrics: dict[str, float],
    started: float,
) -> StageResult:
    path = folder / f"{kind}-{iteration}" / "log.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({name: round(value, 6) for name, value in row.items()}) + "\n" for row in log))
    return stage_result(kind, iteration, {"log.jsonl": path}, metrics=metrics, started=started, seconds=2.0)


def _evaluated(folder: Path, iteration: int, points: tuple[str, ...], started: float) -> StageResult:
    files = {}
    for point in points:
        path = folder / f"evaluate-{iteration}" / prediction_file(point)
        path.parent.mkdir(exist_ok=True)
        write_jsonl(path, answers([at < RIGHT[point] for at in range(4)], point=point))
        files[prediction_file(point)] = path
    return stage_result(StageKind.EVALUATE, iteration, files, started=started, seconds=2.0)
