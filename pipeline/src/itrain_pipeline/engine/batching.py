"""Continuous batching: requests join between two decode steps, rows leave when they end.

One task of the event loop admits waiting requests in order (a prompt is computed once, then forked to its n rows) and
decodes one token for all rows at a time. With one request at a time, what is computed together is a function of the
requests alone, so the same requests give the same bits.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from itrain_pipeline.engine.checks import (
    NOT_FINITE,
    check_finite,
    check_ids,
    check_new_name,
    check_params,
    prompt_room,
)
from itrain_pipeline.engine.kvcache import RadixCache
from itrain_pipeline.engine.sampling import sample_tokens
from itrain_pipeline.errors import ConfigError, PermanentError, RetryableError, StageError
from itrain_pipeline.ports import Completion, EngineCounters, FinishReason, KVCapacity, SamplingParams

if TYPE_CHECKING:
    import torch

    from itrain_pipeline.engine.transformers import ModelRunner


@dataclass(slots=True, kw_only=True, eq=False)
class _Request:
    prompt: tuple[int, ...]
    params: SamplingParams
    max_tokens: int
    done: asyncio.Future[list[Completion]]
    completions: dict[int, Completion] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return len(self.params.seeds)

    @property
    def width(self) -> int:
        """Tokens that a row may come to hold."""
        return len(self.prompt) + self.max_tokens


@dataclass(slots=True, kw_only=True, eq=False)
class _Options:
    """A request for the logprobs of single next tokens: a prompt, no decoding."""

    prompt: tuple[int, ...]
    options: tuple[int, ...]
    done: asyncio.Future[list[float]]


@dataclass(slots=True, kw_only=True, eq=False)
class _Row:
    """One sequence being decoded. Its keys and values cover everything but the newest token."""

    request: _Request
    index: int
    rng: random.Random
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    @property
    def position(self) -> int:
        """Where the newest token stands in the sequence."""
        return len(self.request.prompt) + len(self.token_ids) - 1


class BatchingEngine:
    """The `Engine` port over a `ModelRunner`. `max_batch_tokens` bounds rows × longest row, memory's measure."""

    def __init__(self, runner: ModelRunner, *, max_batch_tokens: int, prefix_cache_tokens: int) -> None:
        self._runner = runner
        self._max_batch_tokens = max_batch_tokens
        self._prefix = RadixCache(prefix_cache_tokens)
        self._waiting: deque[_Request | _Options] = deque()
        self._rows: list[_Row] = []
        self._task: asyncio.Task[None] | None = None
        self._adapters: set[str] = set()
        self._closed = False
        self._death: RetryableError | None = None
        self._requests = self._computed = self._cached = self._decoded = 0

    @property
    def max_model_len(self) -> int:
        return self._runner.max_model_len

    async def generate(self, prompt_ids: Sequence[int], params: SamplingParams) -> list[Completion]:
        room = self._room(prompt_ids)
        check_params(params)
        done: asyncio.Future[list[Completion]] = asyncio.get_running_loop().create_future()
        self._enqueue(
            _Request(prompt=tuple(prompt_ids), params=params, max_tokens=min(params.max_tokens, room), done=done)
        )
        return await done

    async def option_logprobs(self, prompt_ids: Sequence[int], options: Sequence[int]) -> list[float]:
        self._room(prompt_ids)
        check_ids("judgement", options, vocabulary=self._runner.vocabulary_size)
        done: asyncio.Future[list[float]] = asyncio.get_running_loop().create_future()
        self._enqueue(_Options(prompt=tuple(prompt_ids), options=tuple(options), done=done))
        return await done

    def load_adapter(self, name: str, folder: Path | None) -> None:
        check_new_name(name, self._adapters)
        if self._rows or self._waiting:
            raise ConfigError(f"adapter {name!r} cannot be loaded while {len(self._rows)} sequences are decoded")
        self._runner.load_adapter(name, folder)
        self._adapters.add(name)
        self.reset_prefix_cache()

    def reset_prefix_cache(self) -> None:
        """Forget all keys and values that no running row needs: what comes next depends on nothing before."""
        self._prefix.clear()
        if not self._rows:
            self._runner.slab.clear()

    def kv_capacity(self) -> KVCapacity:
        """Tokens of the slab, in blocks of one: all rows are as wide as the widest, and waiting ones will be."""
        running = [row.request.width for row in self._rows if not row.request.done.done()]
        waiting = [
            request.width
            for request in self._waiting
            if isinstance(request, _Request) and not request.done.done()
            for _ in range(request.rows)
        ]
        widths = running + waiting
        held = len(widths) * max(widths, default=0)
        return KVCapacity(
            block_tokens=1, total_blocks=self._max_batch_tokens, free_blocks=max(self._max_batch_tokens - held, 0)
        )

    def counters(self) -> EngineCounters:
        return EngineCounters(
            requests=self._requests,
            prefill_computed=self._computed,
            prefill_cached=self._cached,
            decoded=self._decoded,
        )

    async def aclose(self) -> None:
        self._closed = True
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._fail_all(RetryableError("the engine was closed while requests were waiting"))

    def _room(self, prompt_ids: Sequence[int]) -> int:
        if self._closed:
            raise RetryableError("the engine is closed")
        if self._death is not None:
            raise again(self._death)
        return prompt_room(prompt_ids, context=self.max_model_len, vocabulary=self._runner.vocabulary_size)

    def _enqueue(self, request: _Request | _Options) -> None:
        self._requests += 1
        self._waiting.append(request)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())
            self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._death = RetryableError(f"the engine died: {type(error).__name__}: {error}")
            self._death.__cause__ = error
            self._fail_all(self._death)

    async def _run(self) -> None:
        while self._waiting or self._rows:
            self._admit()
            if self._rows:
                self._decode()
            await asyncio.sleep(0)  # finished callers run, and may ask again, before the next step

    def _admit(self) -> None:
        while self._waiting:
            request = self._waiting[0]
            if isinstance(request, _Request) and not self._fits(request):
                return
            self._waiting.popleft()
            if request.done.done():  # its caller is gone
                continue
            try:
                if isinstance(request, _Request):
                    self._start(request)
                else:
                    log_probs = self._prefill(request.prompt, spare_rows=1).float().log_softmax(dim=-1)
                    values = [float(log_probs[option]) for option in request.options]
                    check_finite(values)
                    request.done.set_result(values)
            except (StageError, RuntimeError) as error:
                _fail(request.done, error)
            except Exception as error:
                _fail(request.done, error)  # the engine dies, and this request is in no list any more
                raise

    def _fits(self, request: _Request) -> bool:
        """Whether the slab may grow for it; alone, any request may run."""
        rows = len(self._rows) + request.rows
        width = max([request.width, *(row.request.width for row in self._rows)])
        return not self._rows or rows * width <= self._max_batch_tokens

    def _start(self, request: _Request) -> None:
        logits_V = self._prefill(request.prompt, spare_rows=request.rows)
        first = len(self._rows)
        rows = [_Row(request=request, index=i, rng=random.Random(seed)) for i, seed in enumerate(request.params.seeds)]
        self._runner.slab.fork(first, range(first + 1, first + len(rows)), len(request.prompt))
        self._cached += (len(rows) - 1) * len(request.prompt)
        self._rows += rows
        self._extend(rows, logits_V[None].expand(len(rows), -1))

    def _prefill(self, prompt: tuple[int, ...], *, spare_rows: int) -> torch.Tensor:
        """Logits [V] after the prompt, whose keys and values then stand in the first free row."""
        row, slab = len(self._rows), self._runner.slab
        slab.reserve(row + spare_rows, len(prompt) + 1)
        known = 0
        for block in self._prefix.match(prompt[:-1]):  # the last token is always computed: its logits are wanted
            slab.write(row, known, block)
            known += block.shape[3]
        logits_V = self._runner.prefill(prompt[known:], row=row, start=known)
        self._computed += len(prompt) - known
        self._cached += known
        self._prefix.insert(prompt, slab, row)
        return logits_V

    def _decode(self) -> None:
        rows = list(self._rows)
        self._runner.slab.reserve(len(rows), max(row.position for row in rows) + 1)
        try:
            logits_BV = self._runner.decode([r.token_ids[-1] for r in rows], [r.position for r in rows])
        except RuntimeError as error:
            self._rows.clear()
            self.reset_prefix_cache()
            for request in {row.request for row in rows}:
                _fail(request.done, error)
            return
        self._extend(rows, logits_BV)

    def _extend(self, rows: list[_Row], logits_BV: torch.Tensor) -> None:
        """Sample one token for each row; finished rows leave the batch."""
        token_ids, logprobs = sample_tokens(
            logits_BV,
            temperature=[row.request.params.temperature for row in rows],
            top_p=[row.request.params.top_p for row in rows],
            uniform=[row.rng.random() for row in rows],
        )
        for row, token_id, logprob in zip(rows, token_ids, logprobs, strict=True):
            request = row.request
            if token_id < 0:
                _fail(request.done, PermanentError(NOT_FINITE))
            if request.done.done():  # failed, or its caller is gone
                self._leave(row)
                continue
            self._decoded += 1
            row.token_ids.append(token_id)
            row.logprobs.append(logprob)
            stops = request.params.stop_token_ids or self._runner.eos_token_ids
            if token_id in stops:
                self._finish(row, "stop")
            elif len(row.token_ids) == request.max_tokens:
                self._finish(row, "length")

    def _finish(self, row: _Row, reason: FinishReason) -> None:
        request = row.request
        self._prefix.insert((*request.prompt, *row.token_ids[:-1]), self._runner.slab, self._rows.index(row))
        self._leave(row)
        request.completions[row.index] = Completion(
            token_ids=tuple(row.token_ids), logprobs=tuple(row.logprobs), finish_reason=reason
        )
        if len(request.completions) == request.rows:
            request.done.set_result([request.completions[i] for i in range(request.rows)])

    def _leave(self, row: _Row) -> None:
        """Free the row's place; the last row moves into it, so rows stay dense."""
        at, last = self._rows.index(row), len(self._rows) - 1
        if at != last:
            self._runner.slab.fork(last, [at], self._rows[last].position + 1)
            self._rows[at] = self._rows[last]
        self._rows.pop()

    def _fail_all(self, error: RetryableError) -> None:
        for request in [*self._waiting, *(row.request for row in self._rows)]:
            _fail(request.done, again(error))
        self._waiting.clear()
        self._rows.clear()


def again(error: RetryableError) -> RetryableError:
    """The same error for another caller: an instance that is raised twice carries both tracebacks."""
    copy = RetryableError(str(error))
    copy.__cause__ = error.__cause__
    return copy


def _fail(done: asyncio.Future[Any], error: Exception) -> None:
    """Hand an error to a waiting caller; torch's own errors (memory, device) may pass with time."""
    if done.done():
        return
    if not isinstance(error, StageError):
        failure = RetryableError(f"the engine failed: {type(error).__name__}: {str(error).splitlines()[0][:300]}")
        failure.__cause__ = error
        error = failure
    done.set_exception(error)
