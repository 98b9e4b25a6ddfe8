"""Log-softmax at chosen tokens, in chunks of rows, in fp32 whatever the logits are in.

autograd's log_softmax keeps a second matrix [rows, vocabulary] in fp32, and a third one passes by on the way back; at
a vocabulary of 128k these are what a training step needs most memory for. Here only the logits are kept: forward
reduces each chunk to one number per row, backward makes the softmax again, chunk by chunk.
"""

from __future__ import annotations

from typing import Any

import torch

CHUNK_ROWS = 256


def chosen_logprobs(
    logits_RV: torch.Tensor, rows_E: torch.Tensor, targets_E: torch.Tensor, *, chunk_rows: int = CHUNK_ROWS
) -> torch.Tensor:
    """log softmax(logits[rows[e]])[targets[e]] for every e, fp32 [E]; a row may be named several times."""
    return _ChosenLogprobs.apply(logits_RV, rows_E, targets_E, chunk_rows)


class _ChosenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_RV: torch.Tensor, rows_E: torch.Tensor, targets_E: torch.Tensor, chunk_rows: int
    ) -> torch.Tensor:
        chunks = [chunk.float().logsumexp(-1) for chunk in logits_RV.split(chunk_rows)]
        normaliser_R = torch.cat(chunks)
        ctx.save_for_backward(logits_RV, rows_E, targets_E, normaliser_R)
        ctx.chunk_rows = chunk_rows
        return logits_RV[rows_E, targets_E].float() - normaliser_R[rows_E]

    @staticmethod
    def backward(ctx: Any, grad_E: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        """d logp(t) / d logits = onehot(t) - softmax, summed over the tokens that a row was asked for."""
        logits_RV, rows_E, targets_E, normaliser_R = ctx.saved_tensors
        asked_R = torch.zeros_like(normaliser_R).index_add(0, rows_E, grad_E)
        grad_RV = torch.empty_like(logits_RV)
        parts = zip(*(rows.split(ctx.chunk_rows) for rows in (grad_RV, logits_RV, normaliser_R, asked_R)), strict=True)
        for grad, logits, normaliser, asked in parts:
            grad.copy_((logits.float() - normaliser[:, None]).exp_().mul_(-asked[:, None]))
        grad_RV.index_put_((rows_E, targets_E), grad_E.to(grad_RV.dtype), accumulate=True)
        return grad_RV, None, None, None
