"""Whether a tree costs the same among 10 and among 10,000, and what the forest keeps in memory meanwhile."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import Sequence

from itrain_bench.controller.usage import rss_mib
from itrain_bench.search.arms import RUN_SEED, Model, NoStop, rollout_settings, run_ours
from itrain_bench.search.engines import BenchEngine
from itrain_bench.search.samples import toolworld_calls
from itrain_pipeline.ports import Completion, SamplingParams
from itrain_pipeline.records import Example
from itrain_pipeline.search.budget import Budget
from itrain_pipeline.search.forest import Forest
from itrain_pipeline.search.sample import SampleSearch, SearchedSample
from itrain_pipeline.stages.rollout import Pace
from itrain_testing.releasedstub import StubEngine, StubTokens, stub_examples

PROMPT_TOKENS = 200


class QuietStub(StubEngine):
    """Keeps no list of what was asked: its memory is not the forest's. Answers come a moment later, as real ones do."""

    requests = 0

    async def generate(self, prompt_ids: Sequence[int], params: SamplingParams) -> list[Completion]:
        done = await super().generate(prompt_ids, params)
        self.asked.clear()
        self.requests += 1
        await asyncio.sleep(0)
        return done


async def scale_scripted(trees: int) -> dict[str, float]:
    """The forest on a scripted engine: its own CPU time and memory, which a model's would hide."""
    tokens = StubTokens()
    examples = stub_examples(tokens, trees, prompt_tokens=PROMPT_TOKENS, spread=0.0)
    engine = QuietStub(tokens=tokens, examples=examples)
    language = dataclasses.replace(
        tokens.language(), cut=lambda ids: tuple(ids[n : n + 5] for n in range(0, len(ids), 5))
    )
    settings = rollout_settings()
    search = SampleSearch(
        settings=settings,
        engine=engine,
        language=language,
        run_seed=RUN_SEED,
        iteration=1,
        adapter_sha256="",
        template_sha256="",
        budget=Budget([example.id for example in examples]),
    )
    before, most, pairs = rss_mib(os.getpid()), 0.0, 0
    kept: list[SearchedSample] = []

    def finished(_: Example, sample: SearchedSample) -> None:
        nonlocal most, pairs
        kept.append(sample)  # as the stage does, which writes them in the end
        pairs += len(sample.pairs)
        if len(kept) % 20 == 0 or len(kept) == trees:
            most = max(most, rss_mib(os.getpid()))

    forest = Forest(search.run, in_flight=Pace(search, examples), max_failed=0, stats=search.stats, stop=NoStop())
    begun = time.process_time()
    await forest.grow(examples, on_result=finished)
    cpu_s = time.process_time() - begun
    return {
        "cpu_ms_per_tree": 1000 * cpu_s / trees,
        "requests_per_tree": engine.requests / trees,
        "decoded_per_tree": engine.decoded / trees,
        "pairs": pairs,
        "rss_growth_mib": max(most - before, 0.0),
        "most_in_flight": search.stats.most_in_flight,
        "lost_trees": trees - len(kept),
    }


async def scale_model(engine: BenchEngine, model: Model, trees: int) -> dict[str, float]:
    """The forest on the model: tokens, requests and seconds of a tree."""
    examples = toolworld_calls(model.renderer, trees, PROMPT_TOKENS)
    most = rss_mib(os.getpid())

    def seen(_: SearchedSample) -> None:
        nonlocal most
        most = max(most, rss_mib(os.getpid()))

    figures = (await run_ours(engine, model, examples, seen=seen)).figures()
    told = ("engine_tokens_per_tree", "tokens_over_limit", "requests_per_tree", "wall_s_per_tree", "lost_trees")
    return {**{name: figures[name] for name in told}, "rss_mib": most}
