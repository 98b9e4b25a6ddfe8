"""Which number format a device computes in, decided from plain facts (method document, "Precision and hardware")."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

from itrain_contract.names import ENV_PRECISION_DEFAULT
from itrain_pipeline.errors import ConfigError

PrecisionName = Literal["auto", "fp16", "bf16", "fp32"]
ChosenPrecision = Literal["fp16", "bf16", "fp32"]
Quantization = Literal["none", "nf4"]

AMPERE = (8, 0)
"""The first compute capability with bf16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device as far as precision depends on it; `capability` is CUDA's (sm_70 is (7, 0)), None elsewhere."""

    kind: Literal["cpu", "cuda"]
    capability: tuple[int, int] | None = None
    name: str = "CPU"
    preferred: PrecisionName = "auto"
    """What `auto` stands for on GPUs of this node pool; `auto` where the device itself decides."""
    count: int = 1
    """GPUs of this process's node, all alike; of a CPU the threads that torch computes with."""
    memory_bytes: int = 0
    """Of one GPU, or of the machine."""

    @property
    def has_bf16(self) -> bool:
        return self.kind == "cpu" or (self.capability or (0, 0)) >= AMPERE


def choose_precision(requested: PrecisionName, device: Device) -> ChosenPrecision:
    """`auto`: fp32 on CPU; on a GPU what its pool prefers, else fp16 before Ampere and bf16 from Ampere on.

    Raises ConfigError for what the device cannot do.
    fp16 is refused on CPU: its gradients need a loss scaler, which exists for GPUs only.
    """
    if requested == "auto":
        if device.kind == "cpu":
            return "fp32"
        if device.preferred != "auto":
            return choose_precision(device.preferred, device)
        return "bf16" if device.has_bf16 else "fp16"
    if requested == "fp16" and device.kind == "cpu":
        raise ConfigError("precision: got fp16 on a CPU, allowed there are auto, fp32 and bf16")
    if requested == "bf16" and not device.has_bf16:
        major, minor = device.capability or (0, 0)
        raise ConfigError(
            f"precision: got bf16 on {device.name} (sm_{major}{minor}), which has none: allowed are auto, fp16 and fp32"
        )
    return requested


def detect_device(environ: Mapping[str, str] = os.environ) -> Device:
    """The device that this process computes on. Raises ConfigError for a preference that is no precision."""
    import torch

    preferred = environ.get(ENV_PRECISION_DEFAULT) or "auto"
    if preferred not in get_args(PrecisionName):
        allowed = ", ".join(get_args(PrecisionName))
        raise ConfigError(f"{ENV_PRECISION_DEFAULT}: got {preferred!r}, allowed are {allowed}")
    if not torch.cuda.is_available():
        return cpu_device()
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Device(
        kind="cuda",
        capability=(found.major, found.minor),
        name=found.name,
        preferred=cast("PrecisionName", preferred),
        count=torch.cuda.device_count(),
        memory_bytes=found.total_memory,
    )


def cpu_device() -> Device:
    """This machine without its GPUs."""
    import torch

    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device(kind="cpu", count=torch.get_num_threads(), memory_bytes=memory_bytes)
