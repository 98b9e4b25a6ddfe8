"""What a run's finished stages tell a plan: its data, how its trees behaved, what each stage counted and took. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from itrain_contract.bfcl import MULTI_TURN
from itrain_contract.measurements import DataStatistics, EvaluationRates, Lengths, RunStatistics, SearchRates
from itrain_contract.stageio import StageResult
from itrain_contract.stages import StageKind
from itrain_pipeline.errors import DataError
from itrain_pipeline.evals.collect import Fetch, summed
from itrain_pipeline.records import Example, PreferencePair, read_jsonl

DIALOGUES = tuple(f"bfcl/{category}/" for category in MULTI_TURN)
"""How the metrics of multi-turn categories begin."""

Row = Mapping[str, Any]
AT_RISK = 8
"""Trees from which a share of their own is taken."""


def run_statistics(results: Sequence[StageResult], fetch: Fetch, *, run: str = "") -> RunStatistics:
    """Raises DataError when `prepare` has not finished: without lengths there is nothing to reckon with."""
    prepare = next((r for r in results if r.kind == StageKind.PREPARE), None)
    if prepare is None:
        raise DataError("the run has no finished prepare stage yet, so its data was not measured")
    examples = list(read_jsonl(fetch(prepare.outputs["train.jsonl"]), Example))
    data = data_statistics(examples, dev=int(prepare.counters.get("dev", 0)))
    stages: dict[str, list[StageResult]] = {}
    for result in results:
        stages.setdefault(f"i{result.iteration}/{result.kind.value}", []).append(result)
    return RunStatistics(
        run=run,
        data=data,
        search=_search(results, fetch, examples, data),
        evaluation=_evaluation(results, data),
        questions=_questions(results),
        seconds={name: max(r.seconds for r in shards) for name, shards in stages.items()},
        counters={name: summed(shards) for name, shards in stages.items()},
    )


def data_statistics(examples: Sequence[Example], *, dev: int) -> DataStatistics:
    if not examples:
        raise DataError("train.jsonl holds no example")
    return DataStatistics(
        train=len(examples),
        dev=dev,
        call_share=sum(e.has_call for e in examples) / len(examples),
        prompt=lengths([len(e.prompt_ids) for e in examples]),
        answer=lengths([len(e.answer_ids) for e in examples]),
    )


def lengths(values: Sequence[int]) -> Lengths:
    """Mean and quantiles; a quantile is the smallest value that as many rows do not exceed."""
    ordered = sorted(values)

    def quantile(share: float) -> int:
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

    return Lengths(
        mean=sum(ordered) / len(ordered), p50=quantile(0.5), p90=quantile(0.9), p99=quantile(0.99), max=ordered[-1]
    )


def _search(
    results: Iterable[StageResult], fetch: Fetch, examples: Sequence[Example], data: DataStatistics
) -> SearchRates | None:
    """All iterations' trees together; None before a rollout has made a pair."""
    shards = [r for r in results if r.kind == StageKind.ROLLOUT]
    trees = [row for r in shards for row in _rows(fetch(r.outputs["trees.jsonl"]))]
    pairs = [pair for r in shards for pair in read_jsonl(fetch(r.outputs["pairs.jsonl"]), PreferencePair)]
    prompts = {e.id: len(e.prompt_ids) for e in examples}
    return search_rates(trees, pairs, prompts, data, computed=summed(shards).get("prefill_computed", 0.0))


