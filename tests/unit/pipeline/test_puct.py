"""Selection: the formula by hand, and every case that a formula leaves open."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itrain_pipeline.search.puct import puct_score, select_child, select_leaf, sibling_priors
from itrain_pipeline.search.tree import Node, back_up, enter, leave, thread_chain


def two_children(first: float = -1.0, second: float = -1.0) -> tuple[Node, Node, Node]:
    root = Node(expanded=True)
    a = thread_chain(root, ((1,),), [first], "stop", depth=3)
    b = thread_chain(root, ((2,),), [second], "stop", depth=3)
    return root, a, b


def choose(root: Node, c: float = 1.0, first_play_value: float = 0.0, seed: int = 0) -> Node:
    return select_child(root, c=c, first_play_value=first_play_value, rng=random.Random(seed))


def test_the_score_is_q_plus_c_p_root_n_over_one_plus_visits() -> None:
    assert puct_score(q=0.5, prior=0.25, parent_visits=9, visits=2, c=2.0) == pytest.approx(0.5 + 2 * 0.25 * 3 / 3)


@given(st.lists(st.floats(-50, 0), min_size=1, max_size=8))
def test_priors_are_a_distribution_in_the_order_of_the_logprobs(values: list[float]) -> None:
    priors = sibling_priors(values)
    assert sum(priors) == pytest.approx(1.0)
    assert sorted(range(len(values)), key=lambda i: (values[i], i))[-1] in [
        i for i, p in enumerate(priors) if p == pytest.approx(max(priors))
    ]


def test_a_long_step_is_not_less_likely_for_being_long() -> None:
    root = Node()
    long = thread_chain(root, ((1,) * 40,), [-0.5] * 40, "stop", depth=3)
    short = thread_chain(root, ((2,),), [-0.5], "stop", depth=3)
    assert sibling_priors([long.mean_logprob, short.mean_logprob]) == pytest.approx([0.5, 0.5])


def test_without_any_visit_the_prior_decides() -> None:
    root, a, b = two_children(-2.0, -1.0)
    assert choose(root) is b
    assert root.visits == 0
    assert a.visits == 0


def test_the_first_play_value_stands_in_for_q_only_before_the_first_visit() -> None:
    root, a, b = two_children()
    back_up(a, 0.1)
    # a: 0.1 + 0.5·1/2 = 0.35; b: fpv + 0.5·1/1
    assert choose(root, first_play_value=0.0) is b
    assert choose(root, first_play_value=-0.5) is a


def test_ties_are_decided_by_the_rng_alone() -> None:
    root, a, b = two_children()
    chosen = [choose(root, seed=seed) for seed in range(40)]
    assert {id(node) for node in chosen} == {id(a), id(b)}
    assert chosen == [choose(root, seed=seed) for seed in range(40)]


def test_a_visit_in_flight_lowers_u_but_never_q_and_is_gone_when_it_failed() -> None:
    root, a, b = two_children(-1.0, -1.1)
    back_up(a, 0.0)
    back_up(b, 0.0)
    assert choose(root) is a
    enter(a)
    assert choose(root) is b
    assert (a.q, a.visits) == (0.0, 1)
    leave(a)
    assert choose(root) is a


def test_visits_in_flight_count_in_the_parents_n() -> None:
    root, a, b = two_children(0.0, -5.0)
    back_up(a, 0.5)
    back_up(b, 0.9)
    # Two finished visits: a is chosen while √N_parent · p outweighs the gap; the parent's N grows with those under way.
    for _ in range(2):
        enter(b)
    p = sibling_priors([0.0, -5.0])
    score_a = 0.5 + p[0] * math.sqrt(4) / 2
    score_b = 0.9 + p[1] * math.sqrt(4) / 4
    assert (choose(root) is a) == (score_a > score_b)
    assert score_a > score_b
    assert 0.5 + p[0] * math.sqrt(2) / 2 > 0.9


def test_descent_stops_at_a_node_that_was_not_expanded_and_at_an_end() -> None:
    root = Node()
    end = thread_chain(root, ((1,), (2,)), [-1.0, -1.0], "stop", depth=3)
    rng = random.Random(0)
    assert select_leaf(root, c=1.0, first_play_value=0.0, rng=rng) is root
    root.expanded = True
    assert select_leaf(root, c=1.0, first_play_value=0.0, rng=rng) is end.parent
    end.parent.expanded = True
    assert select_leaf(root, c=1.0, first_play_value=0.0, rng=rng) is end
