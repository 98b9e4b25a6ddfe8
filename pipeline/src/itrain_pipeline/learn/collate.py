"""Rows of token ids as padded tensors. Everything is masked by length, never by the value of an id (trap 8).

Padding is on the right, so positions are those of the unpadded row; causal attention never looks at it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from itrain_pipeline.learn.treerow import answers_of

IGNORED = -100


def pad_right(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    """Rows as one tensor [B, T], filled up with `fill`."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=torch.long)


def length_mask(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """1 where a row has a token, [B, T]."""
    lengths_B = torch.tensor([len(row) for row in rows])
    return (torch.arange(int(lengths_B.max()))[None, :] < lengths_B[:, None]).long()


def answer_labels(prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> list[int]:
    """Labels of one row: the answer's ids (end of turn included), everything before ignored."""
    return [IGNORED] * len(prompt_ids) + list(answer_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class SftCollator:
    """`{"input_ids", "labels"}` rows to a batch. `pad_id` may be any id: nothing looks at padded positions."""

    pad_id: int = 0

    def __call__(self, rows: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
        ids = [row["input_ids"] for row in rows]
        return {
            "input_ids": pad_right(ids, self.pad_id),
            "attention_mask": length_mask(ids),
            "labels": pad_right([row["labels"] for row in rows], IGNORED),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRow:
    """One preference pair for the model: a context that is not scored and two answers to it. Weight 0 is padding.

    `prompt_ids` and `truth_ids` are what the context begins with and the whole right answer to it. All pairs of a batch
    have one, or none has; a row of that alone prefers nothing.
    """

    context_ids: tuple[int, ...] = ()
    chosen_ids: tuple[int, ...] = ()
    rejected_ids: tuple[int, ...] = ()
    prompt_ids: tuple[int, ...] = ()
    truth_ids: tuple[int, ...] = ()
    weight: float = 1.0


PADDING_PAIR = PairRow(context_ids=(0,), chosen_ids=(0,), rejected_ids=(0,), weight=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairCollator:
    """P pairs to one batch of a row per answer, B in all: the chosen ones first, then the rejected, as TRL concatenates
    them, then right answers.

    Keys: `input_ids`, `attention_mask` [B, T]; `scored` [B, T], True at tokens of the response; `lengths` [2P or 3P]
    and `weights` [P] as in TreeCollator; `answers` [B]: which of the `lengths` a row is of.
    """

    pad_id: int = 0

    def __call__(self, pairs: Sequence[PairRow]) -> dict[str, Any]:
        kinds = answers_by_kind([answers_of(pair) for pair in pairs])
        answers = {at: answer for at, answer in enumerate(kinds) if answer is not None}
        rows = [(*context, *answer) for context, answer in answers.values()]
        starts = torch.tensor([len(context) for context, _ in answers.values()])
        mask = length_mask(rows)
        positions = torch.arange(mask.shape[1])[None, :]
        return {
            "input_ids": pad_right(rows, self.pad_id),
            "attention_mask": mask,
            "scored": mask.bool() & (positions >= starts[:, None]),
            "answers": torch.tensor(list(answers)),
            "lengths": torch.tensor([0 if answer is None else len(answer[1]) for answer in kinds]),
            "weights": torch.tensor([p.weight for p in pairs]),
        }


T = TypeVar("T")


def answers_by_kind(of_pairs: Sequence[tuple[T, T, T]]) -> list[T]:
    """Chosen, rejected and right answers of all pairs, one kind after the other; the last only where there are any.

    Raises ValueError where some of the pairs have a right answer and some have none.
    """
    chosen, rejected, truths = zip(*of_pairs, strict=True)
    if len({bool(truth) for truth in truths}) > 1:
        raise ValueError("either all pairs of a batch have a right answer or none")
    return [*chosen, *rejected, *(truths if truths[0] else ())]
