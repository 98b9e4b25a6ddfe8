"""How fast this machine is with a model: an engine, a scoring pass and a training step, a few seconds each.

The figures are of random token ids of one length: speed does not depend on what they say.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from itrain_contract.measurements import DecodeRate, EngineProfile, Rates
from itrain_contract.spec import AdapterSpec
from itrain_pipeline.data.rendering import Renderer
from itrain_pipeline.data.toolworld import generate_tasks
from itrain_pipeline.engine import EngineKind, open_engine
from itrain_pipeline.errors import Interrupted
from itrain_pipeline.learn.precision import ChosenPrecision, PrecisionName
from itrain_pipeline.ports import Engine, SamplingParams
from itrain_pipeline.profiling_start import Start, measured_start
from itrain_pipeline.records import Example, Message

DECODE_ROWS = (1, 12, 48, 96)
"""Sequences decoded together; requests of three, as the search asks for."""
FORKS = 3
ANSWER_TOKENS = 40
MICRO_BATCH = 2
ROWS_RENDERED = 100
SEED = 1
MOST_STEPS = 500
"""Of the training that is timed, however short they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileSettings:
    model: Path
    name: str
    engine: EngineKind = "auto"
    precision: PrecisionName = "auto"
    prompt_tokens: int = 800
    seconds: float = 4.0
    """Least time of each measurement."""
    threads: tuple[int, ...] = ()
    """On a CPU: the numbers of threads to measure with; empty measures with what torch takes."""


def measure_profile(settings: ProfileSettings) -> EngineProfile:
    """Load the model as an engine, to score and to train, and time each. Raises what loading raises."""
    import torch

    from itrain_pipeline.learn.loading import load_tokenizer
    from itrain_pipeline.learn.precision import choose_precision, detect_device

    device = detect_device()
    precision = choose_precision(settings.precision, device)
    engine = open_engine(settings.engine, settings.model, dtype=precision)
    tokenizer: Any = load_tokenizer(settings.model)
    threads = settings.threads or (torch.get_num_threads(),)
    learner = Learner(settings.model, precision)
    rates = []
    with asyncio.Runner() as runner:  # one event loop: the engine's own task lives in it
        for count in sorted(threads):
            torch.set_num_threads(count)
            prefill, decode = runner.run(
                engine_rates(engine, settings, vocabulary=len(tokenizer), never=never_said(tokenizer))
            )
            rows = token_rows(settings, vocabulary=len(tokenizer))
            rates.append(
                Rates(
                    threads=count if device.kind == "cpu" else None,
                    prefill_tokens_per_s=prefill,
                    decode=decode,
                    score_tokens_per_s=learner.score_rate(rows, settings.seconds),
                    train_tokens_per_s=train_rate(settings, rows, precision),
                )
            )
        runner.run(engine.aclose())
    starts = {
        kind: measured_start(kind, settings.model, engine=settings.engine, precision=precision)
        for kind in get_args(Start)
    }
    day = datetime.now(UTC).strftime("%Y-%m-%d")
    return EngineProfile(
        name=settings.name,
        model=settings.model.name,
        device=device.name,
        precision=precision,
        source="measured",
        how=f"python -m itrain_pipeline profile, {settings.engine} engine, prompts of {settings.prompt_tokens} tokens, "
        f"the fastest of {settings.seconds:g} s a figure, {day}",
        rates=tuple(rates if device.kind == "cpu" else rates[-1:]),
        start_s=starts["engine"],
        train_start_s=starts["train"],
        prepare_start_s=starts["prepare"],
        prefix_block_tokens=16 if settings.engine == "vllm" else 1,
        prepare_rows_per_s=rendering_rate(tokenizer),
        export_s=learner.export_seconds(),
    )


def token_rows(settings: ProfileSettings, *, vocabulary: int, count: int = 64) -> list[Example]:
    """Examples of random ids, prompt and answer of one length each."""
    rng = random.Random(SEED)
    low = min(16, vocabulary - 1)
    return [
        Example(
            id=str(number),
            messages=(),
            tools=(),
            answer="",
            calls=(),
            bucket="easy",
            source="profile",
            prompt_ids=tuple(rng.randrange(low, vocabulary) for _ in range(settings.prompt_tokens)),
            answer_ids=tuple(rng.randrange(low, vocabulary) for _ in range(ANSWER_TOKENS)),
        )
        for number in range(count)
    ]


