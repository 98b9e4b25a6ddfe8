"""What asking costs on one of our engines: items side by side or one at a time, prefixes known or not.

The same items, model, engine, threads and length of answers for every arm, each from a cold cache.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from itrain_bench.evaluate.correct import Figures
from itrain_bench.search.engines import BenchEngine, open_bench_engine
from itrain_pipeline.evals.asking import Failure, ask_all
from itrain_pipeline.evals.benchmark import Benchmark, Item
from itrain_pipeline.evals.bfcl import Bfcl, load_items
from itrain_pipeline.evals.bfcl_dialogues import load_dialogues
from itrain_pipeline.evals.questions import Question, build_questions
from itrain_pipeline.quickstart import model_path
from itrain_pipeline.records import Prediction
from itrain_pipeline.stages.evaluate import BATCH, Asker, shows_results
from itrain_pipeline.stages.rendered import load_renderer, stop_token_ids
from itrain_pipeline.toolcalls.parse import parse
from itrain_testing.stageports import Silent

Say = Callable[[str], None]
ARMS = {
    "": (BATCH, True),
    "_uncached": (BATCH, False),
    "_unbatched": (1, True),
    "_unbatched_uncached": (1, False),
}
"""By the end of a key: items side by side, and whether prefixes are remembered from one request to another."""
MODEL_LEN = 16_384
ANSWER_TOKENS = 32
CATEGORY, DIALOGUES = "simple_python", "multi_turn_base"


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    items: int
    dialogues: int
    """Those of `multi_turn_base` with the shortest list of tools; 0 leaves them out."""
    dialogue_arms: tuple[str, ...] = tuple(ARMS)
    official_dialogues: int = 0
    """Asked by the official runner and by ours; its prompts are three times as long."""


def speed_figures(kind: str, size: Size, *, threads: int, say: Say) -> Figures:
    """Keys without a prefix are the transformers engine's, `vllm_…` vLLM's; `dialogue_…` of dialogues."""
    return asyncio.run(_measured(kind, size, threads, say))


async def _measured(kind: str, size: Size, threads: int, say: Say) -> Figures:
    engine = open_bench_engine(kind, model_path(), threads=threads, max_model_len=MODEL_LEN)
    renderer = load_renderer(model_path(), "pythonic", trust_remote_code=False)
    asker = Asker(
        engine=engine,
        renderer=renderer,
        read=functools.partial(parse, call_format="pythonic"),
        max_new_tokens=ANSWER_TOKENS,
        stop_ids=stop_token_ids(model_path(), renderer),
        results=shows_results(renderer),
    )
    before = "" if kind == "transformers" else f"{kind}_"
    figures: Figures = {}
    try:
        single = build_all(Bfcl(questions=load_items([CATEGORY], size.items)), asker)
        await run_arm(asker, engine, single[:2], *ARMS[""])  # warm
        figures |= await _arms(asker, engine, single, before, say)
        if size.dialogues:
            held = build_all(Bfcl(questions=(), dialogues=shortest(size.dialogues)), asker)
            figures |= await _arms(asker, engine, held, f"{before}dialogue_", say, size.dialogue_arms)
    finally:
        await engine.aclose()
    return figures


def shortest(count: int) -> list[Item]:
    return sorted(load_dialogues([DIALOGUES]), key=lambda item: len(str(item.tools)))[:count]


def build_all(benchmark: Benchmark, asker: Asker) -> list[Question]:
    return build_questions(benchmark, benchmark.items(), asker.renderer)


async def _arms(
    asker: Asker,
    engine: BenchEngine,
    questions: Sequence[Question],
    before: str,
    say: Say,
    arms: Sequence[str] = tuple(ARMS),
) -> Figures:
    figures: Figures = {f"{before}items": len(questions)}
    answers: dict[str, list[str]] = {}
    for end in arms:
        answers[end], seconds = await run_arm(asker, engine, questions, *ARMS[end])
        spent = engine.spent()
        figures[f"{before}items_per_s{end}"] = len(questions) / seconds
        figures[f"{before}tokens_per_item{end}"] = spent.tokens / len(questions)
        figures[f"{before}requests"] = spent.requests
        if spent.computed + spent.cached != spent.prompt_tokens:
            raise RuntimeError(f"{before}{end}: {spent.computed} + {spent.cached} is not {spent.prompt_tokens}")
        say(f"{before}items{end}: {len(questions)} in {seconds:.1f} s, {spent.tokens / len(questions):.0f} tokens each")
    figures[f"{before}prompt_tokens_per_item"] = spent.prompt_tokens / len(questions)
    first, *others = answers.values()
    figures[f"{before}answers_that_differ"] = sum(a != b for other in others for a, b in zip(first, other, strict=True))
    return figures


async def run_arm(
    asker: Asker, engine: BenchEngine, questions: Sequence[Question], side_by_side: int, remember: bool
) -> tuple[list[str], float]:
    """(outputs in the questions' order, seconds)."""
    engine.begin(remember=remember)
    found: dict[str, str] = {}

    def keep(one: Prediction | Failure) -> None:
        assert isinstance(one, Prediction)
        found[one.id] = one.output

    begun = time.perf_counter()
    await ask_all(questions, lambda q: asker.ask(q, "base"), keep, concurrency=side_by_side, stop=Silent(), patience=1)
    seconds = time.perf_counter() - begun
    return [found[question.id] for question in questions], seconds
