"""Selection by perplexity, the pool of later iterations, and what its audit tells."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itrain_pipeline.data.selection import (
    AuditedTop,
    Pool,
    audit_top,
    count_of,
    plan_pool,
    select_hardest,
    shard_of,
)
from itrain_pipeline.records import ScoredExample


def scored(row_id: str, perplexity: float, *, has_call: bool = True) -> ScoredExample:
    return ScoredExample(id=row_id, perplexity=perplexity, tokens=5, has_call=has_call)


def test_the_hardest_come_first_and_equal_ones_by_id() -> None:
    rows = [scored("d", 2.0), scored("b", 3.0), scored("a", 3.0), scored("c", 9.0)]
    assert select_hardest(rows, 0.75).ids == ("c", "a", "b")
    assert select_hardest(reversed(rows), 0.75).ids == ("c", "a", "b")


def test_calls_and_texts_are_ranked_apart() -> None:
    rows = [scored(f"c{i}", 1.0 + i / 100) for i in range(20)]
    rows += [scored(f"t{i}", 50.0 + i, has_call=False) for i in range(10)]
    assert set(select_hardest(rows, 0.1).ids) == {"c19", "c18", "t9"}
    assert set(select_hardest(rows, 0.1, stratify=False).ids) == {"t9", "t8", "t7"}


def test_rows_without_a_finite_perplexity_are_left_out_and_counted() -> None:
    rows = [scored("a", math.nan), scored("b", math.inf), scored("c", 2.0), scored("d", 1.0)]
    selection = select_hardest(rows, 0.5)
    assert (selection.ids, selection.excluded) == (("c",), 2)


@pytest.mark.parametrize(
    ("fraction", "population", "count"),
    [(0.1, 30, 3), (0.1, 31, 4), (0.1, 1, 1), (0.1, 0, 0), (1.0, 7, 7), (0.3, 10, 3), (0.0, 10, 0)],
)
def test_a_fraction_is_rounded_up_once(fraction: float, population: int, count: int) -> None:
    assert count_of(fraction, population) == count


def test_the_fraction_is_of_all_rows_where_only_a_pool_was_scored() -> None:
    rows = [scored(f"r{i}", float(i)) for i in range(30)]
    assert len(select_hardest(rows, 0.1, population={True: 100, False: 0}).ids) == 10


def test_a_row_has_one_shard_for_ever() -> None:
    ids = [f"train-{i:06d}-1" for i in range(2000)]
    shards = [shard_of(row_id, 8) for row_id in ids]
    assert all(150 < shards.count(shard) < 350 for shard in range(8))
    assert [shard_of("train-000001-1", n) for n in (1, 2, 8)] == [0, 0, 4]


def test_the_pool_is_last_times_hardest_and_a_seeded_audit_of_the_others() -> None:
    last = [scored(f"r{i:03d}", float(i)) for i in range(100)]
    ids = [row.id for row in last]
    pool = plan_pool(last, ids, pool_fraction=0.3, audit_fraction=0.05, seed="run/2")
    assert pool.hardest == {f"r{i:03d}" for i in range(70, 100)}
    assert len(pool.audit) == 5
    assert not pool.audit & pool.hardest
    assert pool == plan_pool(last, reversed(ids), pool_fraction=0.3, audit_fraction=0.05, seed="run/2")
    assert pool.audit != plan_pool(last, ids, pool_fraction=0.3, audit_fraction=0.05, seed="run/3").audit


def test_the_audit_also_reaches_rows_that_were_never_ranked() -> None:
    last = [scored("a", 2.0), scored("b", math.nan)]
    pool = plan_pool(last, ["a", "b", "c"], pool_fraction=0.5, audit_fraction=1.0, seed="s")
    assert (pool.hardest, pool.audit) == ({"a"}, {"b", "c"})


def test_recall_by_hand() -> None:
    """10 rows, the 4 hardest of last time are scored again, 2 of the other 6 audited: each stands for 3 rows.

    Top 40 % are 4 rows' weight: p1 (1), a1 (3 of its 3): one of four is in the pool.
    """
    pool = Pool(hardest=frozenset({"p1", "p2", "p3", "p4"}), audit=frozenset({"a1", "a2"}))
    rows = [*(scored(f"p{i}", p) for i, p in ((1, 9.0), (2, 5.0), (3, 4.0), (4, 3.0))), scored("a1", 8.0)]
    rows.append(scored("a2", 1.0))
    sizes = {True: 10, False: 0}
    top = audit_top(rows, pool, fraction=0.4, population=sizes)
    assert (top.rows, top.found, top.recall) == (4.0, 1.0, pytest.approx(1 / 4))
    calm = [scored(row.id, 0.5 if row.id in pool.audit else row.perplexity) for row in rows]
    assert audit_top(calm, pool, fraction=0.4, population=sizes).recall == 1.0


def test_without_an_audit_nothing_is_known() -> None:
    pool = Pool(hardest=frozenset({"a"}), audit=frozenset())
    top = audit_top([scored("a", 1.0)], pool, fraction=0.5, population={True: 2, False: 0})
    assert (top, top.recall) == (AuditedTop(), None)


def test_the_estimate_is_near_the_truth_on_many_rows() -> None:
    rng = random.Random(5)
    before = {f"r{i:05d}": rng.gauss(0, 1) for i in range(4000)}
    after = {row_id: value + rng.gauss(0, 0.7) for row_id, value in before.items()}
    last = [scored(row_id, math.exp(value)) for row_id, value in before.items()]
    now = [scored(row_id, math.exp(value)) for row_id, value in after.items()]
    pool = plan_pool(last, before, pool_fraction=0.3, audit_fraction=0.2, seed="x")
    truth = set(select_hardest(now, 0.1).ids)
    true_recall = len(truth & pool.hardest) / len(truth)
    again = [row for row in now if row.id in pool.ids]
    estimate = audit_top(again, pool, fraction=0.1, population={True: 4000, False: 0}).recall
    assert estimate == pytest.approx(true_recall, abs=0.08)
    shards = [
        audit_top(
            [row for row in again if shard_of(row.id, 4) == shard],
            pool,
            fraction=0.1,
            population={True: sum(shard_of(row_id, 4) == shard for row_id in before), False: 0},
        )
        for shard in range(4)
    ]
    assert sum(top.rows for top in shards) == pytest.approx(400, abs=4)
    assert sum(top.found for top in shards) / sum(top.rows for top in shards) == pytest.approx(true_recall, abs=0.08)


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.tuples(st.floats(1, 100), st.booleans()), max_size=30),
    fraction=st.floats(0.05, 1.0),
    order=st.randoms(use_true_random=False),
)
def test_the_selection_does_not_depend_on_the_order_of_shards(
    values: list[tuple[float, bool]], fraction: float, order: random.Random
) -> None:
    rows = [scored(f"r{i}", value, has_call=call) for i, (value, call) in enumerate(values)]
    shuffled = rows.copy()
    order.shuffle(shuffled)
    assert select_hardest(rows, fraction) == select_hardest(shuffled, fraction)
