"""An adapter in fp32 through DeepSpeed, which computes in 16 bits with a rounded copy of every trainable weight.

DeepSpeed rounds the weights before it makes the fp32 ones of its optimiser from them, and leaves the rounded copy in
the model. Neither may reach an adapter that lives through all iterations: small steps are less than the rounding.
"""

from __future__ import annotations

from typing import Any


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


def hold_masters(model: Any) -> None:
    """Put the fp32 weights of DeepSpeed's optimiser, whole, in the place of the copy; all ranks call this together.

    It ends the training: what is saved afterwards is what was trained.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter, whole in zip(trained, [safe_get_full_fp32_param(parameter) for parameter in trained], strict=True):
        parameter.data = whole
