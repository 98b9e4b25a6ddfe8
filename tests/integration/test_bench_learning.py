"""The learning bench, small: that every arm learns from the rows it says, not how much."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path

import pytest

from itrain_bench.learning import sweep
from itrain_bench.learning.__main__ import unlearned, verdict
from itrain_bench.learning.arms import SEARCHES, Seed
from itrain_bench.learning.learner import Learner
from itrain_bench.learning.measure import QUICK, Size, measure
from itrain_bench.learning.tasks import POOL_RARE, TEST_RARE, make_pool, make_test
from itrain_contract.spec import AdapterSpec
from itrain_pipeline.data.rendering import Renderer
from itrain_pipeline.engine import open_engine
from itrain_pipeline.ports import SamplingParams
from itrain_pipeline.quickstart import model_path
from itrain_pipeline.stages.rendered import load_renderer

TINY = dataclasses.replace(
    QUICK, seeds=(1,), pool=40, test=24, warmup_steps=2, iteration_steps=1, iterations=1, batch=4, fraction=0.25
)


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return load_renderer(model_path(), "pythonic", trust_remote_code=False)


def learner(renderer: Renderer, size: Size = TINY) -> Learner:
    return Learner(model=model_path(), renderer=renderer, adapter=AdapterSpec(), seed=1, batch=size.batch)


def test_pool_and_test_set_have_the_shares_they_say_and_share_no_question(renderer: Renderer) -> None:
    pool, test = make_pool(renderer, 400, 1, distractors=0), make_test(renderer, 200, distractors=0)
    assert len(test.examples) == 200
    assert all(example.has_call for example in test.examples)
    assert sum(test.rare) / 200 == pytest.approx(TEST_RARE / 100, abs=0.1)
    names = {name for example in pool for name in example.tools[0]["parameters"]["properties"]}
    assert {"season", "quarter"} & names
    rare = [e for e in pool if any("enum" in p and len(p["enum"]) == 4 for p in properties(e.tools))]
    assert len(rare) / 400 == pytest.approx(POOL_RARE / 100, abs=0.05)
    assert not {e.messages[0].content for e in pool} & {e.messages[0].content for e in test.examples}
    assert not {e.tools[0]["description"] for e in pool} & {e.tools[0]["description"] for e in test.examples}


def test_a_loss_beyond_doubt_fails_the_bench_and_one_that_may_be_chance_does_not() -> None:
    lost = {"gain_iterations_over_warmup": -3.0, "gain_iterations_over_warmup_ci_high": -0.5}
    assert unlearned(lost) == "the iterations lose to the warm-up: -3.0 points, 95 % up to -0.5"
    assert unlearned({**lost, "gain_iterations_over_warmup_ci_high": 0.2}) == ""


def properties(tools: tuple[dict[str, object], ...]) -> list[dict[str, list[str]]]:
    return [p for tool in tools for p in tool["parameters"]["properties"].values()]  # type: ignore[index]


def test_right_is_what_greedy_decoding_gives(renderer: Renderer) -> None:
    examples = make_test(renderer, 24, distractors=0).examples
    engine = open_engine("transformers", model_path(), dtype="fp32", max_model_len=2048)
    greedy = SamplingParams(
        seeds=(0,), max_tokens=64, temperature=0.0, stop_token_ids=(renderer.end_of_turn_id,)
    )  # fmt: skip

    async def answers() -> list[tuple[int, ...]]:
        engine.load_adapter("base", None)
        try:
            done = await asyncio.gather(*(engine.generate(e.prompt_ids, greedy) for e in examples))
            return [completions[0].token_ids for completions in done]
        finally:
            await engine.aclose()

    decoded = asyncio.run(answers())
    right = [answer == example.answer_ids for answer, example in zip(decoded, examples, strict=True)]
    assert learner(renderer).right(None, examples) == right
    assert 0 < sum(right) < len(right)


def test_every_arm_is_judged_on_the_same_tasks_and_an_interrupted_bench_goes_on(tmp_path: Path) -> None:
    figures = measure(TINY, tmp_path / "work")
    arms = ("base", "sft", "warmup", "more_sft", "hard_sft", "iteration_1", "best_of_n", "no_search")
    assert figures.keys() >= {f"acc_{arm}" for arm in arms} | {"gain_ci_low", "gain_ci_high", "seeds", "dev_tasks"}
    assert (figures["dev_tasks"], figures["seeds"]) == (24, 1)
    assert float(figures["gain_ci_low"]) <= float(figures["gain_iterations_over_best_sft"])
    kept = sorted(path.parent.name for path in (tmp_path / "work/seed-1").glob("*/found.json"))
    assert kept == sorted(["base", "sft", "warmup", "more_sft", "hard_sft_1", *(f"{arm}_1" for arm in SEARCHES)])
    for arm in SEARCHES:
        assert 0 <= figures[f"{arm}_1_sampled"] <= figures[f"{arm}_1_trees"]  # type: ignore[operator]
    path = tmp_path / "work/seed-1/sft/found.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "right": [True] * 24}))
    again = measure(TINY, tmp_path / "work")
    assert (again["acc_sft"], again["best_sft"]) == (100.0, "sft")
    assert again["acc_more_sft"] == figures["acc_more_sft"]
    assert "iterations over sft" in verdict(again)
    for arm in ("base", "warmup", "iteration"):
        name = f"{arm}_1" if arm == "iteration" else arm
        wrong = json.loads((tmp_path / f"work/seed-1/{name}/found.json").read_text())["right"].count(False)
        assert sum(int(value) for key, value in figures.items() if key.startswith(f"errors_{arm}_")) == wrong


def test_the_sweep_changes_one_setting_at_a_time_behind_one_warm_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "VALUES", {"fraction": (0.1,), "simulations": (2,)})
    size = dataclasses.replace(TINY, split="dev")
    figures = sweep.sweep(size, ("fraction", "simulations"), tmp_path)
    assert figures["gain_warmup"] == 0
    labels = ("as_it_is", "fraction_0.1", "simulations_2")
    assert figures.keys() >= {f"{kind}_{label}" for kind in ("acc", "gain", "se", "trees", "pairs") for label in labels}
    assert figures["trees_as_it_is"] == figures["trees_simulations_2"] > figures["trees_fraction_0.1"]
    kept = sorted(path.parent.name for path in tmp_path.glob("seed-1/*/found.json"))
    assert kept == sorted(["warmup", *(f"{label}_1" for label in labels)])


def test_equal_steps_for_all(renderer: Renderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is trained is counted where all trainings pass through."""
    steps: dict[str, int] = {}

    def fit(self: Learner, kind: str, rows: object, order: tuple[int, ...], *, folder: Path, **_: object) -> Path:
        steps[folder.name] = len(order) // self.batch
        return folder

    pool, test = make_pool(renderer, 40, 1, distractors=0), make_test(renderer, 4, distractors=0)
    monkeypatch.setattr(Learner, "_fit", fit)
    monkeypatch.setattr(Learner, "right", lambda self, adapter, examples: [True] * len(examples))
    monkeypatch.setattr(Learner, "errors", lambda self, adapter, examples: {})
    monkeypatch.setattr(Learner, "loaded", lambda self, adapter: LOADED(self, None))
    monkeypatch.setattr(Learner, "search", lambda *given, **named: ([], 0))
    size = dataclasses.replace(TINY, warmup_steps=5, iteration_steps=3, iterations=2)
    Seed(
        learner=learner(renderer, size),
        method=size.method(),
        pool=pool,
        test=test.examples,
        folder=tmp_path,
        say=lambda text: None,
    ).run()
    assert steps == {"warmup": 5, "sft": 5, "more_sft": 11, "hard_sft_1": 3, "hard_sft_2": 3}


LOADED = Learner.loaded
