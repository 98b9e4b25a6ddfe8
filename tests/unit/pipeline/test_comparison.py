"""A page about several runs says what their items can show, and no more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from itrain_contract.stages import StageKind
from itrain_pipeline.errors import ConfigError, DataError
from itrain_pipeline.evals.comparison import (
    accuracy_charts,
    build_comparison,
    category_differences,
    compare_exported,
    compare_verdict,
    cost_groups,
    error_classes,
    paired_groups,
    plain_metrics,
)
from itrain_pipeline.evals.comparison_data import ComparedRun, collect_compared, read_named
from itrain_pipeline.evals.differences import differing, flatten, setting_rows
from itrain_pipeline.evals.report_data import PointResult, StageCost
from itrain_pipeline.records import Prediction, write_jsonl
from itrain_testing.comparedruns import answers, one_point, three_runs
from itrain_testing.stageports import fetch, stage_result


def told(*runs: ComparedRun) -> tuple[str, str]:
    """Headline and sentences with plain spaces."""
    found = compare_verdict(runs)
    return found.headline.replace("\u00a0", " "), " ".join(found.sentences).replace("\u00a0", " ")


def right(count: int, n: int = 400) -> list[bool]:
    return [at < count for at in range(n)]


# --- the verdict ---


def test_a_large_difference_is_told_with_interval_test_and_direction() -> None:
    """40 of 400 items gained, none lost: 10 points; the coin's p is 2/2^40."""
    headline, sentences = told(one_point("a", right(200)), one_point("b", right(240)))
    assert headline == "b has 10.0 points more than a: exact calls on the dev set"
    assert "a (base model) has 50.0 %, b (base model) 60.0 % of the same 400 items: +10.0 points" in sentences
    assert "95 % interval +7.2 to +13.0, a difference." in sentences
    assert "right on 40 that a gets wrong, and wrong on 0 that it gets right (sign test p < 0.001)" in sentences
    headline, _ = told(one_point("a", right(240)), one_point("b", right(200)))
    assert headline == "b has 10.0 points fewer than a: exact calls on the dev set"


def test_a_small_difference_is_none() -> None:
    headline, sentences = told(one_point("a", right(200)), one_point("b", right(203)))
    assert headline == "No measurable difference between a and b: exact calls on the dev set"
    assert "no measurable difference. b is right on 3" in sentences


def test_five_items_gained_and_none_lost_are_not_enough() -> None:
    """The bootstrap's interval leaves out zero, yet a fair coin gives five alike in 1 of 16 cases: p = 0.0625."""
    runs = [one_point("a", right(100)), one_point("b", right(105))]
    paired = compare_exported(runs)[0].paired
    assert paired is not None
    assert paired.low > 0
    assert paired.p == 0.0625
    assert told(*runs)[0].startswith("No measurable difference")


def test_runs_that_answer_alike_are_not_called_equal() -> None:
    _, sentences = told(one_point("a", right(9, 14)), one_point("b", right(9, 14)))
    assert "both answer every item alike, which does not show that they are equal." in sentences
    assert "With 14 items only large differences can be seen." in sentences


def test_every_verdict_says_that_one_training_is_one_training() -> None:
    _, sentences = told(one_point("a", right(1)), one_point("b", right(399)))
    assert "The interval is over items alone. Each run is one training" in sentences
    assert "only large differences" not in sentences


def test_an_exported_point_that_the_metric_chose_is_said_to_stand_too_high() -> None:
    assert "chosen by this metric stands a little too high" in told(*three_runs())[1]
    assert "chosen by" not in told(one_point("a", right(1)), one_point("b", right(2)))[1]


def test_several_comparisons_share_out_the_five_per_cent() -> None:
    """6 items gained, none lost: p = 2/64 = 0.031, a difference alone, none among two comparisons."""
    a, b = one_point("a", right(100)), one_point("b", right(106))
    assert told(a, b)[0].startswith("b has 1.5 points more")
    assert told(a, b, one_point("c", right(100)))[0] == "No run differs measurably from a: exact calls on the dev set"
    assert told(a, one_point("b", right(150)), one_point("c", right(100)))[0].startswith("1 of 2 runs differs")


# --- which items are the same ---


def test_items_of_one_id_but_another_content_are_not_compared() -> None:
    runs = [one_point("a", right(3, 4)), one_point("b", right(3, 4), items={("dev", "call_0"): "other"})]
    with pytest.raises(DataError, match=r"a and b have no item of dev/call_accuracy in common \(4 and 4 items"):
        compare_exported(runs)


