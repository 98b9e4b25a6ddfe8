"""Profiles that nobody measured: from a device's data sheet, a model's size and stated shares of the peak. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from itrain_contract.measurements import DecodeRate, EngineProfile, Rates

PREFILL_SHARE, TRAIN_SHARE, BANDWIDTH_SHARE, MEMORY_SHARE = 0.30, 0.25, 0.60, 0.90
"""Of peak arithmetic (prefill and scoring; training), of memory bandwidth (decoding), of memory (weights and keys)."""
FLOP_PER_TRAINED = 6
"""FLOP for each parameter and trained token of LoRA under gradient checkpointing: forward twice, back once."""
DECODE_ROWS = (1, 8, 32, 64, 128, 256, 512)
BLOCK_TOKENS = 16
DISK_BYTES_PER_S = 0.5e9
PROCESS_START_S = 30.0
PREPARE_ROWS_PER_S = 500.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    title: str
    flops: float
    """Dense half precision, a second."""
    bandwidth: float
    """Bytes a second."""
    memory: float
    """Bytes."""
    source: str


DEVICES = {
    "v100": Device(
        title="NVIDIA V100 32 GB",
        flops=112e12,
        bandwidth=900e9,
        memory=32e9,
        source="data sheet of the V100 PCIe: 112 TFLOP/s fp16, 900 GB/s",
    ),
    "a100": Device(
        title="NVIDIA A100 80 GB",
        flops=312e12,
        bandwidth=2039e9,
        memory=80e9,
        source="data sheet of the A100 SXM: 312 TFLOP/s bf16, 2,039 GB/s",
    ),
    "h100": Device(
        title="NVIDIA H100 80 GB",
        flops=989e12,
        bandwidth=3350e9,
        memory=80e9,
        source="data sheet of the H100 SXM: 989 TFLOP/s bf16 dense, 3,350 GB/s",
    ),
    "h200": Device(
        title="NVIDIA H200 141 GB",
        flops=989e12,
        bandwidth=4800e9,
        memory=141e9,
        source="data sheet of the H200 SXM: 989 TFLOP/s bf16 dense, 4,800 GB/s",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What decides a model's speed."""

    name: str
    parameters: float
    kv_bytes: float
    """Keys and values of one token, in half precision."""
    known: bool
    """Whether the keys' size is the model's own, and not that of its size."""


KNOWN_SHAPES = {
    "llama-3.1-8b": (8.03e9, 131_072.0),
    "llama-3.2-3b": (3.21e9, 114_688.0),
    "llama-3.2-1b": (1.24e9, 32_768.0),
    "qwen2.5-7b": (7.62e9, 57_344.0),
    "qwen2.5-1.5b": (1.54e9, 28_672.0),
}
"""Parameters and bytes of a token's keys and values (2 · layers · key heads · head size · 2), by configuration."""


def model_shape(uri: str, parameters: float | None = None) -> ModelShape | None:
    """By name, else by the size in the name (`…-8B…`) or the one given; None where nothing tells the size."""
    name = uri.rstrip("/").rpartition("/")[2]
    if parameters is None:
        for known, (size, kv_bytes) in KNOWN_SHAPES.items():
            if known in name.lower():
                return ModelShape(name=name, parameters=size, kv_bytes=kv_bytes, known=True)
        found = re.search(r"(?<![\d.])(\d+(?:\.\d+)?)[bB](?![a-zA-Z])", name)
        if found is None:
            return None
        parameters = float(found[1]) * 1e9
    return ModelShape(name=name, parameters=parameters, kv_bytes=16.3e-6 * parameters, known=False)


def estimated_profile(device: str, shape: ModelShape, *, context: float) -> EngineProfile:
    """`context` is the mean length of a sequence while it is decoded: its keys are read at every step.

    Raises ValueError when the model does not fit the device.
    """
    card = DEVICES[device]
    weights = 2 * shape.parameters
    room = MEMORY_SHARE * card.memory - weights
    max_rows = int(room / (shape.kv_bytes * context))
    if max_rows < 1:
        raise ValueError(f"{shape.name}: {weights / 1e9:.0f} GB of weights leave no room on a {card.title}")
    prefill = PREFILL_SHARE * card.flops / (2 * shape.parameters)
    decode = tuple(
        DecodeRate(rows=rows, tokens_per_s=_decode(card, weights, shape.kv_bytes * context, rows, prefill))
        for rows in DECODE_ROWS
    )
    rates = Rates(
        prefill_tokens_per_s=prefill,
        decode=decode,
        score_tokens_per_s=prefill,
        train_tokens_per_s=TRAIN_SHARE * card.flops / (FLOP_PER_TRAINED * shape.parameters),
    )
    return EngineProfile(
        name=device,
        model=shape.name,
        device=card.title,
        precision="16 bit",
        source="estimated",
        how=f"{card.source}; assumed: {PREFILL_SHARE:.0%} of it in prefill and scoring, {TRAIN_SHARE:.0%} in training, "
        f"{BANDWIDTH_SHARE:.0%} of the bandwidth in decoding",
        rates=(rates,),
        start_s=PROCESS_START_S + weights / DISK_BYTES_PER_S,
        prefix_block_tokens=BLOCK_TOKENS,
        prepare_rows_per_s=PREPARE_ROWS_PER_S,
        export_s=3 * weights / DISK_BYTES_PER_S,
        max_rows=max_rows,
    )


def _decode(card: Device, weights: float, row_bytes: float, rows: int, prefill: float) -> float:
    """Bound by the bytes that a step reads, and never faster than prefill."""
    step_s = (weights + rows * row_bytes) / (BANDWIDTH_SHARE * card.bandwidth)
    return min(rows / step_s, prefill)
