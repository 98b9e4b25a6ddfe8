"""The engines under measurement: recorded, counted, and able to know prefixes or not.

An arm without a prefix cache runs on the same engine as the others. Completions of one request still share their
prompt, as they did in the engine that the released code called; only what one request knows of another is gone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from itrain_pipeline.engine import open_engine
from itrain_pipeline.ports import Completion, Engine, EngineCounters, KVCapacity, SamplingParams


class Memory(Protocol):
    """The switch of an engine's prefix cache."""

    remember: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """Engine tokens of an arm, and Σ prompt tokens over all sequences as its callers asked for them."""

    requests: int
    computed: int
    cached: int
    decoded: int
    prompt_tokens: int

    @property
    def tokens(self) -> int:
        """What was computed: prompt tokens that no cache held, and decoded ones."""
        return self.computed + self.decoded


class BenchEngine:
    """The Engine port over another engine; remembers what was sampled, so that a pair can be traced to it."""

    def __init__(self, inner: Engine, memory: Memory) -> None:
        self._inner, self._memory = inner, memory
        self.sampled: set[tuple[int, ...]] = set()
        """Prompt and completion of every sequence."""
        self._prompt_tokens = 0
        self._before = inner.counters()

    def begin(self, *, remember: bool) -> None:
        """Nothing is known, nothing was sampled, all counts are 0."""
        self._inner.reset_prefix_cache()
        self._memory.remember = remember
        self.sampled.clear()
        self._prompt_tokens = 0
        self._before = self._inner.counters()

    def spent(self) -> Spent:
        now, before = self._inner.counters(), self._before
        return Spent(
            requests=now.requests - before.requests,
            computed=now.prefill_computed - before.prefill_computed,
            cached=now.prefill_cached - before.prefill_cached,
            decoded=now.decoded - before.decoded,
            prompt_tokens=self._prompt_tokens,
        )

    @property
    def max_model_len(self) -> int:
        return self._inner.max_model_len

    async def generate(self, prompt_ids: Sequence[int], params: SamplingParams) -> list[Completion]:
        done = await self._inner.generate(prompt_ids, params)
        self._prompt_tokens += len(prompt_ids) * len(done)
        self.sampled |= {(*prompt_ids, *completion.token_ids) for completion in done}
        return done

    async def option_logprobs(self, prompt_ids: Sequence[int], options: Sequence[int]) -> list[float]:
        found = await self._inner.option_logprobs(prompt_ids, options)
        self._prompt_tokens += len(prompt_ids)
        return found

    def load_adapter(self, name: str, folder: Path | None) -> None:
        self._inner.load_adapter(name, folder)

    def reset_prefix_cache(self) -> None:
        self._inner.reset_prefix_cache()

    def kv_capacity(self) -> KVCapacity:
        return self._inner.kv_capacity()

    def counters(self) -> EngineCounters:
        return self._inner.counters()

    async def aclose(self) -> None:
        await self._inner.aclose()


class ForgetfulPrefixes:
    """The transformers engine's known prefixes, with a switch."""

    def __init__(self, known: Any) -> None:
        self._known, self.remember = known, True

    def match(self, tokens: Sequence[int]) -> list[Any]:
        return self._known.match(tokens) if self.remember else []

    def insert(self, tokens: Sequence[int], slab: Any, row: int) -> None:
        if self.remember:
            self._known.insert(tokens, slab, row)

    def clear(self) -> None:
        self._known.clear()


class SaltedPrefixes:
    """vLLM's, with a switch: blocks of a request with a salt of its own are known to its own sequences alone."""

    def __init__(self, stepper: Any) -> None:
        self.remember = True
        engine = stepper.engine
        add = engine.add_request

        def add_salted(name: str, tokens: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            if not self.remember:
                tokens = {**tokens, "cache_salt": f"call-{stepper._by_name[name].names[0]}"}
            return add(name, tokens, *args, **kwargs)

        engine.add_request = add_salted


def open_bench_engine(kind: str, model_dir: Path, *, threads: int, max_model_len: int) -> BenchEngine:
    """`transformers` or `vllm`, fp32, `threads` threads, its prefix cache switchable."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
    inner: Any = open_engine(kind, model_dir, dtype="fp32", max_model_len=max_model_len)
    inner.load_adapter("base", None)
    if kind == "vllm":
        return BenchEngine(inner, SaltedPrefixes(inner._started()))
    inner._prefix = ForgetfulPrefixes(inner._prefix)
    return BenchEngine(inner, inner._prefix)
