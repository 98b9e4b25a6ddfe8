"""The report says what the numbers say, in one file that asks the network for nothing."""

from __future__ import annotations

import random
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from itrain_contract.stages import StageKind
from itrain_pipeline.errors import DataError
from itrain_pipeline.evals.card import CardData, build_card
from itrain_pipeline.evals.charts import histogram, learning_curve, line_chart, log_edges, short_names
from itrain_pipeline.evals.collect import collect_from_results, curve, prediction_file
from itrain_pipeline.evals.labels import metric_name
from itrain_pipeline.evals.metrics import Score
from itrain_pipeline.evals.report import Verdict, build_report, loss_charts, verdict
from itrain_pipeline.evals.report_data import PointResult, ReportData, StageMachine, TrainingCurve
from itrain_pipeline.evals.tables import amount, category_tables, duration, error_tables, lineage_facts, machine_table
from itrain_pipeline.records import Prediction, ScoredExample, write_jsonl
from itrain_testing.reports import predictions, report_data
from itrain_testing.stageports import fetch, stage_result


@pytest.fixture(scope="module")
def page() -> str:
    return build_report(report_data())


class Page(HTMLParser):
    """Tags in order, attributes, and that every opened element is closed."""

    VOID = frozenset({"meta", "link", "br", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(page: str) -> Page:
    parser = Page()
    parser.feed(page)
    assert parser.open == []
    return parser


def test_the_page_is_well_formed_and_has_every_section(page: str) -> None:
    found = parsed(page)
    headings = {attributes["id"] for tag, attributes in found.tags if tag == "h2"}
    assert headings == {"curve", "categories", "errors", "losses", "perplexity", "search", "costs", "facts"}
    assert [tag for tag, _ in found.tags].count("h1") == 1


def test_the_page_asks_for_nothing_outside_itself(page: str) -> None:
    for tag, attributes in parsed(page).tags:
        assert tag not in ("script", "iframe", "img", "object", "embed")
        for name in ("src", "href", "xlink:href", "action"):
            target = attributes.get(name)
            assert target is None or target.startswith(("#", "data:")), (tag, name, target)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_every_id_is_unique_and_every_reference_resolves(page: str) -> None:
    ids = [attributes["id"] for _, attributes in parsed(page).tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) <= set(ids)


def test_charts_have_names_text_and_only_the_pages_colours(page: str) -> None:
    charts = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(charts) == 6 + (1 + 2 * 4) + 2
    for chart in charts:
        assert re.search(r'role="img" aria-label="[^"]{10,}"', chart)
        assert "<text" in chart
        assert "var(--series-1)" in chart
        assert not re.search(r"(fill|stroke|color): ?#|\"#[0-9a-f]{6}\"", chart), "wrong in the dark"


def test_equal_data_give_equal_text() -> None:
    assert build_report(report_data()) == build_report(report_data())


def test_names_from_outside_are_escaped() -> None:
    page = build_report(report_data(run="<script>alert(1)</script>", facts=(("a", "<b>&"),)))
    assert "<script>" not in page
    assert "&lt;b&gt;&amp;" in page


def test_a_report_of_an_unfinished_run_leaves_sections_out() -> None:
    page = build_report(ReportData(run="young", created="", metric="dev/call_accuracy", best=None, points=()))
    assert "Nothing was measured" in page
    assert [tag for tag, _ in parsed(page).tags].count("h2") == 0


def point(name: str, *, right: int, n: int = 100) -> PointResult:
    rows = tuple(
        Prediction(benchmark="dev", category="call", id=str(i), point=name, output="", correct=i < right)
        for i in range(n)
    )
    return PointResult(point=name, iteration=0, predictions=rows)


def run_of(*points: PointResult, best: str | None = None, curves: tuple[TrainingCurve, ...] = ()) -> ReportData:
    return ReportData(run="r", created="", metric="dev/call_accuracy", best=best, points=points, curves=curves)


def told_of(*points: PointResult, best: str | None = None) -> Verdict:
    """The verdict with plain spaces."""
    told = verdict(run_of(*points, best=best))
    plain = tuple(sentence.replace("\u00a0", " ") for sentence in told.sentences)
    return Verdict(headline=told.headline.replace("\u00a0", " "), sentences=plain)


def test_axis_labels_shrink_with_the_number_of_points() -> None:
    assert short_names(["base", "warmup", "iteration-1"]) == ["base", "warm-up", "it. 1"]
    assert short_names(["base", "warmup", *(f"iteration-{i}" for i in range(1, 5))])[1:3] == ["w", "1"]


def test_a_gain_is_told_with_its_standard_error() -> None:
    """20 of 100 items gained, none lost: 0.2 ± √((0.2 − 0.04)/100) = 20 ± 4 points, 5 standard errors."""
    told = told_of(point("base", right=40), point("warmup", right=40), point("iteration-1", right=60))
    assert told.headline == "Exact calls on the dev set gained 20.0 ± 4.0 points"
    assert "+20.0 ± 4.0 points, that is 5.0 standard errors" in told.sentences[0]
    assert "Base model: 40.0 ± 4.9 %" in told.sentences[0]
    assert "+20.0 ± 4.0" in told.sentences[1]


def test_a_gain_within_two_standard_errors_is_no_gain() -> None:
    told = told_of(point("base", right=40), point("iteration-1", right=42))
    assert told.headline == "No measurable change on exact calls on the dev set: +2.0 ± 1.4 points"


def test_a_loss_is_told_as_a_loss() -> None:
    told = told_of(point("base", right=60), point("iteration-1", right=40))
    assert told.headline == "Exact calls on the dev set lost 20.0 ± 4.0 points"


def test_no_change_at_all_is_no_gain_of_infinite_certainty() -> None:
    told = told_of(point("base", right=60), point("iteration-1", right=60))
    assert told.headline.startswith("No measurable change")
    assert "no item changed" in told.sentences[0]


def test_the_exported_point_is_compared_not_the_last() -> None:
    told = told_of(
        point("base", right=40), point("iteration-1", right=70), point("iteration-2", right=50), best="iteration-1"
    )
    assert "iteration 1: 70.0" in told.sentences[0]
    assert told.sentences[-1] == "Iteration 1 is the exported point; no other scored higher."


def test_a_better_point_that_is_not_exported_is_named() -> None:
    """Iterations compete by their own rule: the page does not hide that another point scored higher."""
    points = (point("base", right=40), point("warmup", right=70), point("iteration-1", right=60))
    assert told_of(*points, best="iteration-1").sentences[-1] == (
        "Iteration 1 is the exported point; warm-up scored 70.0 ± 4.6 %."
    )


def test_a_group_metric_is_compared_unpaired() -> None:
    data = report_data(metric="bfcl/live")
    told = verdict(data)
    assert "BFCL Live (v3)" in told.headline


def test_the_paper_stands_beside_the_bfcl_errors_only() -> None:
    dev, bfcl = error_tables(report_data())
    shares = {row["name"]: row["paper"] for row in bfcl["rows"]}
    assert shares["parameter value"] == 0.51
    assert shares["parameter name"] == 0.26
    assert {row["paper"] for row in dev["rows"]} == {None}
    assert sum(row["cells"][0]["count"] for row in bfcl["rows"]) == bfcl["totals"][0]


def test_a_partial_bfcl_shows_missing_groups_as_missing() -> None:
    rows = tuple(predictions("base", 0.5, random.Random(0), categories=["simple_python"]))
    data = run_of(PointResult(point="base", iteration=0, predictions=rows))
    table = category_tables(data)[1]
    assert [row["name"] for row in table["rows"]] == ["simple_python"]
    assert [row["name"] for row in table["groups"]] == ["all groups of v3 and v4"]
    assert table["groups"][0]["cells"] == ["missing"]


def apibank(name: str, right: dict[str, int]) -> PointResult:
    """Ten items of each category, as many right as `right` says."""
    rows = tuple(
        Prediction(
            benchmark="apibank", category=category, id=f"{category}-{i}", point=name, output="", correct=i < count
        )
        for category, count in right.items()
        for i in range(10)
    )
    return PointResult(point=name, iteration=0, predictions=rows)


def test_api_bank_is_named_for_readers_and_has_level_2_as_published() -> None:
    """(4 + 9) of 20 of level 2 are 65 %; a point without the tool search has no level 2, and nothing is called zero."""
    whole = apibank("base", {"level_2_search": 9, "level_1": 5, "level_2_call": 4})
    part = apibank("warmup", {"level_1": 6, "level_2_call": 7})
    data = run_of(whole, part)
    (table,) = category_tables(data)
    assert (table["title"], table["refuses"]) == ("API-Bank", False)
    assert [(row["name"], row["n"]) for row in table["rows"]] == [
        ("level 1: calls", 10),
        ("level 2: calls", 10),
        ("level 2: tool search", 10),
    ]
    (group,) = table["groups"]
    assert (group["name"], group["n"], group["cells"]) == (
        "level 2, as published",
        20,
        ["65.0\u00a0±\u00a010.7\u00a0%", "missing"],
    )
    page = build_report(data)
    assert not re.search("level_[12]", page)
    assert "API-Bank level 2 (as published)" in page
    assert parsed(page).open == []


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        ("apibank/accuracy", "API-Bank, all evaluated items"),
        ("apibank/level_2_call/accuracy", "API-Bank, level 2: calls"),
        ("bfcl/live", "BFCL Live (v3)"),
        ("mine/hard/accuracy", "mine/hard/accuracy"),
    ],
)
def test_metrics_are_named_for_readers(metric: str, name: str) -> None:
    assert metric_name(metric) == name


