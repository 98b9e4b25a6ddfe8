"""The rendering as the stages that generate see it: one tokenizer, checked to be the one that prepare used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from itrain_pipeline.data.rendering import Renderer
from itrain_pipeline.errors import DataError


def load_renderer(
    model_dir: Path, call_format: Literal["pythonic", "hermes", "llama"], *, trust_remote_code: bool
) -> Renderer:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        str(model_dir), local_files_only=True, trust_remote_code=trust_remote_code
    )
    return Renderer(tokenizer, call_format)


def check_template(manifest: Path, renderer: Renderer) -> None:
    """DataError when prompts would be rendered otherwise than `prepare` rendered them (method document, trap 7)."""
    made = json.loads(manifest.read_text(encoding="utf-8")).get("template_sha256")
    if made != renderer.template_sha256:
        raise DataError(
            f"manifest.json: template_sha256 is {made}, the model's tokenizer gives {renderer.template_sha256}: "
            "prepare and this stage run different versions; prepare again"
        )


def stop_token_ids(model_dir: Path, renderer: Renderer) -> tuple[int, ...]:
    """The end of a turn and every end-of-sequence token of the model's generation configuration."""
    path = model_dir / "generation_config.json"
    eos = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
    listed = eos if isinstance(eos, list) else [] if eos is None else [eos]
    return tuple(dict.fromkeys((renderer.end_of_turn_id, *map(int, listed))))
