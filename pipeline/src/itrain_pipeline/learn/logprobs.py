"""Logprobs of chosen tokens under teacher forcing, the output head applied to the scored rows only.

The model runs its own forward, with a hook before its output head that keeps the hidden states of scored positions.
So a model's own treatment of logits (scaling, soft capping) stays, adapters and distributed wrappers see one ordinary
forward, and logits take [scored, vocabulary] instead of [batch, length, vocabulary] (about 4 % of the rows).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def head_on(model: Any, kept_BT: torch.Tensor) -> Iterator[None]:
    """Let the output head see only the positions kept, as [1, R, H] in row-major order."""

    def keep(module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden_BTH = args[0]
        return (hidden_BTH[kept_BT.to(hidden_BTH.device)][None], *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def scored_logprobs(
    forward: Any, model: Any, input_ids_BT: torch.Tensor, attention_mask_BT: torch.Tensor, scored_BT: torch.Tensor
) -> torch.Tensor:
    """log p(token | tokens before it) of every scored token, fp32 [R], rows in order.

    `forward` is what is called (a wrapper of `model`, or `model` itself). `scored_BT` marks tokens, not the
    positions that predict them; the first token of a row has no prediction and cannot be scored.
    """
    if bool(scored_BT[:, 0].any()):
        raise ValueError("the first token of a row is scored, but nothing predicts it")
    predicts_BT = torch.zeros_like(scored_BT)
    predicts_BT[:, :-1] = scored_BT[:, 1:]
    with head_on(model, predicts_BT):
        logits_1RV = forward(input_ids=input_ids_BT, attention_mask=attention_mask_BT, use_cache=False).logits
    targets_R = input_ids_BT[scored_BT]
    logprobs_RV = logits_1RV[0].float().log_softmax(-1)
    return logprobs_RV.gather(-1, targets_R[:, None])[:, 0]


def row_sums(values_R: torch.Tensor, scored_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of the scored values of each row and their count, both [B]; the inverse of row-major gathering."""
    counts_B = scored_BT.sum(-1)
    rows_R = torch.repeat_interleave(torch.arange(len(counts_B), device=values_R.device), counts_B)
    sums_B = torch.zeros(len(counts_B), dtype=values_R.dtype, device=values_R.device)
    return sums_B.index_add(0, rows_R, values_R), counts_B
