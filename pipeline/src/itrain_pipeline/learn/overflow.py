"""What of a model does not fit into fp16, found before anything is computed with it (method document, "Precision").

fp16 ends at 65504; a value from 65520 on becomes infinite. `check_weights` reads the weights as they lie in their
files, `check_activations` runs one short row. Both name the place and its largest value.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from itrain_pipeline.errors import ConfigError, DataError

FP16_MAX = 65504
FP16_INFINITE = 65520
"""The least value that is rounded to infinity."""
PROBE_TOKENS = 256
"""Large activations stand at the first tokens of a row: a short one shows them."""
WIDER = {"BF16", "F32", "F64"}
"""Formats of safetensors that hold more than fp16."""
REMEDY = "use precision fp32, or bf16 on a GPU of compute capability 8.0 or newer"


def check_weights(folder: Path) -> None:
    """Raise ConfigError for a model folder with a weight that is finite in its file and infinite in fp16.

    One tensor at a time is in memory; 16 GB take about three seconds of a core where the disk keeps up.
    """
    largest = dict(_large_weights(folder))
    if not largest:
        return
    name = max(largest, key=lambda key: largest[key])
    others = "" if len(largest) == 1 else f" (and {len(largest) - 1} more of its tensors)"
    raise ConfigError(
        f"precision: got fp16, but the model's {name} reaches {largest[name]:.4g}{others} and fp16 ends at {FP16_MAX}: "
        + REMEDY
    )


def _large_weights(folder: Path) -> Iterator[tuple[str, float]]:
    """Name and largest finite magnitude of every tensor that fp16 cannot hold."""
    from safetensors import safe_open

    for path in weight_files(folder):
        with safe_open(path, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118  # it is no mapping
                if shard.get_slice(name).get_dtype() not in WIDER:
                    continue
                largest = _largest(shard.get_tensor(name))
                if largest >= FP16_INFINITE:
                    yield name, largest


def _largest(tensor: Any) -> float:
    """The largest finite magnitude, 0 where nothing is finite."""
    if not tensor.numel():
        return 0.0
    low, high = (float(value) for value in tensor.aminmax())
    if math.isfinite(low) and math.isfinite(high):
        return max(-low, high)
    finite = tensor[tensor.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers loads from a folder; others may lie beside them."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return [
            folder / name for name in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        ]
    single = folder / "model.safetensors"
    return [single] if single.is_file() else sorted(folder.glob("*.safetensors"))


def check_activations(model: Any, token_ids: Sequence[int]) -> None:
    """Run one row through a model that computes in fp16; only what reaches the logits counts.

    Raises ConfigError with the first module whose output is not finite, and the value that it has in bf16, whose range
    is that of fp32; DataError where bf16 does not hold it either. A model that was refused cannot be used any more.
    """
    import torch

    row = torch.tensor([list(token_ids)[:PROBE_TOKENS]], device=model.device)
    was_training = model.training
    model.eval()
    try:
        found = _watch(model, row)
        if not found:
            return
        name = next(iter(found))
        _widen(model)
        reached = _watch(model, row, everything=True)[name]
    finally:
        model.train(was_training)
    where = f"the output of {plain_name(name) or 'the model'}"
    if not math.isfinite(reached):
        raise DataError(f"{where} is no finite number in bf16 either: the model's weights or its adapter are damaged")
    raise ConfigError(
        f"precision: got fp16, but {where} reaches about {reached:.2g} on the first row and fp16 ends at {FP16_MAX}: "
        + REMEDY
    )


def _watch(model: Any, row_1T: Any, *, everything: bool = False) -> dict[str, float]:
    """Modules in the order in which they end, with the largest magnitude of their outputs: those whose output is not
    finite, none of them where the logits are; or all of them."""
    import torch

    found: dict[str, float] = {}

    def watch(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            for tensor in _tensors(output):
                low, high = (float(value) for value in tensor.aminmax())
                value = max(-low, high)
                if everything or not math.isfinite(value):
                    found[name] = value if math.isnan(value) else max(value, found.get(name, 0.0))

        return hook

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        with torch.no_grad():
            logits = model(input_ids=row_1T, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    return {} if not everything and bool(torch.isfinite(logits).all()) else found


def _tensors(output: Any) -> Iterator[Any]:
    """The floating-point tensors of a module's output."""
    import torch

    if isinstance(output, torch.Tensor):
        if output.is_floating_point() and output.numel():
            yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from _tensors(value)


def _widen(model: Any) -> None:
    """Everything in fp16 to bf16, and what 4-bit layers compute in."""
    import torch

    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype == torch.float16:
            tensor.data = tensor.data.to(torch.bfloat16)
    for module in model.modules():
        if getattr(module, "compute_dtype", None) == torch.float16:
            module.compute_dtype = torch.bfloat16


def plain_name(name: str) -> str:
    """A module's name without what PEFT puts around it."""
    return name.removeprefix("base_model.model.").removesuffix(".base_layer")
