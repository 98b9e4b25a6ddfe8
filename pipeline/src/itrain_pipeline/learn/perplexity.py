"""Perplexity of ground-truth answers under teacher forcing (method document, section 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from itrain_pipeline.learn.collate import length_mask, pad_right
from itrain_pipeline.learn.logprobs import chunked_logprobs
from itrain_pipeline.records import Example, ScoredExample

MOST_LOGITS: Final = 2**26
"""Logits that exist at once; 256 MiB in fp32, the log-softmax as much again, whatever batch and vocabulary are."""
CPU_BATCH_TOKENS: Final = 1024
"""A CPU gains nothing from larger batches, and loses its caches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredBatch:
    """What one forward pass gave: finite rows, and the ids of those whose perplexity is no finite number."""

    rows: tuple[ScoredExample, ...]
    not_finite: tuple[str, ...]


def row_length(example: Example) -> int:
    return len(example.prompt_ids) + len(example.answer_ids)


def plan_token_batches(examples: Sequence[Example], batch_tokens: int) -> list[list[Example]]:
    """Rows sorted by length (ties by id), cut where rows × longest row would exceed `batch_tokens`.

    Every row is in exactly one batch; a row longer than the budget is a batch of its own.
    """
    batches: list[list[Example]] = []
    for example in sorted(examples, key=lambda e: (row_length(e), e.id)):
        if batches and (len(batches[-1]) + 1) * row_length(example) <= batch_tokens:
            batches[-1].append(example)
        else:
            batches.append([example])
    return batches


def batch_budget(batch_tokens: int, device: str) -> int:
    """Tokens of one forward pass on a device ("cpu" or "cuda") where the user allows `batch_tokens`."""
    return min(batch_tokens, CPU_BATCH_TOKENS) if device == "cpu" else batch_tokens


def head_rows(vocabulary: int) -> int:
    """Answer tokens that go through the output head together."""
    return max(1, MOST_LOGITS // vocabulary)


def score_batch(model: Any, examples: Sequence[Example], *, rows: int | None = None) -> ScoredBatch:
    """exp(mean NLL) over the tokens of each answer, with their logprobs; one forward pass.

    Rows need at least one prompt and one answer token. Order is that of `examples`. `rows` answer tokens go through the
    output head at a time, by default as many as `MOST_LOGITS` allows.
    """
    ids = [(*e.prompt_ids, *e.answer_ids) for e in examples]
    mask_BT = length_mask(ids)
    starts_B = torch.tensor([len(e.prompt_ids) for e in examples])
    scored_BT = mask_BT.bool() & (torch.arange(mask_BT.shape[1])[None, :] >= starts_B[:, None])
    device = model.device
    logprobs_R = chunked_logprobs(
        model,
        pad_right(ids, 0).to(device),
        scored_BT.to(device),
        rows=rows or head_rows(model.get_output_embeddings().weight.shape[0]),
    ).cpu()
    found: list[ScoredExample] = []
    not_finite: list[str] = []
    for example, logprobs in zip(examples, logprobs_R.split([len(e.answer_ids) for e in examples]), strict=True):
        values = logprobs.tolist()
        perplexity = to_perplexity(values)
        if not math.isfinite(perplexity) or not all(map(math.isfinite, values)):
            not_finite.append(example.id)
            continue
        found.append(
            ScoredExample(
                id=example.id,
                perplexity=perplexity,
                tokens=len(values),
                has_call=example.has_call,
                logprobs=tuple(values),
            )
        )
    return ScoredBatch(rows=tuple(found), not_finite=tuple(not_finite))


def to_perplexity(logprobs: Sequence[float]) -> float:
    """exp of the mean negative log-likelihood; infinite where it exceeds what a float holds."""
    try:
        return math.exp(-math.fsum(logprobs) / len(logprobs))
    except OverflowError:
        return math.inf
    except ValueError:  # fsum of inf and -inf
        return math.nan
