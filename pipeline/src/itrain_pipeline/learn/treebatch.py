"""SimPO on tree rows: all pairs of a tree in one forward row, loss and gradients those of two rows per pair.

None of this knows of stages or trainers; it works on any causal model of transformers that takes a 4D mask and
position ids, under PEFT and wrappers too:

    pairs = [PairRow(context_ids=(…), chosen_ids=(…), rejected_ids=(…)), …]   # of one tree, in any order
    found = tree_simpo(model, [pairs], beta=2.5, gamma=0.5)
    found.losses.mean().backward()

`pair` rows are trees of one pair: `[[pair] for pair in pairs]`. Dropout draws one mask for what is shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from itrain_pipeline.learn.chosen import chosen_logprobs
from itrain_pipeline.learn.collate import PairRow, answers_by_kind, pad_right
from itrain_pipeline.learn.logprobs import head_on
from itrain_pipeline.learn.simpo import PairLosses, simpo_loss
from itrain_pipeline.learn.treemask import model_masks
from itrain_pipeline.learn.treerow import build_tree_row


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeCollator:
    """B trees with P pairs in all, as tensors. The pairs come out in the order in which the trees name them.

    `input_ids`, `position_ids`, `ends` [B, T] (treerow.py says what `ends` are); `predicts` [B, T], True where the
    output head is needed, R in all; `target_rows`, `targets` [E]: index among the R and token of every scored
    token; `term_targets`, `term_answers` [M]: which of the E each answer sums up, answer p being the chosen one of
    pair p and P + p the rejected one; `lengths` [2P]: tokens of each answer; `weights` [P]. Where pairs have right
    answers there are P more: 2P + p is that of pair p. A pair without steps has two answers of length 0.
    T is padded to a multiple of `multiple`.
    """

    pad_id: int = 0
    multiple: int = 1

    def __call__(self, trees: Sequence[Sequence[PairRow]]) -> dict[str, torch.Tensor]:
        rows = [build_tree_row(pairs) for pairs in trees]
        longest = max(row.length for row in rows)
        width = longest + -longest % self.multiple
        ends = [[*row.ends, *range(row.length + 1, width + 1)] for row in rows]
        predicts_BT = torch.zeros(len(rows), width, dtype=torch.bool)
        target_rows: list[int] = []
        targets: list[int] = []
        answers: list[tuple[list[int], list[int], list[int]]] = []
        heads = 0
        for number, row in enumerate(rows):
            predicts_BT[number, list(row.predictors)] = True
            for c, r, t in zip(row.chosen, row.rejected, row.truths, strict=True):
                first = len(targets)
                answers.append(([first + at for at in c], [first + at for at in r], [first + at for at in t]))
            target_rows += [heads + at for at, _ in row.targets]
            targets += [token for _, token in row.targets]
            heads += len(row.predictors)
        scored = answers_by_kind(answers)
        return {
            "input_ids": _filled([row.token_ids for row in rows], self.pad_id, width),
            "position_ids": _filled([row.positions for row in rows], 0, width),
            "ends": torch.tensor(ends),
            "predicts": predicts_BT,
            "target_rows": torch.tensor(target_rows),
            "targets": torch.tensor(targets),
            "term_targets": torch.tensor([target for answer in scored for target in answer]),
            "term_answers": torch.tensor([number for number, answer in enumerate(scored) for _ in answer]),
            "lengths": torch.tensor([len(answer) for answer in scored]),
            "weights": torch.tensor([pair.weight for pairs in trees for pair in pairs]),
        }


def _filled(rows: Sequence[Sequence[int]], fill: int, width: int) -> torch.Tensor:
    return pad_right([*rows, [fill] * width], fill)[:-1]


def answer_logprobs(forward: Any, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sum of log p over the tokens of each answer, fp32 [2P] or [3P], chosen ones first, with gradient.

    `forward` is what is called: a wrapper of `model` (DDP, DeepSpeed), or `model` itself. The output head sees R rows.
    Raises UnsupportedAttentionError for a model whose attention takes no mask.
    """
    mask = model_masks(model, batch["ends"], batch["position_ids"])
    with head_on(model, batch["predicts"]):
        logits_1RV = forward(
            input_ids=batch["input_ids"], attention_mask=mask, position_ids=batch["position_ids"], use_cache=False
        ).logits
    logprobs_E = chosen_logprobs(logits_1RV[0], batch["target_rows"], batch["targets"])
    sums = torch.zeros(len(batch["lengths"]), dtype=logprobs_E.dtype, device=logprobs_E.device)
    return sums.index_add(0, batch["term_answers"], logprobs_E[batch["term_targets"]])


def tree_simpo(model: Any, trees: Sequence[Sequence[PairRow]], *, beta: float, gamma: float) -> PairLosses:
    """SimPO's loss of every pair, [P], in the order of the trees; equal to that of two rows per pair.

    `trees`: B lists of pairs that share a beginning, the longer the better; each is a row, the rows are one forward
    pass. Costs Σ distinct tokens per tree instead of Σ 2·context + chosen + rejected per pair.
    """
    batch = {name: value.to(model.device) for name, value in TreeCollator()(trees).items()}
    pairs = len(batch["weights"])
    chosen_P, rejected_P = answer_logprobs(model, model, batch).split(pairs)[:2]
    chosen_len_P, rejected_len_P = batch["lengths"].split(pairs)[:2]
    return simpo_loss(chosen_P, chosen_len_P, rejected_P, rejected_len_P, beta=beta, gamma=gamma)
