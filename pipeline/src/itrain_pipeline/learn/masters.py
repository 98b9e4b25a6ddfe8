"""An adapter in fp32 through DeepSpeed, which computes in 16 bits with a rounded copy of every trainable weight.

DeepSpeed rounds the weights before it makes the fp32 ones of its optimiser from them, and leaves the rounded copy in
the model. Neither may reach an adapter that lives through all iterations: small steps are less than the rounding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from itrain_pipeline.learn.adapter import save_adapter


def start_from_fp32(model: Any) -> None:
    """Give DeepSpeed's optimiser the trainable weights as they are now, once it has made its own.

    That is before the first forward pass after DeepSpeed took the model over. Not for a training that is resumed: its
    weights are the checkpoint's.
    """
    weights = [(p, p.detach().clone()) for p in model.parameters() if p.requires_grad]

    def give(module: Any, inputs: Any) -> None:
        if not all(hasattr(parameter, "_hp_mapping") or hasattr(parameter, "ds_id") for parameter, _ in weights):
            return
        from deepspeed.utils import safe_set_full_fp32_param

        for parameter, whole in weights:
            safe_set_full_fp32_param(parameter, whole.to(parameter.device))
        hook.remove()

    hook = model.register_forward_pre_hook(give)


def save_masters(model: Any, folder: Path) -> None:
    """Write the adapter to `folder` as the optimiser knows it; all ranks call this, the first one writes.

    It ends the training: the model then holds the fp32 weights, whole, in place of the copy.
    """
    import torch
    from deepspeed.utils import safe_get_full_fp32_param

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter, whole in zip(trained, [safe_get_full_fp32_param(parameter) for parameter in trained], strict=True):
        parameter.data = whole
    if torch.distributed.get_rank() == 0:
        save_adapter(model, folder)
