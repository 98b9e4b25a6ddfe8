"""A causal language model from a local Hugging Face folder: safetensors only, nothing fetched, no code run from it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from itrain_contract.names import ENV_THREADS
from itrain_pipeline.errors import ConfigError, DataError
from itrain_pipeline.learn.precision import ChosenPrecision, Quantization

if TYPE_CHECKING:
    import torch


def set_threads(environ: Mapping[str, str] = os.environ) -> None:
    """Give torch the number of threads that the environment allows; without it torch decides."""
    text = environ.get(ENV_THREADS, "")
    if not text:
        return
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"{ENV_THREADS}: got {text!r}, allowed is a number from 1 on")
    import torch

    torch.set_num_threads(int(text))


def torch_dtype(precision: ChosenPrecision) -> torch.dtype:
    import torch

    return {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[precision]


def load_model(
    folder: Path,
    *,
    precision: ChosenPrecision,
    quantization: Quantization = "none",
    trust_remote_code: bool = False,
    device: str | None = None,
) -> Any:
    """The model in `folder`, frozen, in eval mode, on `device` (default: the process's GPU if it has one, else CPU).

    `nf4` quantises linear layers to 4 bits (QLoRA, arXiv 2305.14314) with double quantisation; they compute in
    `precision`. Attention is SDPA: it runs on Volta and on CPU, which FlashAttention-2 does not. Raises DataError for
    a folder without config or safetensors, ConfigError for a model that needs code of its own without leave.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()  # a stage's log is plain lines
    check_model_folder(folder, trust_remote_code=trust_remote_code)
    device = device or (f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu")
    dtype = torch_dtype(precision)
    extra: dict[str, Any] = {}
    if quantization == "nf4":
        extra["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        extra["device_map"] = {"": device}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(folder),
        dtype=dtype,
        attn_implementation="sdpa",
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
        **extra,
    )
    if quantization == "none":
        model = model.to(device)
    else:
        keep_trainable(model)
    return model.eval().requires_grad_(False)


def keep_trainable(model: torch.nn.Module) -> None:
    """Have 4-bit layers compute the same, and with a gradient, on every CPU.

    On one with bfloat16 instructions bitsandbytes packs a layer's weights anew, for good, for a kernel that computes in
    bfloat16 and has no backward, as soon as the layer is called in eval mode with an input that needs no gradient: the
    first layers of a frozen model under an adapter.
    """
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=trust_remote_code
    )


def check_model_folder(folder: Path, *, trust_remote_code: bool) -> None:
    """Raise before anything is read from a folder that cannot or must not be loaded."""
    config = folder / "config.json"
    if not config.is_file():
        raise DataError(f"model folder {folder.name!r} has no config.json")
    if not any(folder.glob("*.safetensors")):
        found = sorted(path.name for path in folder.iterdir())[:8]
        raise DataError(f"model folder {folder.name!r} has no *.safetensors (only safetensors are read), found {found}")
    if "auto_map" in json.loads(config.read_text(encoding="utf-8")) and not trust_remote_code:
        raise ConfigError("model.trustRemoteCode: got false, but the model's config.json names code of its own")
