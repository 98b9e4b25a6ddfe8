"""How sure a difference between two arms is: a paired bootstrap over seeds and tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
_CHUNK = 500
"""Resamples that exist at once: with 1,000 tasks 4 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """A mean paired difference in points (per cent) and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def accuracy(right: Sequence[Sequence[bool]]) -> float:
    """Share of right answers in per cent; `right` is [seeds][tasks]."""
    return 100 * float(np.mean(np.asarray(right, dtype=float)))


def standard_error(right: Sequence[Sequence[bool]]) -> float:
    """Of `accuracy`, in points, with the seeds' mean of each task as one observation: tasks are the same for all."""
    per_task_T = np.asarray(right, dtype=float).mean(axis=0)
    return 100 * float(per_task_T.std(ddof=1)) / math.sqrt(len(per_task_T))


def paired_gain(
    better: Sequence[Sequence[bool]], worse: Sequence[Sequence[bool]], *, resamples: int = RESAMPLES, seed: int = 0
) -> Gain:
    """`better` − `worse`, both [seeds][tasks] in the same order, in points.

    Seeds and tasks are drawn with replacement, each on its own (they are crossed: every seed answers every task), and
    the interval is the 2.5 and 97.5 per cent quantile. Raises ValueError where the two are not of one shape, or are
    empty.
    """
    first_ST, second_ST = np.asarray(better, dtype=float), np.asarray(worse, dtype=float)
    if first_ST.shape != second_ST.shape or first_ST.ndim != 2 or not first_ST.size:
        raise ValueError(f"paired arms need one shape [seeds][tasks], got {first_ST.shape} and {second_ST.shape}")
    difference_ST = 100 * (first_ST - second_ST)
    seeds, tasks = difference_ST.shape
    rng = np.random.default_rng(seed)
    means: list[np.ndarray] = []
    for start in range(0, resamples, _CHUNK):
        count = min(_CHUNK, resamples - start)
        seeds_BS = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=count) / seeds
        tasks_BT = rng.multinomial(tasks, np.full(tasks, 1 / tasks), size=count) / tasks
        means.append(((seeds_BS @ difference_ST) * tasks_BT).sum(axis=1))
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return Gain(mean=float(difference_ST.mean()), low=float(low), high=float(high))
