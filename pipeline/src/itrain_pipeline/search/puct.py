"""Selection by PUCT: argmax_a Q(s,a) + c · p(a|s) · √N(s) / (1 + N(s,a)) (method document, section 3).

N counts finished visits and those in flight, Q finished ones only. N(s) = 0 counts as 1, so that the prior decides the
first choice. A child without a finished visit has the first-play value as its Q. Equal scores are decided by the rng.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from itrain_pipeline.search.tree import Node

TIE = 1e-12
"""Scores closer than this are equal: they differ by the order of additions only."""


def sibling_priors(mean_logprobs: Sequence[float]) -> list[float]:
    """p(a|s): softmax over the distinct siblings' mean token logprobs. Means, so that long steps do not vanish."""
    top = max(mean_logprobs)
    weights = [math.exp(value - top) for value in mean_logprobs]
    total = sum(weights)
    return [weight / total for weight in weights]


def puct_score(*, q: float, prior: float, parent_visits: int, visits: int, c: float) -> float:
    return q + c * prior * math.sqrt(max(parent_visits, 1)) / (1 + visits)


def select_child(
    node: Node, *, c: float, first_play_value: float, rng: random.Random, among: Callable[[Node], bool] = lambda _: True
) -> Node:
    """The best of the children that `among` leaves; raises ValueError without any."""
    children = list(node.children.values())
    priors = sibling_priors([child.mean_logprob for child in children])
    scores = [
        puct_score(
            q=child.q if child.visits else first_play_value,
            prior=prior,
            parent_visits=node.visits + node.in_flight,
            visits=child.visits + child.in_flight,
            c=c,
        )
        if among(child)
        else -math.inf
        for child, prior in zip(children, priors, strict=True)
    ]
    best = max(scores)
    if best == -math.inf:
        raise ValueError("no child is left to select")
    tied = [child for child, score in zip(children, scores, strict=True) if best - score <= TIE]
    return tied[0] if len(tied) == 1 else rng.choice(tied)


def select_leaf(root: Node, *, c: float, first_play_value: float, rng: random.Random, open_only: bool = False) -> Node:
    """Descend to a node that was not expanded yet, or where an answer ended (it backs up again).

    `open_only` leaves out the branches where nothing can be asked for any more, as long as there are others.
    """
    among = Node.open_below if open_only and root.open_below() else _any
    node = root
    while node.expanded and node.children:
        node = select_child(node, c=c, first_play_value=first_play_value, rng=rng, among=among)
    return node


def _any(_: Node) -> bool:
    return True
