"""Training order and batch plans: counts, curriculum, the global batch."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itrain_pipeline.errors import ConfigError
from itrain_pipeline.learn.order import (
    PADDING,
    count_steps,
    longest_first,
    pad_order,
    plan_batches,
    plan_order,
    plan_tree_order,
)


def test_the_curriculum_trains_the_buckets_in_sequence_and_every_row_once_an_epoch() -> None:
    order = plan_order([5, 3, 2], epochs=2, max_steps=0, global_batch=4, seed=0)
    assert Counter(order) == dict.fromkeys(range(10), 2)
    assert [sorted(set(part)) for part in (order[:10], order[10:16], order[16:])] == [
        [0, 1, 2, 3, 4],
        [5, 6, 7],
        [8, 9],
    ]


def test_each_pass_over_a_bucket_is_shuffled_anew_and_the_same_seed_gives_the_same_order() -> None:
    order = plan_order([50], epochs=2, max_steps=0, global_batch=4, seed=0)
    assert order[:50] != order[50:]
    assert order == plan_order([50], epochs=2, max_steps=0, global_batch=4, seed=0)
    assert order != plan_order([50], epochs=2, max_steps=0, global_batch=4, seed=1)


def test_max_steps_keeps_the_curriculum_and_gives_whole_global_batches() -> None:
    order = plan_order([50, 30, 20], epochs=1, max_steps=5, global_batch=4, seed=0)
    assert len(order) == 20
    # 20 of 100 rows: a fifth of every bucket
    assert [sum(low <= row < high for row in order) for low, high in ((0, 50), (50, 80), (80, 100))] == [10, 6, 4]
    assert list(order) == sorted(order, key=lambda row: (row >= 50) + (row >= 80))


def test_an_order_over_no_rows_is_empty() -> None:
    assert plan_order([0, 0], epochs=1, max_steps=7, global_batch=4, seed=0) == ()


@given(
    buckets=st.lists(st.integers(0, 20), min_size=1, max_size=4),
    epochs=st.floats(0.1, 3.0),
    max_steps=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_no_row_is_seen_two_times_more_often_than_another_of_its_bucket(
    buckets: list[int], epochs: float, max_steps: int, seed: int
) -> None:
    order = plan_order(buckets, epochs=epochs, max_steps=max_steps, global_batch=3, seed=seed)
    if sum(buckets):
        assert len(order) == (max_steps * 3 if max_steps else max(1, round(epochs * sum(buckets))))
    seen = Counter(order)
    first = 0
    for count in buckets:
        times = [seen[row] for row in range(first, first + count)]
        assert not times or max(times) - min(times) <= 1
        first += count


@pytest.mark.parametrize(
    ("global_batch", "micro", "processes", "expected"),
    [(128, 4, 1, (4, 32)), (128, 4, 8, (4, 4)), (6, 4, 1, (3, 2)), (7, 4, 1, (1, 7)), (2, 4, 2, (1, 1))],
)
def test_the_global_batch_holds_whatever_the_processes(
    global_batch: int, micro: int, processes: int, expected: tuple[int, int]
) -> None:
    plan = plan_batches(global_batch=global_batch, micro_batch=micro, processes=processes)
    assert (plan.micro, plan.accumulation) == expected
    assert plan.global_batch == global_batch


def test_a_global_batch_that_the_processes_cannot_share_is_refused_with_the_field_and_what_is_allowed() -> None:
    with pytest.raises(ConfigError, match=r"globalBatch: got 5, allowed are multiples of the 2 processes"):
        plan_batches(global_batch=5, micro_batch=1, processes=2)


def test_the_last_batch_is_evened_out_for_several_processes_only() -> None:
    two = plan_batches(global_batch=4, micro_batch=2, processes=2)
    assert pad_order((0, 1, 2, 3, 4), two) == (0, 1, 2, 3, 4, PADDING, PADDING, PADDING)
    one = plan_batches(global_batch=4, micro_batch=2, processes=1)
    assert pad_order((0, 1, 2), one) == (0, 1, 2)
    assert count_steps(5, 4) == 2


def test_trees_are_shuffled_anew_for_every_pass_and_their_pairs_stay_together() -> None:
    trees = [0, 0, 0, 1, 2, 2, 3, 4, 4, 4, 4]
    order = plan_tree_order(trees, epochs=2, max_steps=0, global_batch=4, seed=0)
    assert Counter(order) == dict.fromkeys(range(11), 2)
    first, second = order[:11], order[11:]
    assert first != second
    for part in (first, second):
        begins = [at for at in range(11) if at == 0 or trees[part[at]] != trees[part[at - 1]]]
        assert len(begins) == 5
        assert all(later == row + 1 for row, later in itertools.pairwise(part) if trees[row] == trees[later])
    assert plan_tree_order(trees, epochs=1, max_steps=3, global_batch=6, seed=0) == order[:18]


@given(st.integers(0, 20), st.floats(0.1, 3.0), st.integers(0, 5), st.integers(0, 9))
def test_with_a_tree_for_every_pair_the_order_is_that_of_plain_rows(
    count: int, epochs: float, max_steps: int, seed: int
) -> None:
    wanted = plan_order([count], epochs=epochs, max_steps=max_steps, global_batch=3, seed=seed)
    found = plan_tree_order(range(count), epochs=epochs, max_steps=max_steps, global_batch=3, seed=seed)
    assert found == wanted


def test_longest_first_sorts_within_each_global_batch_and_ends_with_padding() -> None:
    lengths = [5, 9, 7, 7, 1, 8]
    assert longest_first((0, 1, 2, 3, 5, 4), lengths, global_batch=4) == (1, 2, 3, 0, 5, 4)
    assert longest_first((0, 1, 4, PADDING, PADDING), [1, 2, 0, 0, 30], global_batch=8) == (4, 1, 0, PADDING, PADDING)


@given(order=st.lists(st.integers(0, 9), max_size=30), batch=st.integers(1, 8))
def test_longest_first_leaves_every_row_in_its_optimiser_step(order: list[int], batch: int) -> None:
    found = longest_first(order, [(7 * index) % 5 for index in range(10)], global_batch=batch)
    for first in range(0, len(order), batch):
        assert sorted(found[first : first + batch]) == sorted(order[first : first + batch])