def search_rates(
    trees: Sequence[Row],
    pairs: Sequence[PreferencePair],
    prompts: Mapping[str, int],
    data: DataStatistics,
    *,
    computed: float,
) -> SearchRates | None:
    """`prompts` has each example's length, `computed` the prefilled tokens of all trees.

    Lengths come from the trees that asked no judge, whose prompts are other ones.
    """
    if not trees or not pairs:
        return None
    told = pairs[0].lineage.sampling
    actions, simulations = int(told["actions"]), int(told["simulations"])
    first = [t for t in trees if t["simulations"] == 1 and t["reason"] != "budget"]
    going = [t for t in trees if t["simulations"] > 1]
    later = sum(t["simulations"] - 1 for t in going)
    below = sum(t["expanded"] - 1 for t in trees)
    plain = [t for t in trees if not t["judge_calls"]]
    deep = sum(t["requests"] - 1 for t in plain)
    beyond = sum(_asked_once(t, actions) - t["requests"] * prompts[t["sample_id"]] for t in plain)
    shared = max(0.0, beyond / deep) if deep else 0.0
    deep_prompts = sum((t["requests"] - 1) * prompts[t["sample_id"]] for t in plain)
    asked = sum(t["expanded"] for t in trees)
    sampled = (sum(t["decoded_tokens"] for t in trees) / actions + below * shared) / asked
    prompt = sum(prompts[t["sample_id"]] for t in trees)
    answer = data.answer.mean
    return SearchRates(
        trees=len(trees),
        actions=actions,
        simulations=simulations,
        temperature=float(told["temperature"]),
        first_stop=len(first) / len(trees),
        later_stops=later_stops([(t["simulations"], t["reason"] != "budget") for t in trees]),
        expanding=min(1.0, below / later) if later else 0.0,
        pairs=len(pairs) / len(trees),
        answers=sum(t["answers"] for t in trees) / len(trees),
        prompt_ratio=prompt / len(trees) / data.prompt.mean,
        deep_prompt_ratio=deep_prompts / deep / data.prompt.mean if deep else prompt / len(trees) / data.prompt.mean,
        sampled_ratio=sampled / answer,
        shared_ratio=shared / answer,
        common_share=min(1.0, max(0.0, 1.0 - (computed - below) / prompt)),
        pair_shared_ratio=sum(len(p.shared_ids) for p in pairs) / len(pairs) / answer,
        pair_steps_ratio=sum(len(p.chosen_ids) + len(p.rejected_ids) for p in pairs) / len(pairs) / answer,
    )


def later_stops(ends: Sequence[tuple[int, bool]]) -> tuple[float, ...]:
    """Shares of those still going that stop after simulation 2, 3 …, from (simulations, whether the tree stopped).

    Kaplan and Meier's estimate: a tree whose budget was spent is at risk up to there, and no stop. Where fewer than
    AT_RISK trees are left, all later simulations have one share in common.
    """
    shares: list[float] = []
    number = 2
    while (at_risk := sum(n >= number for n, _ in ends)) >= AT_RISK:
        shares.append(sum(n == number and stopped for n, stopped in ends) / at_risk)
        number += 1
    rest = sum(n - number + 1 for n, _ in ends if n >= number)
    if rest:
        shares.append(sum(stopped for n, stopped in ends if n >= number) / rest)
    return tuple(shares)


def _asked_once(tree: Row, actions: int) -> float:
    """Prompt tokens of a tree's requests, whatever the number of completions; rows of earlier versions, which have no
    sequences, count them once."""
    return float(tree["prompt_tokens"]) / (actions if tree.get("sequences") else 1)


def _evaluation(results: Iterable[StageResult], data: DataStatistics) -> EvaluationRates | None:
    """None also where dialogues were among the questions: their prompts are many times as long, and a plan counts them
    by themselves."""
    evaluations = [r for r in results if r.kind == StageKind.EVALUATE]
    if any(name.startswith(DIALOGUES) for r in evaluations for name in r.metrics):
        return None
    counted = summed(evaluations)
    asked = counted.get("requests", 0.0)
    if not asked or not counted["decoded"]:
        return None
    prompt = (counted["prefill_computed"] + counted["prefill_cached"]) / asked
    return EvaluationRates(
        prompt_ratio=prompt / data.prompt.mean, answer_ratio=counted["decoded"] / asked / data.answer.mean
    )


def _questions(results: Iterable[StageResult]) -> dict[str, int]:
    """Of the newest evaluation: `<benchmark>/n` among its metrics."""
    newest = max((r for r in results if r.kind == StageKind.EVALUATE), key=lambda r: r.iteration, default=None)
    metrics = {} if newest is None else newest.metrics
    return {
        name.removesuffix("/n"): int(n) for name, n in metrics.items() if name.count("/") == 1 and name[-2:] == "/n"
    }


def _rows(path: Path) -> list[Row]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise DataError(f"trees.jsonl: a row is no JSON: {error}") from error
