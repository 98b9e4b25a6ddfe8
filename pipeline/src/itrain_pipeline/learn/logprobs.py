"""Logprobs of chosen tokens under teacher forcing, the output head applied to the scored rows only.

The model runs its own forward, with a hook before its output head that keeps the hidden states of scored positions.
So a model's own treatment of logits (scaling, soft capping) stays, adapters and distributed wrappers see one ordinary
forward, and logits take [scored, vocabulary] instead of [batch, length, vocabulary] (about 4 % of the rows). Where no
gradient is wanted, the head sees a chunk of them at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def head_on(model: Any, kept_BT: torch.Tensor) -> Iterator[None]:
    """Let the output head see only the positions kept, as [1, R, H] in row-major order."""
    with head_given(model, lambda hidden_BTH: hidden_BTH[kept_BT.to(hidden_BTH.device)][None]):
        yield


@contextmanager
def head_given(model: Any, choose: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Let the output head see what `choose` makes of its hidden states."""

    def replace(module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (choose(args[0]), *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(replace)
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
    with head_on(model, predictors(scored_BT)):
        logits_1RV = forward(input_ids=input_ids_BT, attention_mask=attention_mask_BT, use_cache=False).logits
    return token_logprobs(logits_1RV[0], input_ids_BT[scored_BT])


@torch.inference_mode()
def chunked_logprobs(model: Any, input_ids_BT: torch.Tensor, scored_BT: torch.Tensor, *, rows: int) -> torch.Tensor:
    """The same without gradients, [R]; logits never take more than [rows, vocabulary].

    Rows must be padded on the right: there causal attention needs no mask, and without one it need not compute what
    lies ahead. The first chunk goes through the head in the batch's own forward, each further one in the place of the
    hidden state of a forward of one token, so that every chunk has all of the model's treatment of logits.
    """
    predicts_BT = predictors(scored_BT)
    kept: list[torch.Tensor] = []

    def keep(hidden_BTH: torch.Tensor) -> torch.Tensor:
        kept.extend(hidden_BTH[predicts_BT.to(hidden_BTH.device)].split(rows))
        return kept[0][None]

    with head_given(model, keep):
        logits_1CV = model(input_ids=input_ids_BT, use_cache=False).logits
    targets = input_ids_BT[scored_BT].split(rows)
    found = [token_logprobs(logits_1CV[0], targets[0])]
    for hidden_CH, targets_C in zip(kept[1:], targets[1:], strict=True):
        del logits_1CV  # before the next chunk's
        with head_given(model, _always(hidden_CH[None])):
            logits_1CV = model(input_ids=input_ids_BT[:1, :1], use_cache=False).logits
        found.append(token_logprobs(logits_1CV[0], targets_C))
    return torch.cat(found)


def _always(hidden_1CH: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda _: hidden_1CH


def predictors(scored_BT: torch.Tensor) -> torch.Tensor:
    """The positions that predict the tokens marked: each the one before. Raises ValueError for a first token."""
    if bool(scored_BT[:, 0].any()):
        raise ValueError("the first token of a row is scored, but nothing predicts it")
    predicts_BT = torch.zeros_like(scored_BT)
    predicts_BT[:, :-1] = scored_BT[:, 1:]
    return predicts_BT


def token_logprobs(logits_RV: torch.Tensor, targets_R: torch.Tensor) -> torch.Tensor:
    """log-softmax in fp32, at the targets: [R]."""
    return logits_RV.float().log_softmax(-1).gather(-1, targets_R.to(logits_RV.device)[:, None])[:, 0]


def row_sums(values_R: torch.Tensor, scored_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of the scored values of each row and their count, both [B]; the inverse of row-major gathering."""
    counts_B = scored_BT.sum(-1)
    rows_R = torch.repeat_interleave(torch.arange(len(counts_B), device=values_R.device), counts_B)
    sums_B = torch.zeros(len(counts_B), dtype=values_R.dtype, device=values_R.device)
    return sums_B.index_add(0, rows_R, values_R), counts_B
