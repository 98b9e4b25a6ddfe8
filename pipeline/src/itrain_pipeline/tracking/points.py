"""From the rows of `metrics.jsonl` to points with a step axis, as trackers want them. Pure.

Trainings have their optimiser steps as axis, each kind one that goes on through the iterations. Everything else stands
at its iteration: what was evaluated, what a stage took and counted, all shards together. The points of a run only grow
at their end, so that a number of points says which of them a tracker has.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from itrain_contract.stages import EXPORT
from itrain_pipeline.evals.metricslog import Row

ITERATION: Final = "iteration"
BASE: Final = "base"
HEAD: Final = frozenset({"stage", "iteration", "step", "point", "shard"})
"""Of a row, what is no figure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Figures by name at one step of an axis: `iteration`, `warmup/step` or `train/step`.

    `time` is when the stage that measured them began, in Unix seconds: nobody wrote down more.
    """

    stage: str
    axis: str
    step: int
    time: float
    figures: Mapping[str, float]


def tracked_points(rows: Iterable[Row], started: Mapping[str, float]) -> list[Point]:
    """Points in the order of the run, export last whatever its iteration. `started` has every stage's time."""
    by_stage: dict[str, list[Row]] = {}
    for row in rows:
        by_stage.setdefault(row["stage"], []).append(row)
    steps: dict[str, int] = {}
    points: list[Point] = []
    for stage, found in sorted(by_stage.items(), key=lambda item: item[0] == str(EXPORT)):
        kind = stage.partition("/")[2]
        before = steps.get(kind, 0)
        logged = list(_logged(found, before))
        steps[kind] = max([before, *(step for step, _ in logged)])
        points += [
            Point(stage=stage, axis=f"{kind}/step", step=step, time=started[stage], figures=figures)
            for step, figures in logged
        ]
        points.append(
            Point(
                stage=stage,
                axis=ITERATION,
                step=int(found[0]["iteration"]),
                time=started[stage],
                figures={**_evaluated(found), **_counted(found)},
            )
        )
    return points


def _logged(rows: Sequence[Row], before: int) -> Iterator[tuple[int, dict[str, float]]]:
    """Steps of a training, counted on from earlier ones of its kind. What a probe finds before the first step is what
    it found after the last one of the training before."""
    for step, found in itertools.groupby((row for row in rows if "step" in row), key=lambda row: int(row["step"])):
        figures = {name: value for row in found for name, value in _figures(row).items()}
        if step or not before:
            yield before + step, figures


def _evaluated(rows: Sequence[Row]) -> dict[str, float]:
    """The points of one evaluation. Of two of iteration 0 the base model's are named as such."""
    points = {row["point"]: _figures(row) for row in rows if "point" in row}
    found: dict[str, float] = {}
    for point, figures in points.items():
        prefix = f"{BASE}/" if point == BASE and len(points) > 1 else ""
        found |= {prefix + name: value for name, value in figures.items()}
    return found


def _counted(rows: Sequence[Row]) -> dict[str, float]:
    """What the stage counted, shards added, and the seconds of its slowest shard."""
    total: dict[str, float] = {}
    for row in rows:
        if "step" in row or "point" in row:
            continue
        for name, value in _figures(row).items():
            slowest = name.endswith("/seconds")
            total[name] = max(total.get(name, 0.0), value) if slowest else total.get(name, 0.0) + value
    return total


def _figures(row: Row) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if name not in HEAD}


def to_json(points: Iterable[Point]) -> list[dict[str, Any]]:
    return [asdict(point) for point in points]


def from_json(data: Iterable[Mapping[str, Any]]) -> list[Point]:
    return [Point(**item) for item in data]
