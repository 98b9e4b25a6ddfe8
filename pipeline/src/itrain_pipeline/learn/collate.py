"""Rows of token ids as padded tensors. Everything is masked by length, never by the value of an id (trap 8).

Padding is on the right, so positions are those of the unpadded row; causal attention never looks at it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from itrain_pipeline.learn.treerow import scored_answers

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

    `prompt_ids` and `truth_ids`, where given, are what the context begins with and the whole right answer to it.
    """

    context_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    prompt_ids: tuple[int, ...] = ()
    truth_ids: tuple[int, ...] = ()
    weight: float = 1.0

    @property
    def length(self) -> int:
        """Tokens of the longer of the two rows."""
        return len(self.context_ids) + max(len(self.chosen_ids), len(self.rejected_ids))


PADDING_PAIR = PairRow(context_ids=(0,), chosen_ids=(0,), rejected_ids=(0,), weight=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairCollator:
    """P pairs to one batch of 2P rows: the chosen ones first, then the rejected, as TRL concatenates them. With right
    answers, which all pairs have or none, P more rows follow.

    Keys: `input_ids`, `attention_mask` [2P, T]; `scored` [2P, T], True at tokens of the response; `weights` [P].
    """

    pad_id: int = 0

    def __call__(self, pairs: Sequence[PairRow]) -> dict[str, Any]:
        answers = [answer for kind in zip(*map(scored_answers, pairs), strict=True) for answer in kind]
        rows = [(*context, *answer) for context, answer in answers]
        starts = torch.tensor([len(context) for context, _ in answers])
        mask = length_mask(rows)
        positions = torch.arange(mask.shape[1])[None, :]
        return {
            "input_ids": pad_right(rows, self.pad_id),
            "attention_mask": mask,
            "scored": mask.bool() & (positions >= starts[:, None]),
            "weights": torch.tensor([p.weight for p in pairs]),
        }