def test_numbers_are_written_for_readers() -> None:
    assert (amount(1234567), amount(0.5), amount(12)) == ("1\u202f234\u202f567", "0.50", "12")
    assert (duration(4.25), duration(61), duration(3725)) == ("4.2 s", "1 min 01 s", "1 h 02 min")


def test_a_chart_is_one_element_of_valid_xml() -> None:
    scores = [Score(value=0.4, se=0.05, n=90), None, Score(value=0.6, se=0.05, n=90)]
    drawn = [
        learning_curve("a < b & c", ["base", "warmup", "iteration-1"], scores),
        line_chart("loss", [("loss", [1.0], [0.5])], ylabel="loss"),
        histogram("ppl", [("call", [1.5, 1.5]), ("no call", [])], xlabel="perplexity"),
    ]
    for chart in drawn:
        namespaces = '<svg xmlns:xlink="http://www.w3.org/1999/xlink"'
        assert ElementTree.fromstring(chart.replace("<svg", namespaces, 1)).tag == "svg"
    assert "warmup not measured" in drawn[0]


def test_histogram_edges_hold_every_value() -> None:
    edges = log_edges([1.0, 3.7, 10.0], 7)
    assert (edges[0], edges[-1], len(edges)) == (1.0, 10.0, 8)
    assert edges == sorted(edges)
    assert log_edges([2.0, 2.0], 2)[0] < 2.0 < log_edges([2.0, 2.0], 2)[-1]
    assert len(log_edges([], 3)) == 4


