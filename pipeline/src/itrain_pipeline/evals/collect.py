"""From the results of a run's stages to what the report shows."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from itrain_contract.stageio import ArtifactRef, StageResult
from itrain_contract.stages import TRAININGS, StageKind
from itrain_pipeline.errors import DataError
from itrain_pipeline.evals.report_data import (
    Perplexities,
    PointResult,
    ReportData,
    SearchResult,
    StageCost,
    StageMachine,
    TrainingCurve,
    fact_label,
)
from itrain_pipeline.evals.trees import collect_records, collect_trees
from itrain_pipeline.records import Prediction, ScoredExample, read_jsonl

Fetch = Callable[[ArtifactRef], Path]

DEFAULT_METRIC = "dev/call_accuracy"
INFO_METRIC, INFO_BEST = "metric", "best_point"
"""What export tells about its choice in `StageResult.info`."""
SERIES: Mapping[str, tuple[str, ...]] = {
    "loss": ("loss",),
    "margin": ("reward_margin", "margin", "rewards/margins"),
    "chosen logprob": ("chosen_logprob", "logps/chosen"),
    "rejected logprob": ("rejected_logprob", "logps/rejected"),
    "validity": ("validity",),
}
"""What a training log is drawn by, and the keys under which it may stand (ours first, then TRL's)."""
VALIDITY_FIRST = "train/validity_first"
"""Metric of a guarded training: what the probe found before the first step."""
_VERSION = re.compile(r"\d+\.\d+[\w.+-]*")
_RUN_FOLDER = re.compile(r"/([^/]+)-[^/-]+/i\d+/")
_ORDER = list(StageKind)


def collect_from_results(
    results: Sequence[StageResult],
    fetch: Fetch,
    *,
    run: str | None = None,
    metric: str | None = None,
    best: str | None = None,
    created: float | None = None,
    bench: Mapping[str, float] | None = None,
) -> ReportData:
    """Read what the finished stages left; what is not there is left out of the report.

    `fetch` gives a local copy of an output. What is not named is taken from the results themselves: the run from
    their URIs, metric and best point from export, `created` (Unix seconds) from the last stage's end.
    Raises DataError for an output that is not what its stage promises.
    """
    ordered = in_order(results)
    told = export_info(ordered)
    end = created if created is not None else max((r.started + r.seconds for r in ordered), default=0.0)
    points = collect_points(ordered, fetch)
    searched = collect_records(ordered, fetch)
    return ReportData(
        run=run or _run_name(ordered),
        created=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(end)),
        metric=metric or told.get(INFO_METRIC) or DEFAULT_METRIC,
        best=best or told.get(INFO_BEST) or None,
        points=points,
        curves=tuple(_curves(ordered, fetch)),
        perplexities=tuple(_perplexities(ordered, fetch)),
        searches=tuple(
            SearchResult(iteration=iteration, counters=summed(shards))
            for iteration, shards in _by_iteration(ordered, StageKind.ROLLOUT)
        ),
        searched=searched,
        trees=collect_trees(searched, ordered, fetch),
        bench=bench or {},
        costs=tuple(stage_costs(ordered)),
        machines=tuple(stage_machines(ordered)),
        facts=tuple(facts(ordered)),
    )


def in_order(results: Iterable[StageResult]) -> list[StageResult]:
    """By iteration, stage and shard."""
    return sorted(results, key=lambda r: (r.iteration, _ORDER.index(r.kind), r.shard or 0))


def export_info(results: Iterable[StageResult]) -> Mapping[str, str]:
    """What export told; empty before it has finished."""
    return next((r.info for r in results if r.kind == StageKind.EXPORT), {})


def collect_points(results: Iterable[StageResult], fetch: Fetch) -> tuple[PointResult, ...]:
    """The evaluated points in the order of the run: base, warm-up, iterations."""
    points = []
    for result in results:
        if result.kind != StageKind.EVALUATE:
            continue
        for name in sorted(result.outputs, key=lambda n: (n != prediction_file("base"), n)):
            found = re.fullmatch(r"predictions-(.+)\.jsonl", name)
            if found:
                rows = tuple(_read(fetch(result.outputs[name]), name, Prediction))
                points.append(PointResult(point=found[1], iteration=result.iteration, predictions=rows))
    return tuple(points)


def prediction_file(point: str) -> str:
    """The output of `evaluate` that holds a point's judged answers."""
    return f"predictions-{point}.jsonl"


def summed(results: Iterable[StageResult]) -> dict[str, float]:
    """Counters of several shards, added."""
    total: dict[str, float] = {}
    for result in results:
        for name, value in result.counters.items():
            total[name] = total.get(name, 0) + value
    return total


