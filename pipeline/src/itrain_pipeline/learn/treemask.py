"""The block mask of tree rows, in the shape that each attention of transformers takes ready-made.

A model's own mask functions (`masking_utils.create_causal_mask`) hand a 4D mask on as it is; models whose layers
differ take a dict of masks by layer type. A sliding window is counted in positions: along a path they are distances.
"""

from __future__ import annotations

from typing import Any

import torch

FULL, SLIDING = "full_attention", "sliding_attention"
FLEX_BLOCK = 128
"""Rows of FlexAttention are padded to multiples of this: one compiled kernel serves many lengths."""


class UnsupportedAttentionError(ValueError):
    """A model whose attention takes no mask of its caller's."""


def tree_mask(ends_BT: torch.Tensor, positions_BT: torch.Tensor, window: int | None = None) -> torch.Tensor:
    """True where a query (third axis) sees a key (last axis), bool [B, 1, T, T]: its ancestors and itself.

    Padding has `ends` of its own place + 1: it sees itself and is seen by nobody else, so no row of the mask is empty.
    """
    places_T = torch.arange(ends_BT.shape[1], device=ends_BT.device)
    sees_BTT = (places_T[None, None, :] <= places_T[None, :, None]) & (places_T[None, :, None] < ends_BT[:, None, :])
    if window is not None:
        sees_BTT &= positions_BT[:, :, None] - positions_BT[:, None, :] < window
    return sees_BTT[:, None]


def model_masks(model: Any, ends_BT: torch.Tensor, positions_BT: torch.Tensor) -> Any:
    """What to give a model as `attention_mask`: one mask, or a dict by layer type where its layers differ.

    Raises UnsupportedAttentionError for other layers than attention, full or with a sliding window, and for attention
    implementations without a mask.
    """
    config = model.config.get_text_config()
    windows = layer_windows(config)
    implementation = config._attn_implementation
    masks = {
        kind: _in_shape_of(implementation, ends_BT, positions_BT, window, model.dtype)
        for kind, window in windows.items()
    }
    return masks if len(masks) > 1 else next(iter(masks.values()))


def layer_windows(config: Any) -> dict[str, int | None]:
    """The window of each type of layer that a model has, None without."""
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or [FULL if window is None else SLIDING])
    if other := sorted(kinds - {FULL, SLIDING}):
        raise UnsupportedAttentionError(f"layers of type {', '.join(other)}")
    if SLIDING in kinds and not window:
        raise UnsupportedAttentionError("sliding layers without a window")
    return {kind: window if kind == SLIDING else None for kind in sorted(kinds)}


def _in_shape_of(
    implementation: str, ends_BT: torch.Tensor, positions_BT: torch.Tensor, window: int | None, dtype: torch.dtype
) -> Any:
    if implementation == "flex_attention":
        return flex_mask(ends_BT, positions_BT, window)
    sees_B1TT = tree_mask(ends_BT, positions_BT, window)
    if implementation == "sdpa":
        return sees_B1TT
    if implementation == "eager":
        hidden = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=ends_BT.device)
        return torch.where(sees_B1TT, torch.zeros_like(hidden), hidden)
    raise UnsupportedAttentionError(f"attention implementation {implementation}")


def flex_mask(ends_BT: torch.Tensor, positions_BT: torch.Tensor, window: int | None = None) -> Any:
    """The same mask as FlexAttention's BlockMask, which skips blocks that nobody sees: whole branches."""
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(batch: Any, head: Any, query: Any, key: Any) -> Any:
        found = (key <= query) & (query < ends_BT[batch, key])
        if window is not None:
            found = found & (positions_BT[batch, query] - positions_BT[batch, key] < window)
        return found

    rows, length = ends_BT.shape
    return create_block_mask(sees, rows, None, length, length, device=str(ends_BT.device), BLOCK_SIZE=FLEX_BLOCK)
