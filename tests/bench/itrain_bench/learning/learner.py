"""The product's parts without its stages: SFT, perplexity, search and SimPO on one model, adapters as folders."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itrain_contract.spec import AdapterSpec
from itrain_contract.stagespec import RolloutStage, TrainStage
from itrain_pipeline.data.rendering import Renderer
from itrain_pipeline.engine import open_engine
from itrain_pipeline.evals.devset import judge_dev
from itrain_pipeline.learn.adapter import adapter_sha256, continue_adapter
from itrain_pipeline.learn.collate import length_mask, pad_right
from itrain_pipeline.learn.fitting import fit_job
from itrain_pipeline.learn.job import Optimisation, TrainJob, write_rows
from itrain_pipeline.learn.loading import load_model
from itrain_pipeline.learn.order import count_steps, plan_batches, plan_tree_order
from itrain_pipeline.learn.perplexity import CPU_BATCH_TOKENS, plan_token_batches, score_batch
from itrain_pipeline.ports import SamplingParams
from itrain_pipeline.records import Example, ScoredExample
from itrain_pipeline.search.budget import Budget
from itrain_pipeline.search.forest import Forest
from itrain_pipeline.search.order import neighbours
from itrain_pipeline.search.sample import SampleSearch, SearchedSample
from itrain_pipeline.stages.rollout import Pace, build_language
from itrain_pipeline.stages.train import Pairs, job_rows, loss_settings
from itrain_pipeline.toolcalls.parse import parse

MICRO_ROWS = 4
MODEL_LEN = 2048
NEVER = 1_000_000
"""Steps between two checkpoints: nothing here is resumed in the middle of a training."""
WARMUP_RATIO = 0.1
ANSWER_TOKENS = 128
OTHER_FORM = "other_form"
"""Right calls in other tokens than the truth's; the bench counts them as wrong."""


