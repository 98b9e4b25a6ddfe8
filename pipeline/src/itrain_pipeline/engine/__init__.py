"""Engines: token ids in, token ids and logprobs out (`itrain_pipeline.ports.Engine`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from itrain_pipeline.engine.plugin import open_plugin_engine
from itrain_pipeline.engine.vllm_versions import SERVED, is_installed, serves_gpu
from itrain_pipeline.errors import ConfigError
from itrain_pipeline.ports import Engine

EngineKind = Literal["auto", "transformers", "vllm"]


def open_engine(
    kind: EngineKind | str,
    model_dir: Path,
    *,
    dtype: str = "auto",
    max_batch_tokens: int = 0,
    max_model_len: int = 0,
    trust_remote_code: bool = False,
) -> Engine:
    """Load the model in `model_dir` (Hugging Face layout) into an engine.

    `auto` is vLLM where its GPU build is installed and sees a GPU, else transformers. `dtype`: auto | fp32 | fp16 |
    bf16. `max_batch_tokens` bounds rows × longest row being decoded at once; 0 lets the engine decide, as does 0 for
    `max_model_len` (the model's own context). Seeds come with each request. `package.module:factory` is an engine from
    elsewhere, whose factory takes the same arguments. Raises `ConfigError` for an engine that is not there or a model
    that it cannot serve.
    """
    if not (model_dir / "config.json").is_file():
        raise ConfigError(f"model folder {model_dir.name!r} has no config.json")
    settings: dict[str, Any] = {
        "dtype": dtype,
        "max_batch_tokens": max_batch_tokens,
        "max_model_len": max_model_len,
        "trust_remote_code": trust_remote_code,
    }
    chosen = choose_engine(kind, installed=is_installed(), serves_gpu=serves_gpu)
    if ":" in chosen:
        return open_plugin_engine(chosen, model_dir, **settings)
    if chosen == "vllm":
        from itrain_pipeline.engine.vllm import open_vllm_engine

        return open_vllm_engine(model_dir, **settings)
    from itrain_pipeline.engine.transformers import open_transformers_engine

    return open_transformers_engine(model_dir, **settings)


def choose_engine(kind: EngineKind | str, *, installed: bool, serves_gpu: Callable[[], bool]) -> str:
    """What `kind` stands for where vLLM is `installed` and, asked only then, has a GPU that it serves: transformers,
    vllm, or the factory that it names.

    Raises ConfigError for vLLM where it is not installed.
    """
    if kind == "vllm" and not installed:
        raise ConfigError(f"engine: vllm is not installed here: install {SERVED}, or use 'transformers' or 'auto'")
    if kind == "auto":
        return "vllm" if installed and serves_gpu() else "transformers"
    if kind in ("vllm", "transformers") or ":" in kind:
        return kind
    raise ConfigError(f"engine {kind!r}: allowed are auto, vllm, transformers and package.module:factory")