def test_only_items_that_both_were_asked_are_compared() -> None:
    found = compare_exported([one_point("a", right(4, 8)), one_point("b", right(2, 4))])[0]
    assert found.paired is not None
    assert (found.paired.n, found.paired.first, found.paired.second, found.asked) == (4, 1.0, 0.5, (8, 4))


def test_a_benchmark_s_items_are_those_of_its_version() -> None:
    row = Prediction(benchmark="bfcl", category="simple", id="1", point="base", output="", correct=True)
    point = PointResult(point="base", iteration=0, predictions=(row,))
    runs = [
        ComparedRun(label=label, metric="bfcl/accuracy", best=None, points=(point,), items={("bfcl", ""): version})
        for label, version in (("a", "bfcl_eval=1"), ("b", "bfcl_eval=2"), ("c", "bfcl_eval=1"))
    ]
    assert compare_exported([runs[0], runs[2]])[0].paired is not None
    with pytest.raises(DataError, match="no item of bfcl/accuracy in common"):
        compare_exported(runs[:2])


def test_runs_without_a_common_benchmark_are_refused_by_name() -> None:
    row = Prediction(benchmark="bfcl", category="simple", id="1", point="base", output="", correct=True)
    other = ComparedRun(
        label="b",
        metric="bfcl/accuracy",
        best=None,
        points=(PointResult(point="base", iteration=0, predictions=(row,)),),
    )
    with pytest.raises(DataError, match=r"nothing in common \(a: dev; b: bfcl\)"):
        build_comparison([one_point("a", right(1)), other])


def test_a_metric_over_groups_is_replaced_by_one_over_items() -> None:
    runs = three_runs()
    assert plain_metrics(runs) == ["dev/call_accuracy", "dev/accuracy", "bfcl/accuracy"]


# --- what is collected ---


def test_a_run_is_collected_with_the_content_of_its_items(tmp_path: Path) -> None:
    def dev(name: str, question: str, ids: list[int]) -> Path:
        path = tmp_path / name
        row = {"id": "call_0", "messages": [question], "tools": [], "answer": "[f()]", "prompt_ids": ids}
        path.write_text(json.dumps(row) + "\n")
        return path

    predictions = tmp_path / "predictions-base.jsonl"
    write_jsonl(predictions, answers([True]))

    def collected(file: Path, **info: str) -> ComparedRun:
        results = [
            stage_result(StageKind.EVALUATE, files={predictions.name: predictions}, info={"torch": "2", **info}),
            stage_result(StageKind.PREPARE, files={"dev.jsonl": file}, counters={"dev": 1}),
        ]
        return collect_compared("x", results, fetch, settings={"seed": 1})

    first = collected(dev("a", "what?", [1, 2]))
    same = collected(dev("b", "what?", [7]))
    other = collected(dev("c", "why?", [1, 2]))
    row = first.points[0].predictions[0]
    assert first.key(row) == same.key(row), "another tokenizer is no other item"
    assert first.key(row) != other.key(row)
    assert first.facts["Dev rows"].startswith("1, sha256 ")
    assert first.facts["Torch"] == "2"
    assert collected(dev("a", "what?", []), adapter_sha256="5a", points="base").facts.keys() == first.facts.keys()


def test_a_run_with_nothing_evaluated_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="young has no evaluated point yet"):
        collect_compared("young", [stage_result(StageKind.PREPARE)], fetch, settings={})


def test_a_run_without_prepare_cannot_prove_its_items(tmp_path: Path) -> None:
    path = tmp_path / "predictions-base.jsonl"
    write_jsonl(path, answers([True]))
    with pytest.raises(DataError, match="x has no result of prepare"):
        collect_compared("x", [stage_result(StageKind.EVALUATE, files={path.name: path})], fetch, settings={})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[", "is no list of runs"),
        ('[{"label": "a"}]', "is no list of runs"),
        ('[{"label": "a", "root": "/a", "spec": {}}]', "names 1 run"),
        ('[{"label": "a", "root": "/a", "spec": {}}, {"label": "a", "root": "/b", "spec": {}}]', "one label twice"),
    ],
)
def test_a_list_of_runs_that_is_none_is_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "runs.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_named(file)


# --- what differs ---


def test_settings_that_differ_are_told_by_their_path_and_no_others() -> None:
    rows = setting_rows(
        [
            {"seed": 1, "stages": {"train": {"epochs": 1.0, "beta": 2.5}}, "storage": {"uri": "s3://a"}},
            {
                "seed": 1,
                "stages": {"train": {"epochs": 2.0, "beta": 2.5, "rows": "tree"}},
                "storage": {"uri": "s3://b"},
            },
        ]
    )
    assert [(row.name, row.cells) for row in rows] == [
        ("stages.train.epochs", ("1.0", "2.0")),
        ("stages.train.rows", ("–", "tree")),
    ]