async def engine_rates(
    engine: Engine, settings: ProfileSettings, *, vocabulary: int, never: int
) -> tuple[float, tuple[DecodeRate, ...]]:
    """Prefilled tokens a second, and decoded ones by the sequences that are decoded together.

    `never` is the token that ends a sequence: one that the model hardly samples, so that sequences reach their length.
    """
    rows = token_rows(settings, vocabulary=vocabulary, count=max(DECODE_ROWS))
    await _ask(engine, rows[:1], forks=1, tokens=1, never=never)  # warm

    async def prefilled() -> float:
        engine.reset_prefix_cache()
        before = engine.counters().prefill_computed
        for row in rows[:8]:
            await _ask(engine, [row], forks=1, tokens=1, never=never)
        return engine.counters().prefill_computed - before

    prefill = await _rate(prefilled, settings.seconds)
    found = []
    for count in DECODE_ROWS:
        forks = min(count, FORKS)
        engine.reset_prefix_cache()
        for row in rows[: count // forks]:
            await _ask(engine, [row], forks=1, tokens=1, never=never)  # known: decoding is timed

        async def decoded(forks: int = forks, asked: int = count // forks) -> float:
            before = engine.counters().decoded
            await _ask(engine, rows[:asked], forks=forks, tokens=ANSWER_TOKENS, never=never)
            return engine.counters().decoded - before

        found.append(DecodeRate(rows=count, tokens_per_s=await _rate(decoded, settings.seconds)))
    return prefill, tuple(found)


def never_said(tokenizer: Any) -> int:
    """The padding token, or the first one: engines refuse to stop at a token that is not in the vocabulary."""
    return int(tokenizer.pad_token_id or 0)


async def _ask(engine: Engine, rows: Sequence[Example], *, forks: int, tokens: int, never: int) -> None:
    params = SamplingParams(seeds=tuple(range(forks)), max_tokens=tokens, temperature=1.0, stop_token_ids=(never,))
    await asyncio.gather(*(engine.generate(row.prompt_ids, params) for row in rows))


async def _rate(work: Callable[[], Any], seconds: float) -> float:
    """Tokens a second of a coroutine function that returns its tokens: the fastest of its repetitions, as other work on
    the machine only slows. Repeated for at least `seconds`."""
    until, best = time.perf_counter() + seconds, 0.0
    while not best or time.perf_counter() < until:
        begun = time.perf_counter()
        tokens = await work()
        best = max(best, tokens / (time.perf_counter() - begun))
    return best


def rendering_rate(tokenizer: Any) -> float:
    """Rows of the built-in tool world a second, from messages to token ids: what prepare mostly does."""
    renderer = Renderer(tokenizer, "pythonic")
    tasks = list(generate_tasks("train", ROWS_RENDERED, SEED))
    begun = time.perf_counter()
    for task in tasks:
        turn = task.turns[0]
        renderer.prompt_ids((Message(role="user", content=turn.query),), task.tools)
        renderer.answer_ids(turn.answer)
    return len(tasks) / (time.perf_counter() - begun)


def train_rate(settings: ProfileSettings, rows: Sequence[Example], precision: ChosenPrecision) -> float:
    """Tokens a second of the warm-up's own loop, a micro batch a step: the median of its steps behind the first."""
    ids = [(row.prompt_ids, row.answer_ids) for row in rows]
    with tempfile.TemporaryDirectory(prefix="itrain-profile-") as folder:
        steps = train_steps(settings.model, ids, precision=precision, folder=Path(folder), seconds=settings.seconds)
    return MICRO_BATCH * (settings.prompt_tokens + ANSWER_TOKENS) / statistics.median(steps)


def train_steps(
    model: Path,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    precision: Any,
    folder: Path,
    seconds: float,
) -> list[float]:
    """Seconds of each step of a training on the rows, over and over for `seconds`, the first step left out."""
    from itrain_pipeline.learn.fitting import fit_job
    from itrain_pipeline.learn.job import Optimisation, TrainJob, write_rows
    from itrain_pipeline.learn.order import BatchPlan
    from itrain_pipeline.learn.precision import detect_device

    clock = StepClock(seconds)
    order = tuple(number % len(rows) for number in range(MICRO_BATCH * MOST_STEPS))
    job = TrainJob(
        kind="sft",
        model=model,
        adapter=None,
        adapter_spec=AdapterSpec(),
        rows=write_rows(folder / "rows.jsonl", rows),
        order=order,
        folder=folder / "train",
        how=Optimisation(
            learning_rate=1e-9,
            warmup_ratio=0.0,
            schedule="constant",
            checkpoint_steps=MOST_STEPS,
            seed=SEED,
            precision=precision,
            on_cpu=detect_device().kind == "cpu",
            plan=BatchPlan(micro=MICRO_BATCH, accumulation=1, processes=1),
            steps=MOST_STEPS,
        ),
    )
    with contextlib.suppress(Interrupted):  # how this training ends
        fit_job(job, clock)
    return clock.steps


class StepClock:
    """A supervisor that notes when each step was reported, and asks to stop once two are and `seconds` are over."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._reported: list[float] = []

    @property
    def steps(self) -> list[float]:
        return [after - before for before, after in itertools.pairwise(self._reported)]

    def report(self, step: int, total: int, text: str) -> None:
        self._reported.append(time.perf_counter())

    def should_stop(self) -> bool:
        return len(self._reported) > 1 and self._reported[-1] - self._reported[0] >= self._seconds

    def saved(self, folder: Path, step: int) -> None:
        pass


class Learner:
    """The model with a fresh adapter, to score with and to export."""

    def __init__(self, folder: Path, precision: ChosenPrecision) -> None:
        from itrain_pipeline.learn.adapter import new_adapter
        from itrain_pipeline.learn.loading import load_model

        self._folder = folder
        self._model: Any = new_adapter(load_model(folder, precision=precision), AdapterSpec(), seed=SEED)

    def score_rate(self, rows: Sequence[Example], seconds: float) -> float:
        from itrain_pipeline.learn.perplexity import plan_token_batches, row_length, score_batch

        self._model.eval()
        batch = plan_token_batches(rows, 16_384)[0]
        return _timed(lambda: score_batch(self._model, batch), sum(map(row_length, batch)), seconds)

    def export_seconds(self) -> float:
        """Merging the adapter and writing the model; the model cannot be trained afterwards."""
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="itrain-profile-") as folder:
            self._model.merge_and_unload().save_pretrained(folder)
        return time.perf_counter() - begun


def _timed(work: Callable[[], Any], tokens: int, seconds: float) -> float:
    """Tokens a second of the fastest repetition; the first call, which warms up, is not counted."""
    work()
    until, best = time.perf_counter() + seconds, 0.0
    while not best or time.perf_counter() < until:
        begun = time.perf_counter()
        work()
        best = max(best, tokens / (time.perf_counter() - begun))
    return best
