"""The search bench on a handful of trees: its keys, that its counts reconcile, that its checker is one of its own."""

from __future__ import annotations

import ast
import asyncio
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

import itrain_bench.search.checker as checker_module
from itrain_bench.search.__main__ import PREFIXES
from itrain_bench.search.ablation import ROWS
from itrain_bench.search.arms import Model
from itrain_bench.search.checker import Checker, read_calls
from itrain_bench.search.measure import Figures, Size, measure
from itrain_bench.search.samples import toolace_rows
from itrain_bench.search.table import show
from itrain_bench.search.targets import TARGETS, judge_targets
from itrain_pipeline.quickstart import model_path
from itrain_pipeline.records import Example, ToolCall
from itrain_testing.rollout_inputs import quickstart_renderer

TINY = Size(
    trees={200: 6, 800: 3},
    cooler=1,
    ablation=1,
    vllm=0,
    repeats=1,
    toolace=0,
    scale_model=(2,),
    scale_scripted=(4, 8),
)
ARMS = ("r0", "r1", "r2", "ours")


@pytest.fixture(scope="module")
def measured() -> tuple[Figures, list[str]]:
    said: list[str] = []
    model = Model(folder=model_path(), renderer=quickstart_renderer())
    return asyncio.run(measure(model, TINY, threads=1, say=said.append, vllm=False)), said


def number(figures: Figures, key: str) -> float:
    value = figures[key]
    assert isinstance(value, int | float)
    return float(value)


def test_every_arm_has_its_counts_and_they_are_finite_and_flat(measured: tuple[Figures, list[str]]) -> None:
    figures, _ = measured
    for prefix in ("p200", "p800", "p800_t08"):
        for name in ("tokens_over_limit", "engine_tokens_per_tree", "requests_per_tree", "lost_trees"):
            assert all(math.isfinite(number(figures, f"{prefix}_{name}_{arm}")) for arm in ARMS)
    assert {"duplicates_ours", "lost_trees_ours", "pair_precision_ours", "unsampled_pairs_ours"} <= figures.keys()
    assert all(isinstance(value, str | int | float) for value in figures.values())
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_every_lever_has_a_row(measured: tuple[Figures, list[str]]) -> None:
    figures, _ = measured
    for row in ROWS:
        assert number(figures, f"ablation_{row.name}_requests_per_tree") > 0
    assert number(figures, "ablation_rule_first_judge_requests_per_tree") > 0
    assert number(figures, "ablation_none_judge_requests_per_tree") == 0


def test_the_arms_differ_in_what_their_names_say(measured: tuple[Figures, list[str]]) -> None:
    figures, _ = measured
    assert number(figures, "p800_duplicate_share_r0") > 0
    assert number(figures, "p800_duplicate_share_r2") == number(figures, "duplicates_ours") == 0
    assert number(figures, "p800_engine_tokens_per_tree_r0") > number(figures, "p800_engine_tokens_per_tree_r1")
    assert number(figures, "p800_requests_per_tree_r0") == number(figures, "p800_requests_per_tree_r1")
    assert number(figures, "unsampled_pairs_ours") == number(figures, "lost_trees_ours") == 0


def test_what_could_not_be_measured_is_left_out_with_a_reason(
    measured: tuple[Figures, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    figures, said = measured
    assert "wall_per_pair_r0_over_ours" not in figures
    assert any("wall_per_pair_r0_over_ours" in line for line in said)
    monkeypatch.delenv("ITRAIN_DATA_DIR", raising=False)
    assert toolace_rows(quickstart_renderer(), 1) == "ITRAIN_DATA_DIR is not set"
    verdicts = judge_targets(figures)
    assert set(verdicts) == {target.key for target in TARGETS}
    assert verdicts["wall_per_pair_r0_over_ours"] is None


def test_the_table_names_every_target_and_says_whether_it_is_met(
    measured: tuple[Figures, list[str]], tmp_path: Path
) -> None:
    figures, _ = measured
    with (tmp_path / "table").open("w") as out:
        show(figures, PREFIXES, Console(file=out, width=400))
    text = (tmp_path / "table").read_text()
    assert all(target.text in text for target in TARGETS)
    assert "not measured" in text
    assert all(row.text in text for row in ROWS)


def test_the_checker_imports_nothing_of_the_reward() -> None:
    tree = ast.parse(Path(str(checker_module.__file__)).read_text())
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name for name in names if str(name).startswith("itrain")} == {"itrain_pipeline.records"}


def checker(*calls: ToolCall) -> Checker:
    example = Example(
        id="x", messages=(), tools=(), answer="", calls=calls, bucket="easy", source="", prompt_ids=(), answer_ids=()
    )
    return Checker(example, lambda ids: "".join(map(chr, ids)).split("\0")[0], frozenset({0}))


@pytest.mark.parametrize(
    ("text", "agrees"),
    [
        ("[Find Flight(", True),
        ("[Find Flight(to='Pa", True),
        ("[Find Flight(days=2, to=", True),
        ('[Find Flight(to="Paris", days=2)]\0', True),
        (" [Find Flight( to=  'Paris',  days= 2)]\0", True),
        ("[Find Flight(to='Paris', days=2.0)]\0", True),
        ("[Find Flight(to='Paris', days=3", False),
        ("[Find Flight(to='Paris')]\0", False),
        ("[Find Flight(to='Pa\0", False),
        ("[Find Hotel(", False),
        ("Sorry", False),
    ],
)
def test_an_answer_agrees_when_it_is_or_begins_the_truth(text: str, agrees: bool) -> None:
    truth = checker(ToolCall(name="Find Flight", arguments={"to": "Paris", "days": 2}))
    assert truth.agrees(tuple(map(ord, text))) is agrees


def test_model_output_is_read_and_never_run() -> None:
    assert read_calls("[f(a=__import__('os').getpid())]") is None
    assert read_calls("[f(a=[1, {'b': None}])]") == [("f", {"a": [1, {"b": None}]})]
    assert read_calls("(" * 5000) is None
