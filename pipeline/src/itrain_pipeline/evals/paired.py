"""Two models on the same items: the difference of their accuracies, what resampling the items does to it, and an exact
test. Pure, and without random numbers.

The paired bootstrap draws as many items as there are, with replacement, and takes the difference again (Efron and
Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). An item's difference is +1, 0 or −1, so that only three
counts matter and the distribution over all possible draws can be written down: no draw is simulated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

LEVEL = 0.95
Z = 1.959964
"""Quantile of the normal distribution that leaves 2.5 % above."""
NEGLIGIBLE = 1e-15
"""Probabilities below it are left out of a sum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """Both accuracies over the `n` shared items, as fractions; `gained` and `lost` are what the second one gets right
    and the first does not, and the other way round. `low` to `high` is the 95 % interval of the difference, `p` the
    sign test's."""

    n: int
    first: float
    second: float
    gained: int
    lost: int
    low: float
    high: float
    p: float

    @property
    def difference(self) -> float:
        return (self.gained - self.lost) / self.n


def compare_items(first: Mapping[str, bool], second: Mapping[str, bool]) -> Paired | None:
    """Correctness by item of two models, compared over the items of both; None where they share none."""
    shared = first.keys() & second.keys()
    n = len(shared)
    if not n:
        return None
    gained = sum(second[key] and not first[key] for key in shared)
    lost = sum(first[key] and not second[key] for key in shared)
    low, high = bootstrap_interval(gained, lost, n)
    return Paired(
        n=n,
        first=sum(first[key] for key in shared) / n,
        second=sum(second[key] for key in shared) / n,
        gained=gained,
        lost=lost,
        low=low,
        high=high,
        p=sign_test(gained, lost),
    )


def bootstrap_interval(gained: int, lost: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Percentile interval of the difference, as fractions, over every way to draw `n` of the `n` items again.

    Where no item differs it is (0, 0): resampling cannot show what these items never showed.
    """
    chances = difference_chances(gained, lost, n)
    tail = (1 - level) / 2
    return _quantile(chances, tail) / n, _quantile(chances, 1 - tail) / n


def difference_chances(gained: int, lost: int, n: int) -> dict[int, float]:
    """Probability of every difference of counts when `n` items are drawn: gains are binomial, and so, among the other
    draws, are losses."""
    found: dict[int, float] = {}
    others = n - gained
    for gains, chance in binomial(n, gained / n).items():
        share = lost / others if others else 0.0
        for losses, further in binomial(n - gains, share).items():
            found[gains - losses] = found.get(gains - losses, 0.0) + chance * further
    return found


def binomial(n: int, p: float) -> dict[int, float]:
    """Probabilities of the counts that are not negligible."""
    if p <= 0 or n == 0:
        return {0: 1.0}
    if p >= 1:
        return {n: 1.0}
    spread = 9 * math.sqrt(n * p * (1 - p)) + 9
    log_p, log_q, log_all = math.log(p), math.log1p(-p), math.lgamma(n + 1)
    found = {}
    for k in range(max(0, math.floor(n * p - spread)), min(n, math.ceil(n * p + spread)) + 1):
        chance = math.exp(log_all - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * log_p + (n - k) * log_q)
        if chance > NEGLIGIBLE:
            found[k] = chance
    return found


def _quantile(chances: Mapping[int, float], share: float) -> int:
    """The smallest value that is not exceeded with at least this probability."""
    total = 0.0
    value = 0
    for value in sorted(chances):
        total += chances[value]
        if total >= share - 1e-12:
            break
    return value


def sign_test(gained: int, lost: int) -> float:
    """Two-sided exact p of McNemar's test: how often a fair coin is at least as uneven over the items that differ."""
    differing = gained + lost
    if not differing:
        return 1.0
    ways = sum(math.comb(differing, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * ways / 2**differing)


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, which stays between 0 and 1 and has a width at 0 and at n too."""
    p, zz = correct / n, Z * Z
    middle = (p + zz / (2 * n)) / (1 + zz / n)
    half = Z / (1 + zz / n) * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
