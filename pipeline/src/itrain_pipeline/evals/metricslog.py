"""Everything that a run measured as JSON lines, for whatever a user plots with. Pure but for the files it is given.

Three kinds of rows, in the order of the run, each with `stage` (`i1/train`) and `iteration`. Names of figures begin
with the stage's kind or the benchmark, as TensorBoard, MLflow and W&B group them:

    {"stage": "i1/train", "iteration": 1, "step": 3, "train/loss": 0.85, "train/reward_margin": 0.25}
    {"stage": "i1/evaluate", "iteration": 1, "point": "iteration-1", "dev/call_accuracy": 0.93, "dev/call_n": 14}
    {"stage": "i1/rollout", "iteration": 1, "shard": 0, "rollout/seconds": 30.8, "rollout/pairs": 10}
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from itrain_contract.stageio import StageResult
from itrain_contract.stages import StageKind
from itrain_pipeline.evals.collect import Fetch, collect_points, in_order, training_log
from itrain_pipeline.evals.metrics import flat_metrics

Row = Mapping[str, Any]


def metric_rows(results: Sequence[StageResult], fetch: Fetch) -> Iterator[Row]:
    """Rows of all finished stages. Raises DataError for a log or predictions that are none."""
    for result in in_order(results):
        kind = result.kind.value
        head: dict[str, Any] = {"stage": f"i{result.iteration}/{kind}", "iteration": result.iteration}
        for row in training_log(result, fetch):
            figures = {f"{kind}/{name}": value for name, value in row.items() if name != "step" and is_figure(value)}
            if figures:
                yield {**head, "step": row.get("step", 0), **figures}
        if result.kind == StageKind.EVALUATE:
            for point in collect_points([result], fetch):
                yield {**head, "point": point.point, **flat_metrics(point.scores)}
        shard = {} if result.shard is None else {"shard": result.shard}
        counters = {f"{kind}/{name}": value for name, value in result.counters.items()}
        yield {**head, **shard, f"{kind}/seconds": result.seconds, **counters}


def is_figure(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def metrics_jsonl(rows: Iterable[Row]) -> str:
    """Equal rows give equal text; a figure that is no number is left out, as a gap in a curve is."""
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
