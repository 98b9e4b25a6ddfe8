"""PEFT LoRA folders as engines see them: what can be served, and how large it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from itrain_pipeline.errors import ConfigError, DataError


def check_servable(folder: Path) -> int:
    """The adapter's largest rank.

    Raises ConfigError for one that no engine serves as it is (DoRA, `modules_to_save`), DataError for another folder.
    """
    config = _read(folder)
    name = "adapter_config.json"
    if config.get("peft_type") != "LORA":
        raise ConfigError(f"{name}: peft_type is {config.get('peft_type')!r}, only 'LORA' can be served")
    if config.get("use_dora"):
        raise ConfigError(f"{name}: use_dora is true: DoRA cannot be served as an adapter")
    if config.get("modules_to_save"):
        raise ConfigError(
            f"{name}: modules_to_save is {config['modules_to_save']}: whole modules do not travel with an adapter"
        )
    return max(int(config.get("r", 1)), *(int(rank) for rank in (config.get("rank_pattern") or {}).values()), 1)


def _read(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise DataError(f"{folder.name}: no adapter_config.json, so this is not a PEFT adapter")
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config
