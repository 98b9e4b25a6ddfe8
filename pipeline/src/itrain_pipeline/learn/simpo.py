"""SimPO on step pairs (arXiv 2405.14734, equation 6; method document, section 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

PAIRS, ANSWER = "pairs", "answer_logprob"
"""Of what is watched: whether a row has steps, and the mean logprob of its right answer's tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimpoSettings:
    """β and γ of SimPO. `nll_weight` weighs the mean NLL of the chosen response's tokens, `answer_nll_weight` the whole
    right answer's NLL over `answer_tokens` (arXiv 2404.19733, equation 2, has such a term for chosen answers).

    `answer_tokens` is the mean length of a training's right answers: long ones weigh more than short ones, as in SFT.
    """

    beta: float
    gamma: float
    nll_weight: float = 0.0
    answer_nll_weight: float = 0.0
    answer_tokens: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLosses:
    """Per pair [P], fp32: the loss, and β times the mean logprob of either response (the implicit rewards)."""

    losses: torch.Tensor
    chosen_rewards: torch.Tensor
    rejected_rewards: torch.Tensor


def simpo_loss(
    chosen_logps_sum: torch.Tensor,
    chosen_len: torch.Tensor,
    rejected_logps_sum: torch.Tensor,
    rejected_len: torch.Tensor,
    *,
    beta: float,
    gamma: float,
) -> PairLosses:
    """−log σ(β·mean logp(chosen) − β·mean logp(rejected) − γ), each mean over that response's own tokens.

    Sums and lengths are [P], over scored tokens only; γ is the margin itself, not γ/β. Raises ValueError for an empty
    response, whose mean would be 0/0.
    """
    if bool((chosen_len <= 0).any()) or bool((rejected_len <= 0).any()):
        raise ValueError("a response without tokens has no mean logprob")
    chosen_P = beta * chosen_logps_sum.float() / chosen_len
    rejected_P = beta * rejected_logps_sum.float() / rejected_len
    return PairLosses(
        losses=-logsigmoid(chosen_P - rejected_P - gamma),
        chosen_rewards=chosen_P,
        rejected_rewards=rejected_P,
    )


def watched_losses(
    sums: torch.Tensor, lengths: torch.Tensor, pairs: int, settings: SimpoSettings
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss of each of P `pairs` [P], NLL terms included, and what is watched: margin, accuracy, logprobs.

    Sums of logprobs and lengths are [2P], those of the chosen responses first, or [3P], those of right answers last. A
    pair without steps (lengths 0) has the answer's term alone; `pairs` is 1 for the others, and what is watched of
    steps is 0 where there are none.
    """
    chosen_P, rejected_P, *truth_P = sums.split(pairs)
    chosen_len_P, rejected_len_P, *truth_len_P = lengths.split(pairs)
    has_steps_P = (chosen_len_P > 0).float()
    chosen_len_P, rejected_len_P = chosen_len_P.clamp_min(1), rejected_len_P.clamp_min(1)
    found = simpo_loss(chosen_P, chosen_len_P, rejected_P, rejected_len_P, beta=settings.beta, gamma=settings.gamma)
    chosen_mean_P = chosen_P / chosen_len_P
    loss_P = found.losses * has_steps_P
    if settings.nll_weight:
        loss_P = loss_P - settings.nll_weight * chosen_mean_P
    truth_mean_P = truth_P[0] / truth_len_P[0] if truth_P else torch.zeros_like(loss_P)
    if settings.answer_nll_weight and truth_P:
        loss_P = loss_P - settings.answer_nll_weight * truth_P[0] / settings.answer_tokens
    margins_P = found.chosen_rewards - found.rejected_rewards
    return loss_P, {
        "reward_margin": margins_P,
        "reward_accuracy": (margins_P > 0).float(),
        PAIRS: has_steps_P,
        "chosen_logprob": chosen_mean_P,
        "rejected_logprob": rejected_P / rejected_len_P,
        # By the settings, not by the batch: one that only fills up has no answers, and all processes tell the same.
        **({ANSWER: truth_mean_P} if settings.answer_nll_weight else {}),
    }