def test_curves_are_read_from_logs_of_several_shapes() -> None:
    rows = [{"step": 5, "loss": 2.0, "lr": 1e-4}, {"step": 10, "loss": 1.0, "lr": 0.0}, {"train_runtime": 3.0}]
    found = curve("Warm-up", rows)
    assert found is not None
    assert found.series == {"loss": ((5.0, 2.0), (10.0, 1.0))}
    ours = curve("Iteration 1", [{"step": 1, "loss": 1.0, "reward_margin": 0.2, "chosen_logprob": -0.5}])
    trl = curve("Iteration 1", [{"step": 1, "loss": 1.0, "rewards/margins": 0.2, "logps/chosen": -0.5}])
    assert ours is not None
    assert ours == trl
    assert ours.series == {"loss": ((1.0, 1.0),), "margin": ((1.0, 0.2),), "chosen logprob": ((1.0, -0.5),)}
    assert curve("nothing", [{"train_runtime": 1.0}]) is None
    assert curve("a probe alone", [{"step": 0, "validity": 1.0}]) is None


def test_the_probes_of_a_guarded_training_stand_at_their_own_steps() -> None:
    """The probe speaks before the first step, where no loss is known, and then at some steps only."""
    rows = [
        {"step": 0, "validity": 1.0},
        {"step": 1, "loss": 0.9, "chosen_logprob": -0.4, "rejected_logprob": -0.9},
        {"step": 2, "loss": 0.8, "chosen_logprob": -0.5, "rejected_logprob": -1.2, "validity": 0.75},
    ]
    found = curve("Iteration 1", rows)
    assert found is not None
    assert found.series["validity"] == ((0.0, 1.0), (2.0, 0.75))
    assert found.series["rejected logprob"] == ((1.0, -0.9), (2.0, -1.2))
    charts = dict(loss_charts(run_of(curves=(found,))))
    assert list(charts) == [
        "Iteration 1: loss",
        "Iteration 1: logprob per token",
        "Iteration 1: readable answers",
    ]
    assert "validity from 100 to 75" in charts["Iteration 1: readable answers"]
    assert "chosen from -0.4 to -0.5; rejected from -0.9 to -1.2" in charts[list(charts)[1]]


