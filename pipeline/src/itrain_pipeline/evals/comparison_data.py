"""What a comparison of several runs reads of each: its points, its items by content, its settings, its cost."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from itrain_contract.stageio import StageResult, canonical_json
from itrain_contract.stages import StageKind
from itrain_pipeline.errors import ConfigError, DataError
from itrain_pipeline.evals.collect import (
    DEFAULT_METRIC,
    INFO_BEST,
    INFO_METRIC,
    Fetch,
    collect_points,
    export_info,
    facts,
    in_order,
    stage_costs,
)
from itrain_pipeline.evals.report_data import PointResult, StageCost, fact_label
from itrain_pipeline.records import Prediction

OUTCOMES = frozenset(
    {"adapter_sha256", "adapter_before", "merge_difference", "point", "points", INFO_BEST, INFO_METRIC}
)
"""Pieces of `StageResult.info` that a run ends with, and not what it was made from."""
DIGITS = 12
"""Shown of a digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedRun:
    """What a comparison is asked for: where a run lies (its folder's URI, with `/` at the end), and its spec."""

    label: str
    root: str
    spec: Mapping[str, Any]


def read_named(path: Path) -> tuple[NamedRun, ...]:
    """A JSON list of `{label, root, spec}`. Raises ConfigError for anything else, for one run and for a label twice."""
    try:
        runs = tuple(NamedRun(**entry) for entry in json.loads(path.read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError, TypeError) as error:
        raise ConfigError(f"{path} is no list of runs: {error}") from error
    if len(runs) < 2:
        raise ConfigError(f"{path} names {len(runs)} run, a comparison needs at least two")
    if len({run.label for run in runs}) < len(runs):
        raise ConfigError(f"{path} has one label twice: {', '.join(run.label for run in runs)}")
    return tuple(replace(run, root=run.root.rstrip("/") + "/") for run in runs)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRun:
    """One run of a comparison. `facts` are data, versions and hardware by their names for readers."""

    label: str
    metric: str
    best: str | None
    points: tuple[PointResult, ...]
    costs: tuple[StageCost, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The spec as it holds, camelCase."""
    facts: Mapping[str, str] = field(default_factory=dict)
    items: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """What an item consists of, by benchmark and id; under the id "" what holds for a whole benchmark."""

    @property
    def compared(self) -> PointResult:
        """The exported point, before that the newest one."""
        return next((point for point in self.points if point.point == self.best), self.points[-1])

    def key(self, row: Prediction) -> str:
        """Equal in two runs only where the item is the same: an id alone may be a number of a row."""
        mark = self.items.get((row.benchmark, row.id)) or self.items.get((row.benchmark, ""), "")
        return f"{row.benchmark}/{row.category}/{row.id}/{mark}"

    def correctness(self, rows: Sequence[Prediction]) -> dict[str, bool]:
        return {self.key(row): row.correct for row in rows}


def collect_compared(
    label: str, results: Sequence[StageResult], fetch: Fetch, *, settings: Mapping[str, Any]
) -> ComparedRun:
    """Raises DataError where a run has nothing that could be compared."""
    ordered = in_order(results)
    points = collect_points(ordered, fetch)
    if not points:
        raise DataError(
            f"{label} has no evaluated point yet: a comparison needs one finished evaluate stage of each run"
        )
    prepare = next((r for r in ordered if r.kind == StageKind.PREPARE), None)
    if prepare is None:
        raise DataError(f"{label} has no result of prepare, so that its items cannot be told from another run's")
    told = export_info(ordered)
    return ComparedRun(
        label=label,
        metric=told.get(INFO_METRIC) or DEFAULT_METRIC,
        best=told.get(INFO_BEST) or None,
        points=points,
        costs=tuple(stage_costs(ordered)),
        settings=settings,
        facts={**_data(prepare), **_made_with(ordered)},
        items={**_dev_items(prepare, fetch), **_benchmark_versions(ordered, points)},
    )


def _data(prepare: StageResult) -> dict[str, str]:
    """The rows of training and dev set, by number and digest."""
    found = {}
    for name, label in (("train", "Training rows"), ("dev", "Dev rows")):
        ref = prepare.outputs.get(f"{name}.jsonl")
        if ref is not None:
            found[label] = f"{prepare.counters.get(name, 0):.0f}, sha256 {ref.sha256[:DIGITS]}…"
    return found


def _made_with(results: Sequence[StageResult]) -> dict[str, str]:
    left_out = {fact_label(name) for name in OUTCOMES}
    return {label: value for label, value in facts(results) if label not in left_out}


def _dev_items(prepare: StageResult, fetch: Fetch) -> dict[tuple[str, str], str]:
    """Digests of conversation, tools and answer; token ids are left out, since they differ by model."""
    ref = prepare.outputs.get("dev.jsonl")
    found: dict[tuple[str, str], str] = {}
    if ref is None:
        return found
    with fetch(ref).open(encoding="utf-8") as lines:
        for line in lines:
            try:
                row = json.loads(line)
                content = canonical_json([row["messages"], row["tools"], row["answer"]])
                found["dev", str(row["id"])] = hashlib.sha256(content).hexdigest()[:16]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise DataError(f"dev.jsonl: a row is not an Example: {error}") from error
    return found


def _benchmark_versions(results: Sequence[StageResult], points: Sequence[PointResult]) -> dict[tuple[str, str], str]:
    """What evaluate tells of each benchmark but the dev set, under names that begin with the benchmark's (`bfcl_eval`):
    another version, or other data, may hold other items under the same ids."""
    told = sorted({pair for r in results if r.kind == StageKind.EVALUATE for pair in r.info.items()})
    benchmarks = {row.benchmark for point in points for row in point.predictions} - {"dev"}
    return {
        (benchmark, ""): ";".join(f"{name}={value}" for name, value in told if name.startswith(f"{benchmark}_"))
        for benchmark in benchmarks
    }
