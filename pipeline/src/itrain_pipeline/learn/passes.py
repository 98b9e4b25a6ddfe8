"""Which pairs go through the model together: rows, forward passes, and their share among the processes. Pure.

An optimiser step is a global batch of pairs in every form, in the same order; a form only changes how often tokens
are computed. Forward passes are bounded by tokens, so a step has as many as its rows need; those of steps with fewer
are filled up with passes that weigh nothing, because accumulation is one number for a whole training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from itrain_pipeline.learn.treerow import Pair, RowSize, scored_answers

RowForm = Literal["tree", "pair", "separate"]
"""A row holds all pairs of a tree, or one pair with its context once, or one answer of a pair with its context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What one forward pass may hold: `tokens` = rows × longest row in the forms tree and pair, else `pairs`."""

    tokens: int
    pairs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Indexes of the pairs in a row, and its tokens."""

    pairs: tuple[int, ...]
    tokens: int


Pass = tuple[Row, ...]
"""Rows of one forward pass; none of them in a pass that only fills up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassPlan:
    """Forward passes in the order in which a loader deals them out: step by step, round by round, process by process.

    `tokens` are those that all passes compute, padding included; `naive_tokens` those of a row per answer without any
    padding: the least that a trainer computes that shares nothing.
    """

    form: RowForm
    passes: tuple[Pass, ...]
    accumulation: int
    processes: int
    tokens: int
    naive_tokens: int


def plan_passes(
    pairs: Sequence[Pair],
    trees: Sequence[int],
    order: Sequence[int],
    *,
    form: RowForm,
    global_batch: int,
    processes: int,
    budget: Budget,
) -> PassPlan:
    """`trees[i]` names the tree of pair i; pairs of one tree share a row when they are neighbours in `order`."""
    steps = [
        _plan_step(pairs, trees, order[first : first + global_batch], form, processes, budget)
        for first in range(0, len(order), global_batch)
    ]
    accumulation = max((len(shares) for step in steps for shares in step), default=1)
    dealt = tuple(
        shares[turn] if turn < len(shares) else () for step in steps for turn in range(accumulation) for shares in step
    )
    return PassPlan(
        form=form,
        passes=dealt,
        accumulation=accumulation,
        processes=processes,
        tokens=sum(_computed(rows, form) for rows in dealt),
        naive_tokens=sum(naive_tokens(pairs[index]) for index in order),
    )


def naive_tokens(pair: Pair) -> int:
    """A pair as a row per answer."""
    return sum(len(context) + len(answer) for context, answer in scored_answers(pair))


def plan_rows(
    pairs: Sequence[Pair], trees: Sequence[int], order: Sequence[int], *, form: RowForm, most_tokens: int
) -> list[Row]:
    """A step's pairs as rows. A tree's row is cut before the pair that takes it over `most_tokens`; a pair never is."""
    if form == "separate":
        return [Row(pairs=(index,), tokens=_answer_tokens(pairs[index])) for index in order]
    rows: list[Row] = []
    for _, neighbours in groupby(order, key=lambda index: trees[index]):
        members: list[int] = []
        size, tokens = RowSize(), 0
        for index in neighbours:
            size.add(pairs[index])
            if members and (form == "pair" or size.tokens > most_tokens):
                rows.append(Row(pairs=tuple(members), tokens=tokens))
                members, size = [], RowSize()
                size.add(pairs[index])
            members.append(index)
            tokens = size.tokens
        rows.append(Row(pairs=tuple(members), tokens=tokens))
    return rows


def _plan_step(
    pairs: Sequence[Pair],
    trees: Sequence[int],
    batch: Sequence[int],
    form: RowForm,
    processes: int,
    budget: Budget,
) -> list[list[Pass]]:
    """Passes by process: the longest rows first, each to the process with the least to do."""
    rows = plan_rows(pairs, trees, batch, form=form, most_tokens=budget.tokens)
    shares: list[list[Row]] = [[] for _ in range(processes)]
    loads = [0] * processes
    for row in sorted(rows, key=lambda row: -row.tokens):
        least = loads.index(min(loads))
        shares[least].append(row)
        loads[least] += row.tokens
    return [_cut_passes(share, form, budget) for share in shares]


def _cut_passes(rows: Sequence[Row], form: RowForm, budget: Budget) -> list[Pass]:
    """Rows, longest first, cut where a pass would exceed the budget; a row that does alone is a pass of its own."""
    passes: list[list[Row]] = []
    for row in rows:
        current = passes[-1] if passes else []
        grown = len(current) + 1
        fits = grown <= budget.pairs if form == "separate" else grown * (current or [row])[0].tokens <= budget.tokens
        if current and fits:
            current.append(row)
        else:
            passes.append([row])
    return [tuple(found) for found in passes]


def _computed(rows: Pass, form: RowForm) -> int:
    """Tokens of a pass, padding included."""
    if not rows:
        return 0
    return len(rows) * max(row.tokens for row in rows)


def _answer_tokens(pair: Pair) -> int:
    """Of a pair as a row per answer, all as long as the longest."""
    answers = scored_answers(pair)
    return len(answers) * max(len(context) + len(answer) for context, answer in answers)
