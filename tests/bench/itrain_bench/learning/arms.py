"""The arms of one seed, all with the same steps and rows a step; each gives its answers to the test set."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from itrain_bench.learning.learner import Learner, shuffled
from itrain_contract.stagespec import RolloutStage, ScoreStage, TrainStage
from itrain_pipeline.data.selection import select_hardest
from itrain_pipeline.learn.order import plan_order
from itrain_pipeline.records import Example, ScoredExample
from itrain_pipeline.stages.train import fitting_rows

BUCKETS: Final = ("easy", "medium", "hard")
SEARCHES: Final = {"iteration": "mcts", "best_of_n": "bestOfN", "no_search": "firstDivergence"}
"""Arms that train on pairs: the method that makes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Optimiser steps of the warm-up and of each iteration, and how many iterations there are."""

    warmup: int
    iteration: int
    iterations: int

    @property
    def total(self) -> int:
        return self.warmup + self.iteration * self.iterations


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """What all arms share, and the stages' own settings."""

    steps: Steps
    sft_rate: float
    score: ScoreStage
    rollout: RolloutStage
    train: TrainStage


@dataclass(slots=True, kw_only=True)
class Seed:
    """The arms of one seed; what an arm found is kept in `folder`, and not computed again."""

    learner: Learner
    method: Method
    pool: Sequence[Example]
    test: Sequence[Example]
    folder: Path
    say: Callable[[str], None]
    scored: dict[Path, list[ScoredExample]] = field(default_factory=dict)
    """Of the warm-up, where several arms begin."""

    def run(self) -> dict[str, dict[str, Any]]:
        """By arm: `right` [tasks], `errors` by class, and of arms with pairs how many, of how many trees."""
        steps, rows = self.method.steps, len(self.pool)
        found = {"warmup": self.warmup()}
        before = Path(found["warmup"]["adapter"])
        found |= self._iterate("hard_sft", before, self._hard_sft)
        found |= self._searched_arm("iteration", before)
        for name, count in (("more_sft", steps.total), ("sft", steps.warmup)):
            order = shuffled(rows, count, self.learner.batch, f"{self.learner.seed}/sft")
            found[name] = self._judged(
                name, lambda folder, order=order: (self._sft(self.pool, order, None, folder), {})
            )
        found["base"] = self._judged("base", lambda folder: (None, {}))
        for arm in ("no_search", "best_of_n"):
            found |= self._searched_arm(arm, before, iterations=1)
        return found

    def warmup(self) -> dict[str, Any]:
        return self._judged("warmup", lambda folder: (self._warm_up(folder), {}))

    def variant(self, name: str, method: Method, before: Path) -> dict[str, Any]:
        """One iteration behind the warm-up `before`, with other settings than this seed's."""
        self.method = method
        return self._search_with(method.rollout, name, before, 1)[f"{name}_1"]

    def _searched_arm(self, arm: str, before: Path, iterations: int = 0) -> dict[str, dict[str, Any]]:
        settings = self.method.rollout.model_copy(update={"method": SEARCHES[arm]})
        return self._search_with(settings, arm, before, iterations)

    def _search_with(
        self, settings: RolloutStage, arm: str, before: Path, iterations: int
    ) -> dict[str, dict[str, Any]]:
        return self._iterate(arm, before, lambda *given: self._searched(settings, *given), iterations)

    def _iterate(
        self,
        arm: str,
        adapter: Path,
        train: Callable[[int, Path, list[Example], Path], tuple[Path, dict[str, Any]]],
        iterations: int = 0,
    ) -> dict[str, dict[str, Any]]:
        """Score all rows, train on the hardest, `iterations` times (0: as often as the method iterates)."""
        found: dict[str, dict[str, Any]] = {}
        for iteration in range(1, (iterations or self.method.steps.iterations) + 1):

            def one(folder: Path, iteration: int = iteration, before: Path = adapter) -> tuple[Path, dict[str, Any]]:
                hardest = self._hardest(before)
                after, more = train(iteration, before, hardest, folder)
                return after, {"trees": len(hardest), **more}

            name = f"{arm}_{iteration}"
            found[name] = self._judged(name, one)
            adapter = Path(found[name]["adapter"])
        return found

    def _hardest(self, adapter: Path) -> list[Example]:
        stage = self.method.score
        if adapter not in self.scored:
            self.scored[adapter] = self.learner.score(adapter, self.pool)
        chosen = select_hardest(self.scored[adapter], stage.fraction, stratify=stage.stratify)
        by_id = {example.id: example for example in self.pool}
        return [by_id[name] for name in chosen.ids]

    def _warm_up(self, folder: Path) -> Path:
        """The curriculum, as the warm-up stage orders it."""
        rows = [example for bucket in BUCKETS for example in self.pool if example.bucket == bucket]
        order = plan_order(
            [sum(example.bucket == bucket for example in rows) for bucket in BUCKETS],
            epochs=1,
            max_steps=self.method.steps.warmup,
            global_batch=self.learner.batch,
            seed=self.learner.seed,
        )
        return self._sft(rows, order, None, folder)

    def _hard_sft(
        self, iteration: int, before: Path, hardest: list[Example], folder: Path
    ) -> tuple[Path, dict[str, Any]]:
        """No search: the hardest rows' own answers."""
        batch = self.learner.batch
        order = shuffled(len(hardest), self.method.steps.iteration, batch, f"{self.learner.seed}/hard/{iteration}")
        return self._sft(hardest, order, before, folder), {}

    def _searched(
        self, settings: RolloutStage, iteration: int, before: Path, hardest: list[Example], folder: Path
    ) -> tuple[Path, dict[str, Any]]:
        searched, decoded = self.learner.search(hardest, settings, adapter=before, iteration=iteration)
        pairs = [pair for sample in searched for pair in sample.pairs]
        stage = self.method.train
        taught = {example.id: example for example in hardest} if stage.answer_nll_weight else {}
        missed = [sample.record.sample_id for sample in searched if sample.record.reached is False]
        told = {
            "pairs": len(pairs),
            "decoded": decoded,
            "sampled": sum(bool(sample.pairs) for sample in searched),
            "missed": len(missed),
        }
        rows = fitting_rows(pairs, missed if taught and stage.answers == "missed" else [], taught, stage.max_length)
        if not rows.fitting and not rows.missed:
            return before, told
        return self.learner.simpo(rows, stage, before=before, folder=folder), told

    def _sft(self, rows: Sequence[Example], order: Sequence[int], before: Path | None, folder: Path) -> Path:
        return self.learner.sft(rows, order, rate=self.method.sft_rate, before=before, folder=folder)

    def _judged(self, arm: str, make: Callable[[Path], tuple[Path | None, dict[str, Any]]]) -> dict[str, Any]:
        """What is kept of the arm, or the arm itself: trained, asked the test set, and kept."""
        folder = self.folder / arm
        kept = folder / "found.json"
        if kept.is_file():
            return json.loads(kept.read_text())
        folder.mkdir(parents=True, exist_ok=True)
        adapter, more = make(folder)
        right = self.learner.right(adapter, self.test)
        wrong = [example for example, hit in zip(self.test, right, strict=True) if not hit]
        found = {"adapter": str(adapter or ""), "right": right, "errors": self.learner.errors(adapter, wrong), **more}
        kept.write_text(json.dumps(found))
        self.say(f"seed {self.learner.seed} {arm}: {100 * sum(right) / len(right):.1f} % {more or ''}")
        return found