def test_a_value_that_is_no_number_leaves_a_gap_in_its_chart() -> None:
    found = curve("Warm-up", [{"step": 1, "loss": 2.0}, {"step": 2, "loss": float("nan")}, {"step": 3, "loss": 1.0}])
    assert found is not None
    assert "loss from 2 to 1" in loss_charts(run_of(curves=(found,)))[0][1]


def test_versions_that_all_stages_share_are_told_once() -> None:
    found = machine_table(
        (
            StageMachine(stage="i0/prepare", versions=(("python", "3.11.7"),)),
            StageMachine(
                stage="i0/warmup",
                precision="fp16",
                quantization="nf4",
                device="V100",
                versions=(("python", "3.11.7"), ("torch", "2.12.1")),
            ),
            StageMachine(
                stage="i1/rollout",
                precision="fp16",
                quantization="none",
                device="V100",
                versions=(("python", "3.11.7"), ("torch", "2.13.0")),
            ),
            StageMachine(stage="i1/export"),
        )
    )
    assert found is not None
    assert found["shared"] == "python 3.11.7"
    assert [tuple(row.values()) for row in found["rows"]] == [
        ("i0/prepare", "–", "–", "–", "–"),
        ("i0/warmup", "fp16", "nf4", "V100", "torch 2.12.1"),
        ("i1/rollout", "fp16", "none", "V100", "torch 2.13.0"),
    ]
    assert machine_table(()) is None


def test_what_the_table_of_machines_tells_is_not_told_again() -> None:
    labels = [label for label, _ in lineage_facts(report_data())]
    assert labels == ["Base model", "Template"]
    assert [label for label, _ in lineage_facts(report_data(machines=()))][1] == "Precision"


def finished_run(folder: Path) -> list[object]:
    run = folder / "small-12345678"

    def file(name: str, text: str = "") -> Path:
        path = run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    for name in ("base", "warmup", "iteration-1"):
        data = report_data((0.4, 0.5, 0.6)).points[("base", "warmup", "iteration-1").index(name)]
        write_jsonl(file(f"i0/evaluate/a1/{prediction_file(name)}"), data.predictions)
    for shard in range(2):
        scored = [ScoredExample(id=f"{shard}{i}", perplexity=1.0 + i, tokens=3, has_call=i > 0) for i in range(3)]
        write_jsonl(file(f"i1/score/shard-{shard}/scores.jsonl"), scored)
    at = "i0/evaluate/a1/"
    return [
        stage_result(
            StageKind.TRAIN, 1, {"log.jsonl": file("i1/train/a1/log.jsonl", '{"step":1,"loss":0.9,"margin":0.1}\n')}
        ),
        stage_result(
            StageKind.WARMUP,
            files={"log.jsonl": file("i0/warmup/a1/log.jsonl", '{"step":1,"loss":2.5}\n{"step":2,"loss":2.0}\n')},
            seconds=12.0,
            info={"torch": "2.13.0", "device": "cpu"},
        ),
        stage_result(
            StageKind.EVALUATE, 1, {prediction_file("iteration-1"): run / at / prediction_file("iteration-1")}
        ),
        stage_result(
            StageKind.EVALUATE,
            files={prediction_file(name): run / at / prediction_file(name) for name in ("warmup", "base")},
            info={"torch": "2.13.0", "device": "cuda"},
        ),
        *(
            stage_result(
                StageKind.SCORE,
                1,
                {"scores.jsonl": run / f"i1/score/shard-{shard}/scores.jsonl"},
                shard=shard,
                seconds=3.0 + shard,
                counters={"tokens": 10.0},
            )
            for shard in (1, 0)
        ),
        *(
            stage_result(StageKind.ROLLOUT, 1, shard=shard, counters={"trees": 5, "failed_trees": shard, "pairs": 7})
            for shard in range(2)
        ),
    ]