def test_lists_of_blocks_are_told_by_place() -> None:
    found = flatten({"data": {"extra": [{"uri": "a"}, {"uri": "b"}]}, "categories": ["x", "y"], "none": {}})
    assert found == {"data.extra[0].uri": "a", "data.extra[1].uri": "b", "categories": ["x", "y"]}


def test_nothing_differs_between_equals() -> None:
    assert differing([{"a": "1"}, {"a": "1"}]) == []


# --- the tables ---


def test_the_paired_table_has_every_run_and_every_common_point() -> None:
    groups = paired_groups(three_runs())
    assert [group["title"] for group in groups] == [
        "exact calls on the dev set",
        "right answers on the dev set",
        "BFCL, all evaluated items",
    ]
    rows = groups[0]["rows"]
    assert [(row.run, row.point) for row in rows[:2]] == [
        ("two-epochs", "exported: iteration 2 against iteration 1"),
        ("a-run-with-a-name-of-forty-letters-and-more", "exported: iteration 2 against iteration 1"),
    ]
    assert [row.point for row in rows[2:]] == ["base model", "warm-up", "iteration 1"] * 2
    assert [row.differs for row in rows[:2]] == [False, True]
    assert not any(row.differs for row in rows[2:]), "only exported points are judged"


def test_categories_have_paired_differences() -> None:
    tables = category_differences([one_point("a", right(10, 20)), one_point("b", right(20, 20))])
    row = tables[0]["rows"][0]
    assert (tables[0]["title"], row["name"], row["n"]) == ("Dev set", "call", 20)
    assert row["differences"] == ["+50.0\u00a0(+30.0\u00a0to\u00a0+70.0)"]


def test_items_that_were_all_answered_alike_get_no_interval_without_width() -> None:
    runs = [one_point("a", right(1, 2)), one_point("b", right(1, 2))]
    assert category_differences(runs)[0]["rows"][0]["differences"] == ["0.0\u00a0(all\u00a0alike)"]
    assert paired_groups(runs)[0]["rows"][0].cells[:4] == ("0.0", "all\u00a0alike", "1.000", "0 / 0")


def test_error_classes_have_a_column_for_each_run() -> None:
    table = error_classes([one_point("a", right(3, 5)), one_point("b", right(5, 5))])[0]
    assert table["totals"] == [2, 0]
    assert [(row["name"], [cell["count"] for cell in row["cells"]]) for row in table["rows"]] == [
        ("parameter value", [2, 0])
    ]


def test_costs_stand_side_by_side() -> None:
    def run(label: str, *costs: StageCost) -> ComparedRun:
        return one_point(label, right(1), costs=costs)

    warmup = StageCost(stage="i0/warmup", shards=1, seconds=60.0)
    train = StageCost(stage="i1/train", shards=1, seconds=2.0, counters={"tokens_computed": 7.0})
    evaluate = StageCost(stage="i1/evaluate", shards=1, seconds=3.0, counters={"requests": 5.0, "decoded": 0.0})
    groups = dict(cost_groups([run("a", warmup, evaluate), run("b", train, evaluate)]))
    assert list(groups) == ["All stages", "i0/warmup", "i1/evaluate", "i1/train"]
    assert [(row.name, row.cells) for row in groups["All stages"]] == [
        ("Time", ("1 min 03 s", "5.0 s")),
        ("Requests", ("5", "5")),
        ("Tokens trained on", ("–", "7")),
    ]
    assert [(row.name, row.cells) for row in groups["i1/train"]] == [
        ("Time", ("–", "2.0 s")),
        ("Tokens trained on", ("–", "7")),
    ]


def test_every_run_s_points_are_drawn_with_wilson_s_intervals() -> None:
    (title, chart), *_ = accuracy_charts([one_point("a", right(10, 20)), one_point("b", right(0, 20))])
    assert title == "exact calls on the dev set"
    assert "a: base 50.0 % (29.9 to 70.1); b: base 0.0 % (0.0 to 16.1)" in chart


# --- the page ---


def test_equal_runs_give_equal_text_and_names_are_escaped() -> None:
    runs = [one_point("<script>alert(1)</script>", right(3, 5)), one_point("b", right(5, 5))]
    page = build_comparison(runs)
    assert page == build_comparison(runs)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
