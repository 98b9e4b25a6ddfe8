"""What a run tells a plan, with the sums by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from itrain_contract.stages import StageKind
from itrain_pipeline.errors import DataError
from itrain_pipeline.evals.runstats import data_statistics, later_stops, lengths, run_statistics, search_rates
from itrain_pipeline.records import Example, Lineage, PreferencePair, write_jsonl
from itrain_testing.searchedtrees import example
from itrain_testing.stageports import fetch, stage_result


def row(number: int, *, prompt: int = 100, answer: int = 10, call: bool = True) -> Example:
    made = dataclasses.replace(example(f"e{number}"), prompt_ids=tuple(range(prompt)), answer_ids=tuple(range(answer)))
    return made if call else dataclasses.replace(made, calls=())


def tree(number: int, **fields: Any) -> dict[str, Any]:
    plain = {"reason": "quota", "simulations": 1, "expanded": 1, "answers": 2, "judge_calls": 0, "requests": 1}
    counted = {"prompt_tokens": 300, "decoded_tokens": 30, "sequences": 3}
    return {"sample_id": f"e{number}", **plain, **counted, **fields}


def pair() -> PreferencePair:
    sampling = {"actions": 3, "simulations": 5, "temperature": 1.5}
    lineage = Lineage(sample_id="e0", iteration=1, adapter_sha256="", template_sha256="", sampling=sampling)
    return PreferencePair(
        id="p",
        prompt_ids=(1,),
        shared_ids=(1, 2),
        chosen_ids=(3, 4, 5),
        rejected_ids=(6, 7),
        chosen_q=1.0,
        rejected_q=-1.0,
        chosen_visits=1,
        rejected_visits=1,
        lineage=lineage,
    )


def test_a_quantile_is_the_smallest_value_that_so_many_rows_do_not_exceed() -> None:
    found = lengths(list(range(1, 101)))
    assert (found.mean, found.p50, found.p90, found.p99, found.max) == (50.5, 50, 90, 99, 100)
    assert lengths([7]).p50 == 7


def test_data_is_counted_with_its_calls() -> None:
    found = data_statistics([row(1), row(2, prompt=300, call=False)], dev=5)
    assert (found.train, found.dev, found.call_share, found.prompt.mean) == (2, 5, 0.5, 200)
    with pytest.raises(DataError, match="holds no example"):
        data_statistics([], dev=0)


def test_rates_by_hand() -> None:
    """Tree 0 stops after one request of three completions. Tree 1 asks twice: 3 × 100 and 3 × 104 prompt tokens; its
    completions are 10 and 6 long, so 10 from the root and 4 before the second request."""
    data = data_statistics([row(0), row(1)], dev=0)
    deep = tree(1, simulations=3, expanded=2, requests=2, prompt_tokens=612, decoded_tokens=48, reason="budget")
    found = search_rates([tree(0), deep], [pair()], {"e0": 100, "e1": 100}, data, computed=151.0)
    assert found is not None
    assert (found.trees, found.actions, found.simulations, found.temperature) == (2, 3, 5, 1.5)
    assert (found.first_stop, found.expanding, found.pairs) == (0.5, 0.5, 0.5)
    assert found.shared_ratio == pytest.approx(0.4)
    assert found.sampled_ratio == pytest.approx((78 / 3 + 4) / 3 / 10)
    assert found.common_share == pytest.approx(1 - 150 / 200)
    assert (found.pair_shared_ratio, found.pair_steps_ratio) == (pytest.approx(0.2), pytest.approx(0.5))


def test_rows_of_an_earlier_version_count_prompts_once() -> None:
    data = data_statistics([row(0), row(1)], dev=0)
    deep = tree(1, simulations=3, expanded=2, requests=2, prompt_tokens=204, decoded_tokens=48, sequences=0)
    first = tree(0, prompt_tokens=100, sequences=0)
    found = search_rates([first, deep], [pair()], {"e0": 100, "e1": 100}, data, computed=201.0)
    assert found is not None
    assert found.shared_ratio == pytest.approx(0.4)


def test_trees_that_asked_a_judge_tell_no_lengths() -> None:
    data = data_statistics([row(0), row(1)], dev=0)
    judged = tree(1, judge_calls=2, requests=2, simulations=2, expanded=2, prompt_tokens=5_000)
    found = search_rates([tree(0), judged], [pair()], {"e0": 100, "e1": 100}, data, computed=0.0)
    assert found is not None
    assert found.shared_ratio == 0.0


def test_a_spent_budget_is_no_stop() -> None:
    """Ten trees: two stop after the second simulation, then six of eight after the third; two were cut off there."""
    ends = [(2, True)] * 2 + [(3, True)] * 6 + [(3, False)] * 2
    assert later_stops(ends) == (0.2, 0.75)
    assert later_stops([(1, True)] * 10) == ()
    assert later_stops([(4, True), (5, False)]) == (pytest.approx(1 / 7),)


def test_a_search_without_pairs_or_trees_tells_nothing() -> None:
    data = data_statistics([row(0)], dev=0)
    assert search_rates([tree(0)], [], {"e0": 100}, data, computed=0.0) is None
    assert search_rates([], [pair()], {}, data, computed=0.0) is None


def test_a_whole_run_is_told_stage_by_stage(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [row(0), row(1)])
    (tmp_path / "trees.jsonl").write_text("".join(json.dumps(tree(n)) + "\n" for n in range(2)))
    write_jsonl(tmp_path / "pairs.jsonl", [pair()])
    files = {name: tmp_path / name for name in ("trees.jsonl", "pairs.jsonl")}
    asked = {"requests": 4.0, "prefill_computed": 300.0, "prefill_cached": 100.0, "decoded": 20.0}
    results = [
        stage_result(StageKind.PREPARE, files={"train.jsonl": tmp_path / "train.jsonl"}, counters={"dev": 7.0}),
        stage_result(StageKind.ROLLOUT, 1, files, shard=0, seconds=5.0, counters={"trees": 1.0}),
        stage_result(StageKind.ROLLOUT, 1, files, shard=1, seconds=9.0, counters={"trees": 1.0}),
        stage_result(StageKind.EVALUATE, 0, metrics={"dev/n": 9.0}),
        stage_result(
            StageKind.EVALUATE,
            1,
            counters=asked,
            metrics={"dev/n": 7.0, "dev/call_n": 5.0, "ace/n": 3.0, "ace/x/n": 2.0},
        ),
    ]
    found = run_statistics(results, fetch, run="r")
    assert (found.run, found.data.dev, found.data.train) == ("r", 7, 2)
    assert found.search is not None
    assert found.search.trees == 4
    assert found.evaluation is not None
    assert (found.evaluation.prompt_ratio, found.evaluation.answer_ratio) == (1.0, 0.5)
    assert found.questions == {"dev": 7, "ace": 3}
    talked = stage_result(StageKind.EVALUATE, 2, counters=asked, metrics={"bfcl/multi_turn_base/n": 2.0})
    assert run_statistics([*results, talked], fetch, run="r").evaluation is None
    assert found.seconds["i1/rollout"] == 9.0
    assert found.counters["i1/rollout"] == {"trees": 2.0}


def test_a_run_without_prepare_is_a_data_error() -> None:
    with pytest.raises(DataError, match="no finished prepare stage"):
        run_statistics([], fetch)
