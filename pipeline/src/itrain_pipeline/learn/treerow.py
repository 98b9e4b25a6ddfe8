"""All pairs of a tree as one row: every token that several answers share stands in it once. Pure; no tensors.

The row is the trie of the pairs' token sequences in preorder. A token attends to its ancestors, so one number per
token, where its subtree ends, is the whole block mask: `i` sees `j` if j ≤ i < ends[j]. Its position is its depth,
that of the row in which it would stand alone. The last token of an answer predicts nothing and is left out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Pair(Protocol):
    """A context and two answers to it, as token ids; also, or instead, a prompt and the whole right answer to that."""

    @property
    def context_ids(self) -> tuple[int, ...]: ...
    @property
    def chosen_ids(self) -> tuple[int, ...]: ...
    @property
    def rejected_ids(self) -> tuple[int, ...]: ...
    @property
    def prompt_ids(self) -> tuple[int, ...]: ...
    @property
    def truth_ids(self) -> tuple[int, ...]: ...


Answer = tuple[tuple[int, ...], tuple[int, ...]]
"""What is not scored, and what is."""


def answers_of(pair: Pair) -> tuple[Answer | None, Answer | None, Answer | None]:
    """The chosen step, the rejected one, the right answer; None for what the pair has not.

    Raises ValueError for one that has nothing, one step without the other, or an answer to nothing: its first token
    would have no prediction.
    """
    steps = ((pair.context_ids, pair.chosen_ids), (pair.context_ids, pair.rejected_ids))
    found = (*steps, (pair.prompt_ids, pair.truth_ids))
    present = [bool(ids) for _, ids in found]
    if not any(present) or present[0] != present[1] or not all(before for before, ids in found if ids):
        raise ValueError("a pair needs a context and two answers of at least one token, or a prompt and a right answer")
    chosen, rejected, truth = (answer if answer[1] else None for answer in found)
    return chosen, rejected, truth


def scored_answers(pair: Pair) -> tuple[Answer, ...]:
    """Those that the pair has, in this order."""
    return tuple(answer for answer in answers_of(pair) if answer is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeRow:
    """A row of T tokens that holds P pairs.

    `predictors` are the places whose predictions are scored, ascending. `targets` are the scored tokens, each once:
    (index in `predictors`, token id). `chosen` and `rejected` give, per pair, the indexes in `targets` of its answer,
    `truths` those of its right answer; no indexes where the pair has none.
    """

    token_ids: tuple[int, ...]
    positions: tuple[int, ...]
    ends: tuple[int, ...]
    predictors: tuple[int, ...]
    targets: tuple[tuple[int, int], ...]
    chosen: tuple[tuple[int, ...], ...]
    rejected: tuple[tuple[int, ...], ...]
    truths: tuple[tuple[int, ...], ...]

    @property
    def length(self) -> int:
        return len(self.token_ids)


def build_tree_row(pairs: Sequence[Pair]) -> TreeRow:
    """The row of pairs that share what they share, prompts included; a step or path of two pairs is there once.

    Raises ValueError without pairs, and what `answers_of` raises.
    """
    of_pairs = [answers_of(pair) for pair in pairs]
    answers = {answer for found in of_pairs for answer in found if answer is not None}
    if not answers:
        raise ValueError("a row needs pairs")
    tokens: list[int] = []
    positions: list[int] = []
    ends: list[int] = []
    paths: dict[tuple[int, ...], list[int]] = {}
    before: tuple[int, ...] = ()
    path: list[int] = []
    for row in sorted({_predicting(context, answer) for context, answer in answers}):
        shared = shared_length(before, row)
        for place in path[shared:]:
            ends[place] = len(tokens)
        path = [*path[:shared], *range(len(tokens), len(tokens) + len(row) - shared)]
        tokens += row[shared:]
        positions += range(shared, len(row))
        ends += [0] * (len(row) - shared)
        paths[row], before = path, row
    for place in path:
        ends[place] = len(tokens)

    scored = {
        (context, answer): [
            (paths[_predicting(context, answer)][len(context) - 1 + at], token) for at, token in enumerate(answer)
        ]
        for context, answer in answers
    }
    predictors = sorted({place for steps in scored.values() for place, _ in steps})
    row_of = {place: number for number, place in enumerate(predictors)}
    distinct = sorted({step for steps in scored.values() for step in steps})
    target_of = {target: number for number, target in enumerate(distinct)}
    terms = [
        [() if answer is None else tuple(target_of[step] for step in scored[answer]) for answer in found]
        for found in of_pairs
    ]
    return TreeRow(
        token_ids=tuple(tokens),
        positions=tuple(positions),
        ends=tuple(ends),
        predictors=tuple(predictors),
        targets=tuple((row_of[place], token) for place, token in target_of),
        chosen=tuple(found[0] for found in terms),
        rejected=tuple(found[1] for found in terms),
        truths=tuple(found[2] for found in terms),
    )


class RowSize:
    """Tokens of a row while pairs are added to it, without building it."""

    def __init__(self) -> None:
        self.tokens = 0
        self._rows: list[tuple[int, ...]] = []

    def add(self, pair: Pair) -> None:
        for answer in scored_answers(pair):
            row = _predicting(*answer)
            at = bisect_left(self._rows, row)
            neighbours = self._rows[max(0, at - 1) : at + 1]
            self.tokens += len(row) - max((shared_length(row, other) for other in neighbours), default=0)
            if row not in neighbours:
                self._rows.insert(at, row)


def shared_length(left: Sequence[int], right: Sequence[int]) -> int:
    """Tokens that two rows have in common at their beginning; by bisection, as comparing slices is fast."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _predicting(context: Sequence[int], answer: Sequence[int]) -> tuple[int, ...]:
    """The tokens of an answer's row that predict something: all but the last."""
    return (*context, *answer[:-1])
