"""The tree's bookkeeping: ids, sharing, levels and visits."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itrain_pipeline.search.seeds import derive_seed
from itrain_pipeline.search.tree import Node, back_up, enter, leave, thread_chain

STEPS = st.lists(st.lists(st.integers(0, 300), min_size=1, max_size=6).map(tuple), min_size=1, max_size=8).map(tuple)


def ids_of(steps: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    return tuple(token for step in steps for token in step)


@given(STEPS, st.integers(1, 5))
def test_the_steps_of_a_chain_join_to_exactly_the_sampled_ids(steps: tuple[tuple[int, ...], ...], depth: int) -> None:
    root = Node()
    end = thread_chain(root, steps, [-0.5] * len(ids_of(steps)), "stop", depth=depth)
    assert end.answer_ids() == ids_of(steps)
    assert end.level == min(len(steps), depth)


def test_identical_completions_become_one_node_and_shared_beginnings_one_path() -> None:
    root = Node()
    first = thread_chain(root, ((1, 2), (3,)), [-0.1, -0.3, -0.5], "stop", depth=3)
    same = thread_chain(root, ((1, 2), (3,)), [-0.1, -0.3, -0.5], "stop", depth=3)
    other = thread_chain(root, ((1, 2), (4,)), [-0.1, -0.3, -0.7], "stop", depth=3)
    assert same is first
    assert other.parent is first.parent
    assert len(root.children) == 1
    assert len(first.parent.children) == 2
    assert first.parent.mean_logprob == pytest.approx((-0.1 - 0.3) / 2)
    assert [node.name() for node in root.walk()] == ["", "0", "0.0", "0.1"]


def test_a_mean_logprob_covers_all_tokens_of_a_last_step_that_takes_what_remains() -> None:
    end = thread_chain(Node(), ((1,), (2,), (3,)), [-1.0, -2.0, -4.0], "stop", depth=2)
    assert end.step_ids == (2, 3)
    assert end.mean_logprob == pytest.approx(-3.0)


def test_an_answer_cut_by_its_length_is_not_terminal() -> None:
    cut = thread_chain(Node(), ((1,), (2,)), [-1.0, -1.0], "length", depth=3)
    assert cut.ending == "length"
    assert not cut.terminal
    assert thread_chain(Node(), ((1,), (2,)), [-1.0, -1.0], "stop", depth=3).terminal


def test_the_value_of_a_node_is_the_mean_of_its_visits_and_not_their_sum() -> None:
    root = Node()
    often = thread_chain(root, ((1,),), [-1.0], "stop", depth=3)
    rarely = thread_chain(root, ((2,),), [-1.0], "stop", depth=3)
    for _ in range(10):
        back_up(often, 0.2)
    back_up(rarely, 0.9)
    assert often.value_sum > rarely.value_sum
    assert often.q == pytest.approx(0.2)
    assert rarely.q == pytest.approx(0.9)
    assert root.q == pytest.approx((10 * 0.2 + 0.9) / 11)


@given(st.lists(st.tuples(STEPS, st.floats(-1, 1)), min_size=1, max_size=12), st.integers(1, 4))
def test_visits_conserve(answers: list[tuple[tuple[tuple[int, ...], ...], float]], depth: int) -> None:
    root = Node()
    ended: dict[int, int] = {}
    for steps, value in answers:
        end = thread_chain(root, steps, [-1.0] * len(ids_of(steps)), "stop", depth=depth)
        back_up(end, value)
        ended[id(end)] = ended.get(id(end), 0) + 1
    for node in root.walk():
        assert node.visits == sum(child.visits for child in node.children.values()) + ended.get(id(node), 0)
    assert root.visits == len(answers)
    assert root.value_sum == pytest.approx(sum(value for _, value in answers))


def test_a_visit_under_way_counts_on_the_whole_path_until_it_leaves() -> None:
    root = Node()
    end = thread_chain(root, ((1,), (2,)), [-1.0, -1.0], "stop", depth=3)
    enter(end)
    assert [node.in_flight for node in root.walk()] == [1, 1, 1]
    assert [node.visits for node in root.walk()] == [0, 0, 0]
    leave(end)
    assert [node.in_flight for node in root.walk()] == [0, 0, 0]


def test_seeds_differ_in_every_part_of_their_name_and_are_the_same_for_the_same_name() -> None:
    base = {"run_seed": 1, "iteration": 1, "sample_id": "a", "answer_ids": (1, 2), "visit": 0}
    changes = [{}, {"run_seed": 2}, {"iteration": 2}, {"sample_id": "b"}, {"answer_ids": (12,)}, {"visit": 1}]
    seeds = [derive_seed(**{**base, **change}) for change in changes]
    assert len(set(seeds)) == len(seeds)
    assert derive_seed(**base) == seeds[0]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert random.Random(seeds[0]).random() == random.Random(derive_seed(**base)).random()