class NoStop:
    """Neither a stage's stop signal nor a supervisor that asks to stop."""

    def is_set(self) -> bool:
        return False

    def should_stop(self) -> bool:
        return False

    def report(self, step: int, total: int, text: str) -> None:
        pass

    def saved(self, folder: Path, step: int) -> None:
        pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """One model, one seed. An adapter None is the bare model."""

    model: Path
    renderer: Renderer
    adapter: AdapterSpec
    seed: int
    batch: int
    """Rows or pairs of an optimiser step."""

    def sft(
        self, examples: Sequence[Example], order: Sequence[int], *, rate: float, before: Path | None, folder: Path
    ) -> Path:
        """An adapter trained on the rows in this order, `batch` of them a step."""
        rows = [(example.prompt_ids, example.answer_ids) for example in examples]
        return self._fit("sft", rows, order, rate=rate, before=before, folder=folder)

    def simpo(self, pairs: Pairs, stage: TrainStage, *, before: Path | None, folder: Path) -> Path:
        """An adapter trained on the pairs as the train stage does it, `stage.max_steps` steps."""
        rows, trees = job_rows(pairs)
        order = plan_tree_order(
            trees, epochs=stage.epochs, max_steps=stage.max_steps, global_batch=self.batch, seed=self.seed
        )
        return self._fit(
            "simpo",
            rows,
            order,
            rate=stage.learning_rate,
            before=before,
            folder=folder,
            trees=trees,
            loss=loss_settings(stage, pairs),
            form=stage.rows,
        )

    def _fit(
        self,
        kind: Any,
        rows: Sequence[Any],
        order: Sequence[int],
        *,
        rate: float,
        before: Path | None,
        folder: Path,
        **more: Any,
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        plan = plan_batches(global_batch=self.batch, micro_batch=MICRO_ROWS, processes=1)
        job = TrainJob(
            kind=kind,
            model=self.model,
            adapter=before,
            adapter_spec=self.adapter,
            rows=write_rows(folder / "rows.jsonl", rows),
            order=tuple(order),
            folder=folder / "train",
            how=Optimisation(
                learning_rate=rate,
                warmup_ratio=WARMUP_RATIO,
                schedule="cosine",
                checkpoint_steps=NEVER,
                seed=self.seed,
                precision="fp32",
                on_cpu=True,
                plan=plan,
                steps=count_steps(len(order), self.batch),
            ),
            **more,
        )
        return fit_job(job, NoStop()).adapter

    def loaded(self, adapter: Path | None) -> Any:
        base = load_model(self.model, precision="fp32", device="cpu")
        return base if adapter is None else continue_adapter(base, adapter, trainable=False)

    def score(self, adapter: Path | None, examples: Sequence[Example]) -> list[ScoredExample]:
        """The perplexity of every row; a row without a finite one fails the bench."""
        import torch

        model = self.loaded(adapter)
        found: list[ScoredExample] = []
        with torch.inference_mode():
            for batch in plan_token_batches(examples, CPU_BATCH_TOKENS):
                scored = score_batch(model, batch)
                if scored.not_finite:
                    raise AssertionError(f"rows without a finite perplexity: {scored.not_finite}")
                found += scored.rows
        return found

    def right(self, adapter: Path | None, examples: Sequence[Example]) -> list[bool]:
        """Whether greedy decoding gives the truth's own tokens, up to the end of the turn.

        It does where every token of the truth is the likeliest one behind those before it: one forward pass.
        """
        import torch

        model = self.loaded(adapter)
        found: dict[str, bool] = {}
        with torch.inference_mode():
            for batch in plan_token_batches(examples, CPU_BATCH_TOKENS):
                ids = [(*e.prompt_ids, *e.answer_ids) for e in batch]
                ids_BT = pad_right(ids, 0)
                best_BT = model(input_ids=ids_BT, attention_mask=length_mask(ids), use_cache=False).logits.argmax(-1)
                for example, best_T in zip(batch, best_BT.tolist(), strict=True):
                    start, stop = len(example.prompt_ids) - 1, len(example.prompt_ids) + len(example.answer_ids) - 1
                    found[example.id] = tuple(best_T[start:stop]) == example.answer_ids
        return [found[example.id] for example in examples]

    def errors(self, adapter: Path | None, examples: Sequence[Example]) -> dict[str, int]:
        """How many of these tasks are answered wrongly in which way: greedy answers, the report's error classes."""
        return asyncio.run(self._errors(adapter, examples))

    async def _errors(self, adapter: Path | None, examples: Sequence[Example]) -> dict[str, int]:
        engine = open_engine("transformers", self.model, dtype="fp32", max_model_len=MODEL_LEN)
        engine.load_adapter("judged", adapter)
        params = SamplingParams(
            seeds=(0,), max_tokens=ANSWER_TOKENS, temperature=0.0, stop_token_ids=(self.renderer.end_of_turn_id,)
        )
        try:
            done = await asyncio.gather(*(engine.generate(example.prompt_ids, params) for example in examples))
        finally:
            await engine.aclose()
        found: Counter[str] = Counter()
        for example, (completion,) in zip(examples, done, strict=True):
            answer = parse(self.renderer.answer_text(completion.token_ids), "pythonic")
            judgement = judge_dev(example, answer)
            found[judgement.error_class or OTHER_FORM] += 1
        return dict(found)

    def search(
        self, examples: Sequence[Example], settings: RolloutStage, *, adapter: Path | None, iteration: int
    ) -> tuple[list[SearchedSample], int]:
        """The forest as the rollout stage grows it, in the samples' order, and the tokens that were decoded for it."""
        return asyncio.run(self._search(examples, settings, adapter, iteration))

    async def _search(
        self, examples: Sequence[Example], settings: RolloutStage, adapter: Path | None, iteration: int
    ) -> tuple[list[SearchedSample], int]:
        engine = open_engine("transformers", self.model, dtype="fp32", max_model_len=MODEL_LEN)
        engine.load_adapter(f"iteration-{iteration}", adapter)
        ordered = neighbours(examples)
        search = SampleSearch(
            settings=settings,
            engine=engine,
            language=build_language(self.model, self.renderer, "pythonic", settings),
            run_seed=self.seed,
            iteration=iteration,
            adapter_sha256="" if adapter is None else adapter_sha256(adapter),
            template_sha256=self.renderer.template_sha256,
            budget=Budget([example.id for example in ordered]),
        )
        found: dict[str, SearchedSample] = {}

        def finished(example: Example, sample: SearchedSample) -> None:
            found[example.id] = sample

        forest: Forest[Example, SearchedSample] = Forest(
            search.run, in_flight=Pace(search, ordered), max_failed=0, stats=search.stats, stop=NoStop()
        )
        try:
            await forest.grow(ordered, on_result=finished)
            return [found[name] for name in sorted(found)], engine.counters().decoded
        finally:
            await engine.aclose()


def shuffled(rows: int, steps: int, batch: int, seed: str) -> tuple[int, ...]:
    """Row indexes for `steps` whole batches: every row once before any row again, in a new order for each pass."""
    rng = random.Random(seed)
    order: list[int] = []
    while len(order) < steps * batch:
        order += rng.sample(range(rows), rows)
    return tuple(order[: steps * batch])
