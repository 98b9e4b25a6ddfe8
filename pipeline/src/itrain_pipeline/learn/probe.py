"""Greedy answers of a model that is being trained, without leaving a trace in its training.

The model stays where it is, with its wrappers' casts and shards; only modes and random numbers have to be put back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from itrain_pipeline.data.rendering import Renderer
from itrain_pipeline.learn.guards import Probe, valid_share
from itrain_pipeline.learn.logprobs import head_on


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Eval mode without gradients; afterwards every module's mode and torch's random numbers are what they were."""
    modes = [(module, module.training) for module in model.modules()]
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


def greedy_answers(
    model: Any, prompts: Sequence[Sequence[int]], *, stop_id: int, max_new_tokens: int, lockstep: bool = False
) -> list[tuple[int, ...]]:
    """The most probable continuation of each prompt up to and without `stop_id`, all of them in one batch.

    Prompts are padded on the left and masked by length. `lockstep` computes all tokens even where every answer has
    ended: processes that share a model's shards must all take part in the same forward passes.
    """
    width = max(map(len, prompts))
    device = model.device
    ids_BT = torch.tensor([[stop_id] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask_BT = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
    ended_B = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    cache: Any = None
    sampled: list[torch.Tensor] = []
    for _ in range(max_new_tokens):
        last_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
        last_BT[:, -1] = True
        with head_on(model, last_BT):
            found = model(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                position_ids=positions_BT,
                past_key_values=cache,
                use_cache=True,
            )
        next_B = found.logits[0].argmax(-1).masked_fill(ended_B, stop_id)
        sampled.append(next_B)
        ended_B = ended_B | (next_B == stop_id)
        if bool(ended_B.all()) and not lockstep:
            break
        cache = found.past_key_values
        ids_BT, positions_BT = next_B[:, None], positions_BT[:, -1:] + 1
        mask_BT = torch.cat([mask_BT, torch.ones_like(next_B)[:, None]], dim=-1)
    rows = torch.stack(sampled, dim=-1).tolist()
    return [tuple(row[: row.index(stop_id)] if stop_id in row else row) for row in rows]


def probe_validity(model: Any, renderer: Renderer, probe: Probe, *, lockstep: bool = False) -> float:
    """Share of the probe's answers that are readable calls."""
    with undisturbed(model):
        answers = greedy_answers(
            model,
            probe.prompts,
            stop_id=renderer.end_of_turn_id,
            max_new_tokens=probe.max_new_tokens,
            lockstep=lockstep,
        )
    return valid_share([renderer.answer_text(ids) for ids in answers], probe.call_format)
