"""The folder of a LoRA adapter from outside: read as data, and refused unless it is one that this project could write.

PEFT follows what stands in `adapter_config.json`: it imports modules by name, reads other files and replaces layers. So
a setting that we do not know may only be empty.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from itrain_pipeline.errors import DataError

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
MAX_RANK: Final = 1024
MAX_CONFIG_BYTES: Final = 1 << 20

KNOWN: Final = frozenset(
    {
        *("alpha_pattern", "base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode"),
        *("megatron_core", "init_lora_weights", "lora_alpha", "lora_dropout", "modules_to_save", "peft_type"),
        *("peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "target_modules", "task_type"),
        *("use_dora", "use_rslora"),
    }
)  # fmt: skip
"""Settings that name no code, no file and no layer of another kind (`megatron_core` is read with a `megatron_config`,
which is none of them)."""


def read_lora_config(folder: Path) -> dict[str, Any]:
    """`adapter_config.json` of a folder; DataError for one that is missing, no JSON object, or out of bounds."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise DataError(f"{folder.name}: no {CONFIG_FILE}, so this is not a PEFT adapter")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise DataError(f"{CONFIG_FILE} has {path.stat().st_size} bytes, allowed are {MAX_CONFIG_BYTES}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{CONFIG_FILE} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise DataError(f"{CONFIG_FILE} is a {type(config).__name__}, expected an object")
    for rank in (config.get("r", 8), *_values(config, "rank_pattern")):
        if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= MAX_RANK:
            raise DataError(f"{CONFIG_FILE}: a rank is {str(rank)[:40]!r}, allowed are 1 to {MAX_RANK}")
    return config


def check_foreign_adapter(folder: Path) -> dict[str, Any]:
    """The configuration of an adapter that another run, or nobody we know, has written; its weights are checked too.

    Raises DataError for another kind of adapter than a plain LoRA, for a setting that we do not know, and for weights
    that are no safetensors or of other shapes than the ranks say.
    """
    config = read_lora_config(folder)
    if config.get("peft_type") != "LORA" or config.get("use_dora") or config.get("modules_to_save"):
        raise DataError(f"{CONFIG_FILE}: not a plain LoRA adapter, which is all that can be served and continued")
    foreign = sorted(name for name, value in config.items() if name not in KNOWN and value not in (None, False, {}, []))
    foreign += [name for name in ("init_lora_weights",) if config.get(name, True) not in (True, False)]
    foreign += [name for name in ("bias",) if config.get(name, "none") != "none"]
    if foreign:
        raise DataError(f"{CONFIG_FILE}: {foreign[0]} is set: an adapter from elsewhere may only be a plain LoRA")
    targets = config.get("target_modules")
    names = [targets] if isinstance(targets, str) else targets
    if not isinstance(names, list) or not all(isinstance(name, str) and _is_plain(name) for name in names):
        raise DataError(f"{CONFIG_FILE}: target_modules is {str(targets)[:80]!r}, expected names of modules")
    patterns = [*(config.get("rank_pattern") or {}), *(config.get("alpha_pattern") or {})]
    if not all(_is_plain(name) for name in patterns):
        raise DataError(f"{CONFIG_FILE}: rank_pattern and alpha_pattern may only name modules")
    _check_shapes(folder / WEIGHTS_FILE, {config.get("r", 8), *_values(config, "rank_pattern")})
    return config


def _is_plain(name: str) -> bool:
    """A module's name and no regular expression, which PEFT would take a text for."""
    return name.replace(".", "").replace("_", "").replace("-", "").isalnum()


def _values(config: dict[str, Any], name: str) -> list[Any]:
    found = config.get(name) or {}
    if not isinstance(found, dict):
        raise DataError(f"{CONFIG_FILE}: {name} is a {type(found).__name__}, expected an object")
    return list(found.values())


def _check_shapes(path: Path, ranks: set[int]) -> None:
    for name, shape in tensor_shapes(path).items():
        side = 0 if "lora_A" in name or "lora_embedding_A" in name else 1
        if len(shape) != 2 or shape[side] not in ranks:
            raise DataError(f"{path.name}: {name[:100]} has shape {shape}, the ranks are {sorted(ranks)}")


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """Shapes by name as the header of a safetensors file has them; DataError where header and file do not agree.

    The library checks that every tensor lies within the file, has the bytes of its shape, and overlaps with none.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="np") as weights:
            return {name: list(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path.name} is no whole safetensors file: {str(error)[:200]}") from error
