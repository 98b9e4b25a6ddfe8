"""The best iteration, and whether iterating still pays (method document, section 5). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from itrain_contract.spec import IterationsSpec
from itrain_contract.status import Best, ITrainRunStatus

SE_SUFFIX = "_se"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What one evaluation changes."""

    best: Best | None
    without_gain: int = 0
    stop: bool = False
    missing: bool = False
    """The evaluation does not have the metric: nothing can be judged."""


def judge(
    status: ITrainRunStatus,
    iterations: IterationsSpec,
    *,
    metric: str,
    iteration: int,
    metrics: Mapping[str, float],
    adapter_uri: str,
) -> Judgement:
    """Compare an evaluation with the best one before it.

    The best is the largest value, the earlier one at equality. An iteration gains when its value exceeds the best
    before it, and by at least minDeltaSE of its own standard errors where it has one (`<metric>_se`); `patience`
    iterations in a row without a gain stop the run. The warm-up (iteration 0) only sets the mark.
    """
    value = metrics.get(metric)
    if value is None:
        return Judgement(best=status.best, without_gain=status.without_gain, missing=True)
    # Another metric (the spec was edited) starts a new comparison.
    before = status.best if status.best is not None and status.best.metric == metric else None
    new = Best(iteration=iteration, metric=metric, value=value, adapter_uri=adapter_uri)
    best = new if before is None or value > before.value else before
    stop = iterations.stop_when
    if iteration == 0 or before is None or stop is None:
        return Judgement(best=best)
    if gained(value - before.value, metrics.get(metric + SE_SUFFIX, 0.0), stop.min_delta_se):
        return Judgement(best=best)
    without = status.without_gain + 1
    return Judgement(best=best, without_gain=without, stop=without >= stop.patience)


def gained(delta: float, se: float, min_delta_se: float) -> bool:
    """Whether a difference counts: above zero, and at least `min_delta_se` standard errors."""
    return delta > 0 and delta >= min_delta_se * se
