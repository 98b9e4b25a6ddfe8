"""The figures of `make bench-learning`: sizes, seeds side by side, and what is summed up over them."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

from itrain_bench.learning.arms import Method, Seed, Steps
from itrain_bench.learning.learner import Learner
from itrain_bench.learning.stats import accuracy, paired_gain, standard_error
from itrain_bench.learning.tasks import HeldOut, make_pool, make_test, of_kind
from itrain_contract.spec import AdapterSpec
from itrain_contract.stagespec import RolloutStage, ScoreStage, TrainStage
from itrain_pipeline.data.rendering import Renderer
from itrain_pipeline.data.toolworld import Split
from itrain_pipeline.quickstart import model_path
from itrain_pipeline.stages.rendered import load_renderer

ONE_ITERATION = ("best_of_n", "no_search")
"""What makes pairs without a search, beside the first iteration with one."""
PLAIN = ("sft", "warmup", "more_sft")
"""Arms of plain fine-tuning; the best of them on the test set is the one to beat, chosen against ourselves."""
Right = Mapping[str, Sequence[Sequence[bool]]]
Figures = dict[str, float | int | str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """One bench; rates, batch and steps are the same for every arm."""

    seeds: tuple[int, ...]
    pool: int
    test: int
    warmup_steps: int
    iteration_steps: int
    iterations: int
    distractors: int = 0
    batch: int = 16
    sft_rate: float = 2e-3
    simpo_rate: float = 2e-3
    nll_weight: float = 0.0
    answer_nll_weight: float = 10.0
    beta: float = 2.5
    gamma: float = 0.5
    answers: Literal["pairs", "missed"] = "missed"
    pairs_per_tree: int = 2
    simulations: int = 5
    temperature: float = 1.0
    fraction: float = 0.10
    split: Split = "test"
    """`dev` is for trying settings: nothing is chosen on the test split."""

    def method(self) -> Method:
        return Method(
            steps=Steps(warmup=self.warmup_steps, iteration=self.iteration_steps, iterations=self.iterations),
            sft_rate=self.sft_rate,
            score=ScoreStage(fraction=self.fraction),
            rollout=RolloutStage(
                reward="rule",
                simulations=self.simulations,
                temperature=self.temperature,
                max_answer_tokens=128,
                pairs_per_tree=self.pairs_per_tree,
            ),
            train=TrainStage(
                learning_rate=self.simpo_rate,
                max_steps=self.iteration_steps,
                nll_weight=self.nll_weight,
                answer_nll_weight=self.answer_nll_weight,
                answers=self.answers,
                beta=self.beta,
                gamma=self.gamma,
                quantization="none",
                deepspeed="none",
            ),
        )


QUICK = Size(seeds=(1,), pool=1200, test=300, warmup_steps=30, iteration_steps=15, iterations=1)
FULL = Size(seeds=(1, 2, 3), pool=2400, test=1000, warmup_steps=60, iteration_steps=45, iterations=3)


Found = Mapping[str, Mapping[str, Any]]


def measure(size: Size, work: Path, *, jobs: int = 1) -> Figures:
    """All figures; `jobs` seeds at a time, in processes of one thread each, so that none depends on their number."""
    with ProcessPoolExecutor(min(jobs, len(size.seeds)), mp_context=get_context("spawn")) as pool:
        found = list(pool.map(partial(run_seed, size, work), size.seeds))
    right = {arm: [one[arm]["right"] for one in found] for arm in found[0]}
    test = held_out(size, load_renderer(model_path(), "pythonic", trust_remote_code=False))
    return {**summary(right, test, size.iterations), **searched(found), **failings(found, size.iterations)}


def run_seed(size: Size, work: Path, seed: int) -> Found:
    logging.disable(logging.WARNING)
    return seed_arms(size, work, seed).run()


def seed_arms(size: Size, work: Path, seed: int) -> Seed:
    """The arms of one seed, none of them run. Torch gets one thread in this process."""
    import torch

    torch.set_num_threads(1)
    renderer = load_renderer(model_path(), "pythonic", trust_remote_code=False)
    return Seed(
        learner=Learner(model=model_path(), renderer=renderer, adapter=AdapterSpec(), seed=seed, batch=size.batch),
        method=size.method(),
        pool=make_pool(renderer, size.pool, seed, distractors=size.distractors),
        test=held_out(size, renderer).examples,
        folder=work / f"seed-{seed}",
        say=say,
    )


def held_out(size: Size, renderer: Renderer) -> HeldOut:
    return make_test(renderer, size.test, distractors=size.distractors, split=size.split)


def summary(right: Right, test: HeldOut, iterations: int) -> Figures:
    """Accuracies in per cent with standard errors, in all and by kind of task, and gains in points."""
    last = {"iteration": f"iteration_{iterations}", "hard_sft": f"hard_sft_{iterations}"}
    last |= {name: f"{name}_1" for name in ONE_ITERATION}
    named = {name: hits for name, hits in right.items() if name.startswith("iteration_") or name in ("base", *PLAIN)}
    named |= {name: right[last[name]] for name in ("hard_sft", *ONE_ITERATION)}
    figures: Figures = {"seeds": len(right["base"]), "dev_tasks": len(test.examples), "rare_tasks": sum(test.rare)}
    for name, hits in named.items():
        figures[f"acc_{name}"] = round(accuracy(hits), 2)
        figures[f"se_{name}"] = round(standard_error(hits), 2)
        for kind, wanted in (("rare", True), ("ordinary", False)):
            figures[f"acc_{name}_{kind}"] = round(accuracy(of_kind(hits, test.rare, wanted=wanted)), 2)
    best = max(PLAIN, key=lambda name: accuracy(right[name]))
    figures["best_sft"] = best
    compared = {
        "iterations_over_best_sft": (last["iteration"], best),
        "iterations_over_warmup": (last["iteration"], "warmup"),
        "iterations_over_hard_sft": (last["iteration"], last["hard_sft"]),
        **{f"search_over_{name}": ("iteration_1", last[name]) for name in ONE_ITERATION},
    }
    for name, (better, worse) in compared.items():
        gain = paired_gain(right[better], right[worse])
        figures |= {f"gain_{name}": round(gain.mean, 2)}
        ends = "gain_ci" if name == "iterations_over_best_sft" else f"gain_{name}_ci"
        figures |= {f"{ends}_low": round(gain.low, 2), f"{ends}_high": round(gain.high, 2)}
    return figures


def failings(found: Sequence[Found], iterations: int) -> Figures:
    """Wrong answers by class, of all seeds: `errors_<arm>_<class>`, for the arms that are compared."""
    arms = {**{arm: arm for arm in ("base", *PLAIN)}, "hard_sft": f"hard_sft_{iterations}"}
    arms["iteration"] = f"iteration_{iterations}"
    counts = {arm: sum((Counter(one[name]["errors"]) for one in found), Counter()) for arm, name in arms.items()}
    classes = sorted(set().union(*counts.values()))
    return {f"errors_{arm}_{name}": counts[arm][name] for arm in arms for name in classes}


def searched(found: Sequence[Found]) -> Figures:
    """Trees, trees with a pair, pairs and decoded tokens of each searched arm, over all seeds."""
    return {
        f"{arm}_{name}": sum(one[arm][name] for one in found)
        for arm in found[0]
        for name in ("trees", "sampled", "missed", "pairs", "decoded")
        if name in found[0][arm]
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
