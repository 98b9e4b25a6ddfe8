"""The engine on vLLM, in this process: prefix caching, chunked prefill on GPUs, LoRA adapters by name.

One completion is one sequence with its own seed; the siblings of a call are scheduled together and share their prompt's
whole blocks, so each computes the last, partial one at most. What a seed samples depends on nothing else in the batch,
up to rounding: how many rows are multiplied at once may change a logit's last bits, and with them, rarely, a token.

vLLM starts with the first adapter or request, because the largest rank that it can serve is fixed at its start; an
adapter beyond that starts it anew. There is one at a time in a process.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from itrain_pipeline.engine import vllm_versions as versions
from itrain_pipeline.engine.adapters import check_servable
from itrain_pipeline.engine.checks import check_finite, check_ids, check_new_name, check_params, prompt_room
from itrain_pipeline.engine.transformers import eos_token_ids
from itrain_pipeline.engine.vllm_stepper import Call, Stepper
from itrain_pipeline.errors import ConfigError, RetryableError, StageError
from itrain_pipeline.ports import Completion, EngineCounters, KVCapacity, SamplingParams

log = logging.getLogger(__name__)


class VllmEngine:
    """The `Engine` port over vLLM. Counters cover the sequences that were answered, by vLLM's own count of each."""

    def __init__(self, settings: versions.VllmSettings) -> None:
        self._settings = settings
        self._stepper: Stepper | None = None
        self._rank = versions.DEFAULT_LORA_RANK
        self._adapter: Any = None
        self._adapters: set[str] = set()
        self._closed = False
        self._eos = _eos_of(settings.model_dir, settings.trust_remote_code)
        self._requests = self._computed = self._cached = self._decoded = 0

    @property
    def max_model_len(self) -> int:
        return int(self._started().engine.model_config.max_model_len)

    async def generate(self, prompt_ids: Sequence[int], params: SamplingParams) -> list[Completion]:
        room = self._room(prompt_ids)
        check_params(params)
        stop = params.stop_token_ids or self._eos
        max_tokens = min(params.max_tokens, room)
        requests = [
            versions.sampling(params, seed, max_tokens=max_tokens, stop_token_ids=stop) for seed in params.seeds
        ]
        completions = [_completion(output) for output in await self._answered(prompt_ids, requests)]
        self._decoded += sum(len(completion.token_ids) for completion in completions)
        return completions

    async def option_logprobs(self, prompt_ids: Sequence[int], options: Sequence[int]) -> list[float]:
        self._room(prompt_ids)
        check_ids("judgement", options, vocabulary=versions.vocabulary_size(self._started().engine))
        outputs = await self._answered(prompt_ids, versions.option_sampling(options))
        values = versions.option_values(outputs, options)
        check_finite(values)
        return values

    def load_adapter(self, name: str, folder: Path | None) -> None:
        check_new_name(name, self._adapters)
        if self._stepper is not None and (calls := self._stepper.in_flight()):
            raise ConfigError(f"adapter {name!r} cannot be loaded while {len(calls)} requests are answered")
        adapter = None
        if folder is not None:
            rank = check_servable(folder)
            if rank > self._rank:
                self._rank = rank
                self._stop()
            adapter = versions.lora_request(name, len(self._adapters) + 1, folder)
            self._load(adapter)
        self._adapters.add(name)
        self._adapter = adapter

    def reset_prefix_cache(self) -> None:
        """Forget all known blocks. Raises ConfigError while requests hold some of them."""
        if self._stepper is not None and not self._stepper.do(lambda engine: engine.reset_prefix_cache()):
            raise ConfigError("known prefixes cannot be forgotten while requests are answered")

    def kv_capacity(self) -> KVCapacity:
        """Blocks of requests that wait for their turn count as taken: their prompts need them next."""
        stepper = self._started()
        pool, size = versions.block_pool(stepper.engine), versions.block_tokens(stepper.engine)
        wanted = sum(math.ceil(len(call.prompt) / size) for call in stepper.in_flight() if call.queued)
        free = pool.get_num_free_blocks() - wanted
        return KVCapacity(block_tokens=size, total_blocks=pool.num_gpu_blocks - 1, free_blocks=max(free, 0))

    def counters(self) -> EngineCounters:
        return EngineCounters(
            requests=self._requests,
            prefill_computed=self._computed,
            prefill_cached=self._cached,
            decoded=self._decoded,
        )

    async def aclose(self) -> None:
        self._closed = True
        await asyncio.to_thread(self._stop)

    def _started(self) -> Stepper:
        if self._closed:
            raise RetryableError("the engine is closed")
        if self._stepper is None:
            begin = time.monotonic()
            try:
                self._stepper = Stepper(lambda: versions.start(self._settings, lora_rank=self._rank))
            except StageError:
                raise
            except Exception as error:
                raise RetryableError(
                    f"vllm did not start: {type(error).__name__}: {versions.first_line(error)}"
                ) from error
            log.info("vllm started in %.1f s", time.monotonic() - begin)
        return self._stepper

    def _stop(self) -> None:
        stepper, self._stepper = self._stepper, None
        if stepper is not None:
            stepper.close()

    def _load(self, adapter: Any) -> None:
        """Read the adapter now: a folder that vLLM cannot serve is the caller's mistake, not a request's."""
        try:
            self._started().do(lambda engine: engine.add_lora(adapter))
        except StageError:
            raise
        except Exception as error:  # its class depends on the version
            raise ConfigError(
                f"adapter {adapter.lora_name!r}: vllm refuses it: {versions.first_line(error)}"
            ) from error

    def _room(self, prompt_ids: Sequence[int]) -> int:
        vocabulary = versions.vocabulary_size(self._started().engine)
        return prompt_room(prompt_ids, context=self.max_model_len, vocabulary=vocabulary)

    async def _answered(self, prompt_ids: Sequence[int], requests: Sequence[Any]) -> list[Any]:
        stepper = self._started()
        call = Call(prompt=tuple(prompt_ids), requests=requests, lora=self._adapter)
        stepper.ask(call)
        self._requests += 1
        try:
            outputs = await asyncio.wrap_future(call.done)
        except asyncio.CancelledError:
            stepper.abort(call)
            raise
        for output in outputs:
            known = output.num_cached_tokens or 0
            self._cached += known
            self._computed += len(call.prompt) - known
        return outputs


