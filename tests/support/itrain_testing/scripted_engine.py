"""An engine without a model: what it samples is a function of the ids and the seed, and it can fail on demand."""

from __future__ import annotations

import asyncio
import hashlib
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from itrain_pipeline.ports import Completion, EngineCounters, KVCapacity, SamplingParams

END = 2
BOUNDARY = 9
LETTERS = (5, 6, 7)
"""The toy language: letters, boundaries after which a step ends, and an end."""

Policy = Callable[[tuple[int, ...], int, SamplingParams], Completion]


def toy_probability(context: Sequence[int], token: int) -> float:
    """P(token | last two ids): fixed, uneven, positive, and a distribution over the toy vocabulary."""
    weights = {t: 1 + _digest(f"{list(context)[-2:]}>{t}") % 7 for t in (*LETTERS, BOUNDARY, END)}
    return weights[token] / sum(weights.values())


def toy_policy(prompt_ids: tuple[int, ...], seed: int, params: SamplingParams) -> Completion:
    """Sample the toy language to its end or to `max_tokens`."""
    rng = random.Random(seed)
    ids: list[int] = []
    logprobs: list[float] = []
    vocabulary = (*LETTERS, BOUNDARY, END)
    while len(ids) < params.max_tokens:
        context = (*prompt_ids, *ids)
        weights = [toy_probability(context, token) for token in vocabulary]
        token = rng.choices(vocabulary, weights)[0]
        ids.append(token)
        logprobs.append(math.log(toy_probability(context, token)))
        if token == END:
            return Completion(token_ids=tuple(ids), logprobs=tuple(logprobs), finish_reason="stop")
    return Completion(token_ids=tuple(ids), logprobs=tuple(logprobs), finish_reason="length")


def toy_cut(answer_ids: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """A step ends behind each boundary."""
    steps: list[tuple[int, ...]] = []
    step: list[int] = []
    for token in answer_ids:
        step.append(token)
        if token == BOUNDARY:
            steps.append(tuple(step))
            step = []
    return (*steps, tuple(step)) if step else tuple(steps)


def toy_reward(answer_ids: Sequence[int]) -> float:
    """A number in [-1, 1] that depends on every id."""
    return (_digest(str(tuple(answer_ids))) % 2001 - 1000) / 1000


class ScriptedEngine:
    """Answers by `policy`; raises the errors in `failures` at the calls (counted from 0) that they name."""

    max_model_len = 4096
    capacity = KVCapacity(block_tokens=16, total_blocks=65_536, free_blocks=65_536)

    def __init__(self, policy: Policy = toy_policy, failures: dict[int, Exception] | None = None) -> None:
        self.policy = policy
        self.failures = dict(failures or {})
        self.asked: list[tuple[tuple[int, ...], int]] = []
        self.judged: list[tuple[int, ...]] = []
        self.adapters: list[tuple[str, Path | None]] = []
        self.calls = self.resets = self.most_in_flight = self._in_flight = self._decoded = self._prefilled = (
            self._cached
        ) = 0

    async def generate(self, prompt_ids: Sequence[int], params: SamplingParams) -> list[Completion]:
        await self._call()
        prompt = tuple(prompt_ids)
        self.asked += [(prompt, seed) for seed in params.seeds]
        self._prefilled += len(prompt)
        self._cached += (len(params.seeds) - 1) * len(prompt)
        completions = [self.policy(prompt, seed, params) for seed in params.seeds]
        self._decoded += sum(len(c.token_ids) for c in completions)
        return completions

    async def option_logprobs(self, prompt_ids: Sequence[int], options: Sequence[int]) -> list[float]:
        await self._call()
        self.judged.append(tuple(prompt_ids))
        self._prefilled += len(prompt_ids)
        weights = [1 + _digest(f"{tuple(prompt_ids)}{option}") % 5 for option in options]
        return [math.log(weight / sum(weights)) for weight in weights]

    def load_adapter(self, name: str, folder: Path | None) -> None:
        self.adapters.append((name, folder))

    def reset_prefix_cache(self) -> None:
        self.resets += 1

    def kv_capacity(self) -> KVCapacity:
        return self.capacity

    def counters(self) -> EngineCounters:
        return EngineCounters(
            requests=self.calls, prefill_computed=self._prefilled, prefill_cached=self._cached, decoded=self._decoded
        )

    async def aclose(self) -> None:
        return None

    async def _call(self) -> None:
        number = self.calls
        self.calls += 1
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            await asyncio.sleep(0)
            if (error := self.failures.pop(number, None)) is not None:
                raise error
        finally:
            self._in_flight -= 1


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
