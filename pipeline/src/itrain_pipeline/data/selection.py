"""Which rows are scored and explored: shards, the hardest fraction, the pool of later iterations and its audit.

Every choice is a pure function of ids, scores and seeds, so each shard and each consumer makes it alike
(method document, section 2).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from itrain_pipeline.records import ScoredExample


def stable_hash(text: str) -> int:
    """The same 64 bits on every machine and in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def shard_of(row_id: str, shards: int) -> int:
    """The shard, 0 to shards - 1, that works on a row."""
    return stable_hash(row_id) % shards


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """`ids` hardest first; `excluded` rows had no finite perplexity."""

    ids: tuple[str, ...]
    excluded: int


def count_of(fraction: float, population: int) -> int:
    """Rows in a fraction, rounded up: a fraction above 0 of at least one row is at least one row."""
    return min(population, math.ceil(fraction * population - 1e-9))


def select_hardest(
    scored: Iterable[ScoredExample],
    fraction: float,
    *,
    stratify: bool = True,
    population: Mapping[bool, int] | None = None,
) -> Selection:
    """The top `fraction` by perplexity, ties by id; with `stratify`, of the rows with and without a call separately.

    `population` gives the number of rows with a call (True) and without (False) that the fraction is of, where only a
    part of them was scored. Rows whose perplexity is NaN or infinite are left out and counted, not ranked.
    """
    rows = list(scored)
    finite = rank(rows)
    sizes = population if population is not None else _sizes(finite)
    chosen: list[ScoredExample] = []
    for members, size in _strata(finite, sizes, stratify):
        chosen += members[: count_of(fraction, size)]
    return Selection(ids=tuple(row.id for row in rank(chosen)), excluded=len(rows) - len(finite))


def rank(scored: Iterable[ScoredExample]) -> list[ScoredExample]:
    """Rows of finite perplexity, hardest first, ties by id."""
    return sorted((row for row in scored if math.isfinite(row.perplexity)), key=lambda row: (-row.perplexity, row.id))


def _sizes(rows: Sequence[ScoredExample]) -> dict[bool, int]:
    calls = sum(row.has_call for row in rows)
    return {True: calls, False: len(rows) - calls}


def _strata(
    ranked: Sequence[ScoredExample], sizes: Mapping[bool, int], stratify: bool
) -> list[tuple[list[ScoredExample], int]]:
    """(members in rank order, population) of each stratum."""
    if not stratify:
        return [(list(ranked), sizes.get(True, 0) + sizes.get(False, 0))]
    return [([row for row in ranked if row.has_call is kind], sizes.get(kind, 0)) for kind in (True, False)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """What is scored again: last time's hardest rows, and a random audit of the others."""

    hardest: frozenset[str]
    audit: frozenset[str]

    @property
    def ids(self) -> frozenset[str]:
        return self.hardest | self.audit


def plan_pool(
    last: Iterable[ScoredExample],
    all_ids: Iterable[str],
    *,
    pool_fraction: float,
    audit_fraction: float,
    stratify: bool = True,
    population: Mapping[bool, int] | None = None,
    seed: str,
) -> Pool:
    """The pool of the next iteration. `seed` (run and iteration) decides the audit.

    The audit is drawn from every row that is not among the hardest, those never scored or without a finite perplexity
    included; its size is `audit_fraction` of all rows.
    """
    hardest = frozenset(select_hardest(last, pool_fraction, stratify=stratify, population=population).ids)
    ids = set(all_ids)
    rest = sorted(ids - hardest, key=lambda row_id: (stable_hash(f"{seed}/{row_id}"), row_id))
    return Pool(hardest=hardest & ids, audit=frozenset(rest[: count_of(audit_fraction, len(ids))]))


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedTop:
    """Rows of the true top fraction as far as the audit can tell, and how many of them lie in the pool's hardest rows.

    Both add up over shards; the recall of a whole iteration is that of the sums.
    """

    rows: float = 0.0
    found: float = 0.0

    @property
    def recall(self) -> float | None:
        """None where no stratum had an audit."""
        return self.found / self.rows if self.rows else None


def audit_top(
    scored: Iterable[ScoredExample],
    pool: Pool,
    *,
    fraction: float,
    stratify: bool = True,
    population: Mapping[bool, int],
) -> AuditedTop:
    """Estimate how much of the true top fraction lies in the pool's hardest rows.

    Each audited row stands for (rows outside of the hardest) / (audited rows) rows of its stratum. Going down from the
    largest perplexity, the weights are added up to the size of the top fraction; the recall is the hardest rows' part.
    """
    ranked = rank(scored)
    found = wanted = 0.0
    for members, size in _strata(ranked, population, stratify):
        audited = sum(row.id in pool.audit for row in members)
        inside = sum(row.id in pool.hardest for row in members)
        outside = size - inside
        if outside and not audited:
            continue  # nothing is known about the others of this stratum
        left = float(count_of(fraction, size))
        wanted += left
        for row in members:
            weight = 1.0 if row.id in pool.hardest else outside / audited if row.id in pool.audit else 0.0
            taken = min(weight, left)
            found += taken if row.id in pool.hardest else 0.0
            left -= taken
    return AuditedTop(rows=wanted, found=found)