def test_a_run_is_collected_from_its_results_in_any_order(tmp_path: Path) -> None:
    results = finished_run(tmp_path)
    data = collect_from_results(results, fetch, created=0.0)  # type: ignore[arg-type]
    assert data.run == "small"
    assert data.created == "1970-01-01 00:00 UTC"
    assert [p.point for p in data.points] == ["base", "warmup", "iteration-1"]
    assert [c.title for c in data.curves] == ["Warm-up", "Iteration 1"]
    assert data.curves[1].series == {"loss": ((1.0, 0.9),), "margin": ((1.0, 0.1),)}
    assert data.perplexities[0].call == (2.0, 3.0, 2.0, 3.0)
    assert data.perplexities[0].no_call == (1.0, 1.0)
    assert data.searches[0].counters == {"trees": 10, "failed_trees": 1, "pairs": 14}
    score = next(cost for cost in data.costs if cost.stage == "i1/score")
    assert (score.shards, score.seconds, score.counters) == (2, 4.0, {"tokens": 20.0})
    assert dict(data.facts)["Torch"] == "2.13.0"
    assert [machine.stage for machine in data.machines][:2] == ["i0/warmup", "i0/evaluate"]
    assert data.machines[0] == StageMachine(stage="i0/warmup", device="cpu", versions=(("torch", "2.13.0"),))
    assert dict(data.facts)["Device"] == "cpu (i0/warmup); cuda (i0/evaluate)"
    assert data == collect_from_results(results[::-1], fetch, created=0.0)  # type: ignore[arg-type]
    assert "Iteration 1" in build_report(data)


def test_exports_own_words_name_metric_and_best_point(tmp_path: Path) -> None:
    export = stage_result(
        StageKind.EXPORT, info={"metric": "bfcl/live", "best_point": "warmup"}, started=0.0, seconds=60
    )
    data = collect_from_results([*finished_run(tmp_path), export], fetch)  # type: ignore[list-item]
    assert (data.metric, data.best, data.created) == ("bfcl/live", "warmup", "1970-01-01 00:01 UTC")


def test_a_damaged_prediction_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "predictions-base.jsonl"
    path.write_text('{"benchmark":"dev"}\n')
    with pytest.raises(DataError, match=r"predictions-base\.jsonl: a row is not a Prediction"):
        collect_from_results([stage_result(StageKind.EVALUATE, files={path.name: path})], fetch)


def test_the_card_names_base_point_and_results() -> None:
    card = build_card(
        CardData(base_model="hf://org/model", call_format="pythonic", files="model/", report=report_data())
    )
    front, body = card.removeprefix("---\n").split("\n---\n")
    assert "base_model: org/model" in front
    assert "library_name: transformers" in front
    assert "| Iteration 2 (exported) |" in body
    assert "(n = 160)" in body
    assert "AutoModelForCausalLM" in body


def test_the_card_of_a_run_without_gain_says_so() -> None:
    card = build_card(
        CardData(base_model="builtin://toolworld", call_format="hermes", files=None, report=report_data((0.5,)))
    )
    assert "No adapter was trained" in card
    assert "base_model" not in card
