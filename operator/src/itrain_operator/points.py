"""The learning curve of a run: its metrics by point (base, warm-up, iteration 1 …), and the flat summary. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from itrain_contract.stages import StageKind, StageRef

BASE_PREFIX = "base/"
TOTALS = ("pairs", "trees", "failed_trees")
"""Counters of rollout that the summary names without a prefix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFigures:
    """What a finished stage reported; counters are summed over its shards."""

    ref: StageRef
    seconds: float
    metrics: Mapping[str, float]
    counters: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The model's measured state at one moment of the run."""

    name: str
    metrics: Mapping[str, float]

    @property
    def label(self) -> str:
        return {"warmup": "warm-up"}.get(self.name, self.name.replace("_", " "))


def points(stages: Iterable[StageFigures], *, warmed_up: bool = True) -> list[Point]:
    """Base, warm-up and iterations in order; a point without metrics is left out.

    Evaluation of iteration 0 holds the base model under `base/` and what the iterations start from under plain names:
    the warm-up, or the adapter of a run that is continued. Where there is neither, the plain names are the base's.
    """
    found: list[Point] = []
    for stage in sorted((s for s in stages if s.ref.kind == StageKind.EVALUATE), key=lambda s: s.ref.iteration):
        base = {k.removeprefix(BASE_PREFIX): v for k, v in stage.metrics.items() if k.startswith(BASE_PREFIX)}
        plain = {k: v for k, v in stage.metrics.items() if not k.startswith(BASE_PREFIX)}
        if stage.ref.iteration > 0:
            found.append(Point(name=f"iteration_{stage.ref.iteration}", metrics=plain))
            continue
        found.append(Point(name="base", metrics=base or plain))
        if base:
            found.append(Point(name="warmup" if warmed_up else "resumed", metrics=plain))
    return [point for point in found if point.metrics]


def shown_metrics(curve: list[Point]) -> list[str]:
    """Metrics worth a column, weightiest first: those with a standard error, of the whole of a benchmark."""
    names = {name for point in curve for name in point.metrics if f"{name}_se" in point.metrics}
    first = ["dev/call_accuracy", "bfcl/accuracy", "dev/no_call_accuracy", "dev/accuracy"]
    whole = sorted(name for name in names if name.count("/") == 1 and name not in first)
    return [name for name in first if name in names] + whole


def count_of(metrics: Mapping[str, float], name: str) -> int | None:
    """Items behind an accuracy: `dev/call_accuracy` has `dev/call_n`, `bfcl/accuracy` has `bfcl/n`."""
    head, _, last = name.rpartition("/")
    own = f"{head}/{last.removesuffix('accuracy')}n"
    n = metrics.get(own, metrics.get(f"{head}/n"))
    return None if n is None else int(n)


def summary(stages: list[StageFigures], *, seconds_total: float, warmed_up: bool = True) -> dict[str, float]:
    """Flat figures: `<metric>_<point>` with `/` as `_`, `pairs_iteration_1`, `failed_trees`, `seconds_<stage>…`."""
    flat: dict[str, float] = {}
    whole = dict.fromkeys(TOTALS, 0)
    for point in points(stages, warmed_up=warmed_up):
        for name, value in point.metrics.items():
            stem, suffix = (name.removesuffix("_se"), "_se") if name.endswith("_se") else (name, "")
            counted = stem.endswith(("/n", "_n")) and not suffix
            flat[f"{stem.replace('/', '_')}_{point.name}{suffix}"] = int(value) if counted else value
    for stage in stages:
        iteration = f"_iteration_{stage.ref.iteration}" if stage.ref.iteration else ""
        flat[f"seconds_{stage.ref.kind.value}{iteration}"] = round(stage.seconds, 3)
        if stage.ref.kind == StageKind.ROLLOUT:
            for name in TOTALS:
                flat[f"{name}{iteration}"] = count = int(stage.counters.get(name, 0))
                whole[name] += count
    flat |= whole
    flat["seconds_total"] = round(seconds_total, 3)
    return flat
