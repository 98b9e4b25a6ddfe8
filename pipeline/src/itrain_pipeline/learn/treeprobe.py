"""Does a model keep the branches of a tree row apart, and give it the positions it asks for? Tried, not looked up.

A name on a list says nothing about remote code or next year's architectures, and a mask that is ignored raises
nothing. So the first tree goes through the model before training, without gradient, with two questions: are the hidden
states those of plain rows, and does a token that is changed in one branch leave the others as they are?
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Final

import torch

from itrain_pipeline.learn.collate import PairCollator, PairRow
from itrain_pipeline.learn.passes import RowForm
from itrain_pipeline.learn.treebatch import TreeCollator, answer_logprobs
from itrain_pipeline.learn.treemask import FLEX_BLOCK, model_masks

log = logging.getLogger(__name__)

PROBE_PAIRS: Final = 3
TOLERANCE: Final = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
"""Accepted |difference| / |hidden state| against plain rows: what rounding makes of other shapes, by dtype."""
LEAK: Final = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}
"""The same for a branch of which nothing was changed: the same shapes, so next to nothing."""
TRIPS: Final = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError)
"""How a model's code may trip over a mask or an argument that it does not know."""
FLEX_CAPABILITY: Final = (8, 0)
FLEX_LENGTH: Final = 2048
"""Tokens of a row up to which SDPA with a dense mask is as fast and has nothing to compile (docs/performance.md)."""


def usable_form(model: Any, pairs: Sequence[PairRow], trees: Sequence[int], wanted: RowForm) -> RowForm:
    """`wanted`, or `separate` with one warning where the model's attention cannot take the mask.

    Where rows are long, the GPU has FlexAttention and the model takes it, the model is left with it; it stays with SDPA
    otherwise.
    """
    if wanted == "separate" or not pairs:
        return wanted
    probe = first_tree(pairs, trees)
    if longest_pair(pairs) > FLEX_LENGTH and _has_flex(model):
        base = _base(model)
        base.set_attn_implementation("flex_attention")
        if (reason := why_not(model, probe, backward=True)) is None:
            return wanted
        base.set_attn_implementation("sdpa")
        log.info("tree rows use SDPA: FlexAttention does not serve here (%s)", reason)
    reason = why_not(model, probe)
    if _any_rank(reason is not None, model.device):
        if os.environ.get("RANK", "0") == "0":
            log.warning(
                "rows: %s falls back to separate, two rows per pair: %s", wanted, reason or "another process cannot"
            )
        return "separate"
    return wanted


def uses_flex(model: Any) -> bool:
    return bool(model.config.get_text_config()._attn_implementation == "flex_attention")


def longest_pair(pairs: Sequence[PairRow]) -> int:
    """Tokens of the longest row of one pair; a row of its tree is longer."""
    return max(
        max(
            len(pair.context_ids) + len(pair.chosen_ids) + len(pair.rejected_ids),
            len(pair.prompt_ids) + len(pair.truth_ids),
        )
        for pair in pairs
    )


def first_tree(pairs: Sequence[PairRow], trees: Sequence[int]) -> list[PairRow]:
    """A few pairs of the first tree that has several, else of the first."""
    several = (tree for tree, after in pairwise(trees) if tree == after)
    wanted = next(several, trees[0])
    return [pair for pair, tree in zip(pairs, trees, strict=True) if tree == wanted][:PROBE_PAIRS]


def why_not(model: Any, pairs: Sequence[PairRow], *, backward: bool = False) -> str | None:
    """Why a row of `pairs` is not what they are as plain rows; None when it is. `backward` also tries a gradient."""
    was_training = model.training
    model.eval()
    try:
        reason = _compare(model, pairs)
        if reason is None and backward:
            batch = _on(model, TreeCollator(multiple=FLEX_BLOCK)([pairs]))
            answer_logprobs(model, model, batch).sum().backward()
            model.zero_grad()
        return reason
    except torch.OutOfMemoryError:
        raise
    except TRIPS as error:
        return f"{type(error).__name__}: {error}"
    finally:
        model.train(was_training)


@torch.no_grad()
def _compare(model: Any, pairs: Sequence[PairRow]) -> str | None:
    batch = _on(model, TreeCollator(multiple=FLEX_BLOCK if uses_flex(model) else 1)([pairs]))
    length = int((batch["ends"] > 0).sum())
    everywhere = torch.ones_like(batch["predicts"])
    row_TH = _tree_hidden(model, batch, everywhere)

    places_R = batch["predicts"][0].nonzero()[:, 0]
    found_MH = row_TH[places_R[batch["target_rows"][batch["term_targets"]]]]
    plain = _on(model, PairCollator()(pairs))
    predicts_BT = torch.zeros_like(plain["scored"])
    predicts_BT[:, :-1] = plain["scored"][:, 1:]
    with _captured(model, predicts_BT) as captured:
        model(input_ids=plain["input_ids"], attention_mask=plain["attention_mask"], use_cache=False)
    if (difference := _relative(found_MH, captured[0])) > TOLERANCE[model.dtype]:
        return f"hidden states of a tree row differ from those of plain rows by {difference:.1e}"

    ends_T = batch["ends"][0]
    left = (ends_T < length).nonzero()[:, 0]
    if len(left):
        place = int(left[0])
        changed = {**batch, "input_ids": batch["input_ids"].clone()}
        changed["input_ids"][0, place] = (
            changed["input_ids"][0, place] + 1
        ) % model.config.get_text_config().vocab_size
        others = slice(int(ends_T[place]), length)
        leaked = _relative(_tree_hidden(model, changed, everywhere)[others], row_TH[others])
        if leaked > LEAK[model.dtype]:
            return f"a token of one branch changes another by {leaked:.1e}: the mask is not obeyed"
    return None


def _tree_hidden(model: Any, batch: dict[str, torch.Tensor], kept_BT: torch.Tensor) -> torch.Tensor:
    mask = model_masks(model, batch["ends"], batch["position_ids"])
    with _captured(model, kept_BT) as captured:
        model(input_ids=batch["input_ids"], attention_mask=mask, position_ids=batch["position_ids"], use_cache=False)
    return captured[0]


@contextmanager
def _captured(model: Any, kept_BT: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """What the output head would be given at the places kept, fp32 [R, H]; it is run on one place only."""
    found: list[torch.Tensor] = []

    def keep(module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden_BTH = args[0]
        found.append(hidden_BTH[kept_BT].float())
        return (hidden_BTH[:1, :1], *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


def _relative(found_RH: torch.Tensor, expected_RH: torch.Tensor) -> float:
    """The largest relative difference of a row; NaN counts as infinite."""
    differences_R = (found_RH - expected_RH).norm(dim=-1) / expected_RH.norm(dim=-1).clamp_min(1e-12)
    return float(differences_R.nan_to_num(nan=torch.inf).max())


def _on(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.to(model.device) for name, value in batch.items()}


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _has_flex(model: Any) -> bool:
    """FlexAttention is a Triton kernel, tuned for Ampere and later; on Volta and CPU the mask goes to SDPA."""
    return (
        model.device.type == "cuda"
        and torch.cuda.get_device_capability(model.device) >= FLEX_CAPABILITY
        and bool(getattr(_base(model), "_supports_flex_attn", False))
    )


def _any_rank(here: bool, device: torch.device) -> bool:
    """Whether it is so in some process; all of them have to take the same form."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return here
    on = device if torch.distributed.get_backend() == "nccl" else "cpu"
    flag = torch.tensor([float(here)], device=on)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag.item())
