"""Engines: token ids in, token ids and logprobs out (`itrain_pipeline.ports.Engine`)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from itrain_pipeline.errors import ConfigError
from itrain_pipeline.ports import Engine

EngineKind = Literal["auto", "transformers", "vllm"]


def open_engine(
    kind: EngineKind,
    model_dir: Path,
    *,
    dtype: str = "auto",
    max_batch_tokens: int = 0,
    max_model_len: int = 0,
    trust_remote_code: bool = False,
) -> Engine:
    """Load the model in `model_dir` (Hugging Face layout) into an engine.

    `dtype`: auto | fp32 | fp16 | bf16. `max_batch_tokens` bounds rows × longest row being decoded at once; 0 lets
    the engine decide, as does 0 for `max_model_len` (the model's own context). Seeds come with each request. Raises
    `ConfigError` for an engine that is not there or a model that it cannot serve.
    """
    if kind == "vllm":
        found = "installed, but not supported yet" if find_spec("vllm") else "not installed in this environment"
        raise ConfigError(f"engine: vllm is {found}; use 'transformers' or 'auto'")
    if not (model_dir / "config.json").is_file():
        raise ConfigError(f"model folder {model_dir.name!r} has no config.json")
    from itrain_pipeline.engine.transformers import open_transformers_engine

    return open_transformers_engine(
        model_dir,
        dtype=dtype,
        max_batch_tokens=max_batch_tokens,
        max_model_len=max_model_len,
        trust_remote_code=trust_remote_code,
    )
