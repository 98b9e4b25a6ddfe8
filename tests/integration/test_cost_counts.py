"""The cost model against a real search: rates of some trees predict what others, searched with other settings, ask for.

Both forests run on the quickstart model with the transformers engine, one tree at a time, so every count repeats.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from itrain_contract.measurements import DataStatistics, EvaluationRates, SearchRates
from itrain_contract.stagespec import RolloutStage
from itrain_operator.cost import Facts, rollout_work
from itrain_pipeline.evals.runstats import data_statistics, search_rates
from itrain_pipeline.records import PreferencePair, read_jsonl
from itrain_pipeline.stages import rollout
from itrain_testing.rollout_inputs import rollout_input, toolworld_examples, upstream_results
from itrain_testing.stageports import folder_ports

TREES = 40
TOLERANCE = 0.15
COMMON: dict[str, Any] = {
    "engine": "transformers",
    "reward": "rule",
    "treesInFlight": 1,
    "temperature": 0.8,
    "topP": 0.95,
    "maxAnswerTokens": 96,
    "shards": 1,
}
UNUSED = EvaluationRates(prompt_ratio=1.0, answer_ratio=1.0)

pytestmark = pytest.mark.timeout(900)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forest:
    """What a forest counted, its data and its trees' rates."""

    data: DataStatistics
    rates: SearchRates
    counted: dict[str, float]


def grow(folder: Path, *, seed: int, **settings: Any) -> Forest:
    examples = toolworld_examples(TREES, seed=seed)
    folder.mkdir()
    made = rollout_input({**COMMON, **settings})
    output = rollout.run(made, folder_ports(folder, upstream_results(folder, examples)))
    trees = [json.loads(line) for line in output.outputs["trees.jsonl"].read_text().splitlines()]
    pairs = list(read_jsonl(output.outputs["pairs.jsonl"], PreferencePair))
    data = data_statistics(examples, dev=0)
    prompts = {e.id: len(e.prompt_ids) for e in examples}
    computed = output.counters["prefill_computed"]
    rates = search_rates(trees, pairs, prompts, data, computed=computed)
    assert rates is not None, "a forest without pairs tells nothing"
    asked = sum(tree["prompt_tokens"] for tree in trees)
    return Forest(data=data, rates=rates, counted={**output.counters, "prefill": float(asked)})


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Forest:
    return grow(tmp_path_factory.mktemp("measured") / "run", seed=3)


@pytest.mark.parametrize(
    ("seed", "settings"), [(11, {}), (3, {"actions": 4, "simulations": 3})], ids=["other data", "other settings"]
)
def test_counts_of_other_trees_are_predicted_within_fifteen_per_cent(
    measured: Forest, tmp_path: Path, seed: int, settings: dict[str, Any]
) -> None:
    other = grow(tmp_path / "run", seed=seed, **settings)
    facts = Facts(data=other.data, search=measured.rates, evaluation=UNUSED, cross_tree=False)
    stage = RolloutStage.model_validate({**COMMON, **settings})
    work = rollout_work(stage, TREES, facts)
    predicted = {
        "requests": work.requests,
        "prefill": work.prefill,
        "prefill_computed": work.computed,
        "decoded": work.decoded,
    }
    ratios = {name: value / other.counted[name] for name, value in predicted.items()}
    assert all(abs(ratio - 1) <= TOLERANCE for ratio in ratios.values()), ratios


def test_rates_give_back_the_counts_that_they_were_taken_from(measured: Forest) -> None:
    facts = Facts(data=measured.data, search=measured.rates, evaluation=UNUSED, cross_tree=False)
    work = rollout_work(RolloutStage.model_validate(COMMON), TREES, facts)
    assert work.prefill == pytest.approx(measured.counted["prefill"], rel=0.08)
    assert work.requests == pytest.approx(measured.counted["requests"], rel=0.08)
    assert work.pairs == pytest.approx(measured.counted["pairs"], rel=1e-6)