def open_vllm_engine(
    model_dir: Path, *, dtype: str, max_batch_tokens: int, max_model_len: int, trust_remote_code: bool
) -> VllmEngine:
    """0 for `max_batch_tokens` (on a CPU) or `max_model_len` takes what memory or the model allows."""
    return VllmEngine(
        versions.VllmSettings(
            model_dir=model_dir,
            dtype=dtype,
            max_batch_tokens=max_batch_tokens,
            max_model_len=max_model_len,
            trust_remote_code=trust_remote_code,
        )
    )


def _completion(output: Any) -> Completion:
    (done,) = output.outputs
    if done.finish_reason not in ("stop", "length"):
        raise RetryableError(f"vllm ended a request with {done.finish_reason!r}")
    token_ids = tuple(int(token) for token in done.token_ids)
    logprobs = tuple(float(at[token].logprob) for at, token in zip(done.logprobs, token_ids, strict=True))
    check_finite(logprobs)
    return Completion(token_ids=token_ids, logprobs=logprobs, finish_reason=done.finish_reason)


def _eos_of(model_dir: Path, trust_remote_code: bool) -> tuple[int, ...]:
    from transformers import AutoConfig, GenerationConfig

    folder = str(model_dir)
    has_one = (model_dir / "generation_config.json").is_file()
    generation = GenerationConfig.from_pretrained(folder, local_files_only=True) if has_one else None
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    return eos_token_ids(generation, config)
