"""From logits to tokens: one uniform number per row decides, so a row never depends on who else is in the batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def sample_tokens(
    logits_BV: torch.Tensor, *, temperature: list[float], top_p: list[float], uniform: list[float]
) -> tuple[list[int], list[float]]:
    """Token ids and their raw logprobs (natural log, before temperature and top-p).

    Temperature 0 takes the most probable token. Otherwise the inverse of the cumulative distribution at `uniform`,
    in token order. Rows with a logit that is not finite come back as id -1.
    """
    import torch

    logits_BV = logits_BV.float()
    log_probs_BV = torch.log_softmax(logits_BV, dim=-1)
    greedy_B = logits_BV.argmax(dim=-1)
    if any(temperature):
        scale_B = torch.tensor([t or 1.0 for t in temperature], device=logits_BV.device)
        probs_BV = torch.softmax(logits_BV / scale_B[:, None], dim=-1).double()
        if min(top_p) < 1.0:
            probs_BV = _nucleus(probs_BV, torch.tensor(top_p, device=probs_BV.device, dtype=probs_BV.dtype))
        cumulative_BV = probs_BV.cumsum(dim=-1)
        uniform_B1 = torch.tensor(uniform, device=probs_BV.device, dtype=probs_BV.dtype)[:, None]
        target_B1 = uniform_B1 * cumulative_BV[:, -1:]
        drawn_B = torch.searchsorted(cumulative_BV, target_B1, right=True)[:, 0].clamp(max=logits_BV.shape[-1] - 1)
        sampled_B = torch.tensor([bool(t) for t in temperature], device=logits_BV.device)
        ids_B = torch.where(sampled_B, drawn_B, greedy_B)
    else:
        ids_B = greedy_B
    chosen_B = log_probs_BV.gather(1, ids_B[:, None])[:, 0]
    ids_B = torch.where(torch.isfinite(chosen_B), ids_B, -1)
    return ids_B.tolist(), chosen_B.tolist()


def _nucleus(probs_BV: torch.Tensor, top_p_B: torch.Tensor) -> torch.Tensor:
    """Zero all but the smallest set of most probable tokens whose mass reaches top-p (always at least one)."""
    import torch

    ordered_BV, index_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
    before_BV = ordered_BV.cumsum(dim=-1) - ordered_BV
    ordered_BV = ordered_BV.masked_fill(before_BV >= top_p_B[:, None], 0.0)
    return torch.zeros_like(probs_BV).scatter(1, index_BV, ordered_BV)
