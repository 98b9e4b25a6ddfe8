"""Copying heads written into a Llama's initial weights.

Calls copy names and values out of the prompt. A transformer does that with two heads in sequence (Olsson et al., 2022,
"In-context learning and induction heads"): one in layer 0 that looks at the previous token and notes it, one in
layer 1 that looks for the place whose previous token was the current one and copies what stands there. Training finds
them after millions of tokens; written in (as in Trockman and Kolter, 2023, "Mimetic initialization"), they are there
at step 0 and training only refines them.

Layout of the residual stream: dimension 0 is the same for every token; the next ones hold the tokens' random
embeddings; the last `head_dim` ones are left free for the note of the previous token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

_EMBEDDING_STD: Final = 0.09
_CONSTANT: Final = 0.5
"""The shared component of every embedding."""
_PREVIOUS_LOGITS: Final = (16.0, 12.0, 8.0, 8.0, 6.0)
"""Attention logits of the previous-token head by rotary frequency, the highest first.

The high frequencies tell neighbours apart, the low ones the places far back.
"""
_MATCH_LOGIT: Final = 14.0
"""Mean attention logit of the copying head at a place that matches."""
_COPY_GAIN: Final = 8.0


@torch.no_grad()
def write_copying_heads(model: LlamaForCausalLM, generator: torch.Generator) -> None:
    """Overwrite embeddings, head 0 of layer 0, and all heads but the last of layer 1."""
    config = model.config
    width, head = config.hidden_size, config.hidden_size // config.num_attention_heads
    free = slice(width - head, width)
    embedding_VD = model.model.embed_tokens.weight
    embedding_VD.normal_(0.0, _EMBEDDING_STD, generator=generator)
    embedding_VD[:, 0] = _CONSTANT
    embedding_VD[:, free] = 0.0
    norm = (_CONSTANT**2 + (width - head - 1) * _EMBEDDING_STD**2) ** 0.5
    scale = width**0.5 / norm  # of the RMS norm before the attention
    note_HD = _projection(head, width - head - 1, width, generator)

    first = model.model.layers[0].self_attn
    rows = slice(0, head)
    for projection in (first.q_proj.weight, first.k_proj.weight):
        projection[rows] = 0.0
    for pair, logit in enumerate(_PREVIOUS_LOGITS):
        angle = torch.tensor(float(config.rope_parameters["rope_theta"]) ** (-2 * pair / head))
        size = (logit * head**0.5) ** 0.5 / (scale * _CONSTANT)
        # Rotary embedding turns q by i·angle and k by j·angle: q ahead by -angle peaks at i - j = 1.
        first.q_proj.weight[pair, 0] = size * torch.cos(angle)
        first.q_proj.weight[pair + head // 2, 0] = -size * torch.sin(angle)
        first.k_proj.weight[pair, 0] = size
    first.v_proj.weight[rows] = note_HD
    first.o_proj.weight[:, rows] = 0.0
    first.o_proj.weight[free, rows] = torch.eye(head) / scale

    second = model.model.layers[1].self_attn
    slow = _slow_dimensions(head, float(config.rope_parameters["rope_theta"]))
    size = (_MATCH_LOGIT * head**0.5 / len(slow)) ** 0.5 / (scale * _EMBEDDING_STD)
    for index in range(config.num_attention_heads - 1):
        rows = slice(index * head, (index + 1) * head)
        turn_HH = torch.linalg.qr(torch.randn(head, head, generator=generator))[0]
        mixed_HD = turn_HH @ note_HD
        second.q_proj.weight[rows] = 0.0
        second.k_proj.weight[rows] = 0.0
        for dimension in slow:
            second.q_proj.weight[index * head + dimension] = size * mixed_HD[dimension]
            second.k_proj.weight[index * head + dimension, free] = size * turn_HH[dimension]
        copy_HD = _projection(head, width - head - 1, width, generator)
        second.v_proj.weight[rows] = copy_HD
        second.o_proj.weight[:, rows] = copy_HD.T * (_COPY_GAIN / scale)


def _projection(rows: int, columns: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """`rows` orthonormal directions among the embedding's dimensions, with zeros at the others."""
    directions = torch.linalg.qr(torch.randn(columns, rows, generator=generator))[0].T
    padded = torch.zeros(rows, width)
    padded[:, 1 : columns + 1] = directions
    return padded


def _slow_dimensions(head: int, theta: float) -> list[int]:
    """Head dimensions that turn by less than a radian over 200 tokens, so that a match counts at any distance."""
    pairs = [pair for pair in range(head // 2) if theta ** (-2 * pair / head) * 200 < 1]
    return [*pairs, *(pair + head // 2 for pair in pairs)]