def curve(title: str, rows: Iterable[Mapping[str, Any]]) -> TrainingCurve | None:
    """Each series at the steps that logged it: the guards' probe speaks before the first step and then now and again.

    None where no row has a loss. Values that are not finite are kept: a chart leaves them out.
    """
    found = list(rows)
    series: dict[str, tuple[tuple[float, float], ...]] = {}
    for name, keys in SERIES.items():
        points = (
            (float(row.get("step", at)), next((row[key] for key in keys if _is_number(row.get(key))), None))
            for at, row in enumerate(found, start=1)
        )
        known = tuple((step, float(value)) for step, value in points if value is not None)
        if known:
            series[name] = known
    return TrainingCurve(title=title, series=series) if "loss" in series else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def training_log(result: StageResult, fetch: Fetch) -> list[dict[str, Any]]:
    """Rows of a training's log, before them what a probe found at the start; none for other stages."""
    if result.kind not in TRAININGS or "log.jsonl" not in result.outputs:
        return []
    path = fetch(result.outputs["log.jsonl"])
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise DataError(f"log.jsonl of {result.kind} in iteration {result.iteration}: {error}") from error
    if VALIDITY_FIRST in result.metrics:  # the log has rows of training steps only, and this is before them
        rows.insert(0, {"step": 0, "validity": result.metrics[VALIDITY_FIRST]})
    return rows


def _curves(results: Iterable[StageResult], fetch: Fetch) -> Iterable[TrainingCurve]:
    for result in results:
        title = "Warm-up" if result.kind == StageKind.WARMUP else f"Iteration {result.iteration}"
        found = curve(title, training_log(result, fetch))
        if found is not None:
            yield found


def _perplexities(results: Sequence[StageResult], fetch: Fetch) -> Iterable[Perplexities]:
    for iteration, shards in _by_iteration(results, StageKind.SCORE):
        rows = [
            row
            for shard in shards
            if "scores.jsonl" in shard.outputs
            for row in _read(fetch(shard.outputs["scores.jsonl"]), "scores.jsonl", ScoredExample)
            if 0.0 < row.perplexity < float("inf")
        ]
        if rows:
            yield Perplexities(
                iteration=iteration,
                call=tuple(row.perplexity for row in rows if row.has_call),
                no_call=tuple(row.perplexity for row in rows if not row.has_call),
            )


def stage_costs(results: Sequence[StageResult]) -> Iterable[StageCost]:
    stages = sorted({(r.iteration, _ORDER.index(r.kind)) for r in results if r.kind != StageKind.EXPORT})
    for iteration, at in stages:
        shards = [r for r in results if r.iteration == iteration and r.kind == _ORDER[at]]
        yield StageCost(
            stage=f"i{iteration}/{_ORDER[at].value}",
            shards=len(shards),
            seconds=max(r.seconds for r in shards),
            counters=summed(shards),
        )


def stage_machines(results: Iterable[StageResult]) -> Iterable[StageMachine]:
    """One entry for each stage, in the order of the results, export last; where shards differ, all of their answers."""
    stages: dict[str, list[StageResult]] = {}
    for result in results:
        stages.setdefault(f"i{result.iteration}/{result.kind.value}", []).append(result)
    for stage, shards in sorted(stages.items(), key=lambda one: one[1][0].kind == StageKind.EXPORT):

        def told(name: str, shards: Sequence[StageResult] = shards) -> str:
            return "; ".join(dict.fromkeys(shard.info[name] for shard in shards if shard.info.get(name)))

        names = dict.fromkeys(name for shard in shards for name, value in shard.info.items() if _is_version(value))
        yield StageMachine(
            stage=stage,
            precision=told("precision"),
            quantization=told("quantization"),
            device=told("device"),
            versions=tuple((name, told(name)) for name in names),
        )


def _is_version(value: str) -> bool:
    return _VERSION.fullmatch(value) is not None


def facts(results: Iterable[StageResult]) -> Iterable[tuple[str, str]]:
    """Every piece of `info`, once where all stages agree and by stage where they do not."""
    values: dict[str, dict[str, list[str]]] = {}
    for result in results:
        for name, value in result.info.items():
            stages = values.setdefault(name, {}).setdefault(value, [])
            stage = f"i{result.iteration}/{result.kind.value}"
            if stage not in stages:
                stages.append(stage)
    for name, by_value in sorted(values.items()):
        label = fact_label(name)
        if len(by_value) == 1:
            yield label, next(iter(by_value))
        else:
            yield label, "; ".join(f"{value} ({', '.join(stages)})" for value, stages in by_value.items())


def _by_iteration(results: Sequence[StageResult], kind: StageKind) -> Iterable[tuple[int, list[StageResult]]]:
    for iteration in sorted({r.iteration for r in results if r.kind == kind}):
        yield iteration, [r for r in results if r.kind == kind and r.iteration == iteration]


def _run_name(results: Iterable[StageResult]) -> str:
    """`<run>` of the first output whose URI holds `<run>-<uid>/i<iteration>/`."""
    for result in results:
        for ref in result.outputs.values():
            found = _RUN_FOLDER.search(ref.uri)
            if found:
                return found[1]
    return "unnamed"


def _read(path: Path, name: str, cls: type[Any]) -> list[Any]:
    try:
        return list(read_jsonl(path, cls))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{name}: a row is not a {cls.__name__}: {error}") from error
