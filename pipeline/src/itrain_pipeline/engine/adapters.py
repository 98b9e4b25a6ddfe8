"""PEFT LoRA folders as engines see them: what can be served, and how large it is."""

from __future__ import annotations

from pathlib import Path

from itrain_pipeline.errors import ConfigError
from itrain_pipeline.loraconfig import CONFIG_FILE, read_lora_config


def check_servable(folder: Path) -> int:
    """The adapter's largest rank.

    Raises ConfigError for one that no engine serves as it is (DoRA, `modules_to_save`), DataError for another folder.
    """
    config, name = read_lora_config(folder), CONFIG_FILE
    if config.get("peft_type") != "LORA":
        raise ConfigError(f"{name}: peft_type is {config.get('peft_type')!r}, only 'LORA' can be served")
    if config.get("use_dora"):
        raise ConfigError(f"{name}: use_dora is true: DoRA cannot be served as an adapter")
    if config.get("modules_to_save"):
        raise ConfigError(
            f"{name}: modules_to_save is {config['modules_to_save']}: whole modules do not travel with an adapter"
        )
    return max(int(config.get("r", 1)), *(int(rank) for rank in (config.get("rank_pattern") or {}).values()), 1)
