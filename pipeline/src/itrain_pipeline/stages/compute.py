"""What a stage that loads the model computes in, decided and checked before the model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from itrain_contract.stageio import StageInput
from itrain_pipeline.engine.devices import cuda_capability
from itrain_pipeline.learn.hardware import compute_record
from itrain_pipeline.learn.overflow import check_weights
from itrain_pipeline.learn.precision import (
    ChosenPrecision,
    Device,
    PrecisionName,
    Quantization,
    choose_precision,
    detect_device,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """The device of this process and the number format that it computes in."""

    device: Device
    precision: ChosenPrecision

    def record(self, quantization: Quantization = "none") -> dict[str, str]:
        """For `StageOutput.info`."""
        import torch

        cuda = torch.version.cuda if self.device.kind == "cuda" else None
        return compute_record(self.device, self.precision, quantization, cuda=cuda or "")


def choose_compute(stage_input: StageInput, model_dir: Path) -> Compute:
    """What the spec asks for on this device. Raises ConfigError as `compute_for` does."""
    return compute_for(stage_input.spec.get("precision", "auto"), model_dir)


def compute_for(wanted: PrecisionName, model_dir: Path) -> Compute:
    """Raises ConfigError for a precision that the device has not, a GPU that the installed torch has no code for, and
    in fp16 for a model whose weights do not fit into it."""
    cuda_capability()
    device = detect_device()
    precision = choose_precision(wanted, device)
    if precision == "fp16":
        check_weights(model_dir)
    return Compute(device=device, precision=precision)
