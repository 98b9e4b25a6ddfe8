"""The run's one LoRA adapter: created by the warm-up, continued by every iteration, saved as two files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from itrain_contract.spec import AdapterSpec
from itrain_pipeline.errors import ConfigError, DataError
from itrain_pipeline.files import sha256_file, write_atomic
from itrain_pipeline.loraconfig import CONFIG_FILE, WEIGHTS_FILE, read_lora_config

ADAPTER_FILES = (WEIGHTS_FILE, CONFIG_FILE)


def target_modules(targets: str) -> str | list[str]:
    """PEFT's `target_modules`: `all-linear` as it is, names separated by commas as a list."""
    if targets == "all-linear":
        return targets
    return [name for name in targets.split(",") if name]


def new_adapter(model: Any, spec: AdapterSpec, *, seed: int) -> Any:
    """`model` with a fresh trainable adapter (A random by `seed`, B zero: the model's function is unchanged).

    Weights are fp32 whatever the base computes in (method document, "Precision and hardware").
    """
    import peft
    import torch

    config = peft.LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=target_modules(spec.targets),
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    try:
        wrapped = peft.get_peft_model(model, config)
    except ValueError as error:
        raise ConfigError(f"adapter.targets: got {spec.targets!r}: {error}") from error
    return _fp32_adapter(wrapped)


def continue_adapter(model: Any, folder: Path, *, trainable: bool) -> Any:
    """`model` with the adapter in `folder`, trainable (in fp32) or frozen in eval mode.

    Raises DataError for an incomplete folder, ConfigError for an adapter that no engine could serve (trap 12).
    """
    import peft

    check_adapter_folder(folder)
    wrapped = peft.PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    # Saving, PEFT compares the base's configuration with that of this name: a local folder, or it would ask a hub.
    wrapped.peft_config[wrapped.active_adapter].base_model_name_or_path = model.config.name_or_path
    return _fp32_adapter(wrapped) if trainable else wrapped.eval()


def _fp32_adapter(model: Any) -> Any:
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    return model


def check_adapter_folder(folder: Path) -> None:
    for name in ADAPTER_FILES:
        if not (folder / name).is_file():
            raise DataError(f"adapter folder {folder.name!r} has no {name}")
    config = read_lora_config(folder)
    if config.get("peft_type") != "LORA":
        raise ConfigError(f"{CONFIG_FILE}: peft_type is {config.get('peft_type')!r}, allowed is 'LORA'")
    if config.get("use_dora") or config.get("modules_to_save"):
        raise ConfigError(f"{CONFIG_FILE}: use_dora and modules_to_save must be empty: engines cannot serve them")


def check_rank(folder: Path, spec: AdapterSpec) -> None:
    """Raise ConfigError when the adapter to continue is not the one that the spec describes."""
    config = read_lora_config(folder)
    for field, got, wanted in (("rank", config.get("r"), spec.rank), ("alpha", config.get("lora_alpha"), spec.alpha)):
        if got != wanted:
            raise ConfigError(f"adapter.{field}: got {wanted}, the adapter to continue has {got}; a run keeps one")


def save_adapter(model: Any, folder: Path) -> Path:
    """Write the adapter of a PEFT model to `folder`: equal weights give equal bytes, and no path of this machine."""
    model.save_pretrained(str(folder))
    return clean_adapter(folder)


def clean_adapter(folder: Path) -> Path:
    """Keep the two files that make an adapter, the configuration without names that differ between machines."""
    for path in folder.iterdir():
        if path.name not in ADAPTER_FILES:
            path.unlink()
    config = read_lora_config(folder) | {"base_model_name_or_path": "", "inference_mode": True}
    if isinstance(config.get("target_modules"), list):
        config["target_modules"] = sorted(config["target_modules"])  # PEFT keeps a set
    write_atomic(folder / CONFIG_FILE, (json.dumps(config, indent=1, sort_keys=True) + "\n").encode())
    return folder


def adapter_sha256(folder: Path) -> str:
    """The name of an adapter in lineages: the hash of its weights file."""
    return sha256_file(folder / WEIGHTS_FILE)
