"""Step-level MCTS as a textbook would write it: tables by state, plain loops, one thing after the other.

It shares no code with `itrain_pipeline.search`. A state is the tuple of steps taken so far.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

State = tuple[tuple[int, ...], ...]


@dataclass
class Table:
    n: dict[State, int] = field(default_factory=dict)
    total: dict[State, float] = field(default_factory=dict)
    logprob: dict[State, float] = field(default_factory=dict)
    children: dict[State, list[State]] = field(default_factory=dict)
    expanded: set[State] = field(default_factory=set)
    ended: dict[State, float] = field(default_factory=dict)


def textbook_search(
    *,
    sample: Callable[[tuple[int, ...], int], tuple[tuple[int, ...], tuple[float, ...], bool]],
    cut: Callable[[Sequence[int]], State],
    reward: Callable[[Sequence[int]], float],
    seed: Callable[[tuple[int, ...], int], int],
    rng: random.Random,
    simulations: int,
    actions: int,
    depth: int,
    c: float,
    first_play_value: float,
) -> Table:
    """`sample(answer, seed)` gives ids, logprobs and whether the answer finished."""
    t = Table(n={(): 0}, total={(): 0.0}, children={(): []})
    for _ in range(simulations):
        state: State = ()
        while state in t.expanded and t.children[state]:
            state = _best_child(t, state, c, first_play_value, rng)
        if state in t.ended:
            _count(t, state, t.ended[state])
            continue
        answer = tuple(token for step in state for token in step)
        results = []
        for visit in range(actions):
            ids, logprobs, finished = sample(answer, seed(answer, visit))
            value = reward(answer + ids) if finished else -1.0
            end = _insert(t, state, cut(answer + ids)[len(state) :], logprobs, depth)
            t.ended[end] = value
            results.append((end, value))
        t.expanded.add(state)
        for end, value in results:
            _count(t, end, value)
    return t


def _best_child(t: Table, state: State, c: float, first_play_value: float, rng: random.Random) -> State:
    children = t.children[state]
    exps = [math.exp(t.logprob[child]) for child in children]
    scores = []
    for child, weight in zip(children, exps, strict=True):
        q = t.total[child] / t.n[child] if t.n[child] else first_play_value
        u = c * (weight / sum(exps)) * math.sqrt(t.n[state]) / (1 + t.n[child])
        scores.append(q + u)
    best = [child for child, score in zip(children, scores, strict=True) if abs(score - max(scores)) < 1e-12]
    return best[0] if len(best) == 1 else rng.choice(best)


def _insert(t: Table, state: State, steps: State, logprobs: Sequence[float], depth: int) -> State:
    room = depth - len(state)
    if len(steps) > room:
        tail: tuple[int, ...] = ()
        for step in steps[room - 1 :]:
            tail += step
        steps = (*steps[: room - 1], tail)
    position = 0
    for step in steps:
        child = (*state, step)
        if child not in t.n:
            t.n[child], t.total[child], t.children[child] = 0, 0.0, []
            own = logprobs[position : position + len(step)]
            t.logprob[child] = sum(own) / len(own)
            t.children[state].append(child)
        position += len(step)
        state = child
    return state


def _count(t: Table, state: State, value: float) -> None:
    for length in range(len(state) + 1):
        t.n[state[:length]] += 1
        t.total[state[:length]] += value
