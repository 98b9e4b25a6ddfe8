"""Which trees are shown, how a tree becomes rows, and what the search's table counts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from itrain_contract.stages import StageKind
from itrain_pipeline.errors import DataError
from itrain_pipeline.evals.collect import collect_from_results
from itrain_pipeline.evals.report import build_report
from itrain_pipeline.evals.searchtable import build_search_table
from itrain_pipeline.evals.trees import Why, choose, collect_records, widest_gap
from itrain_pipeline.evals.treeview import MOST_CHARS, MOST_INDENTS, tree_card, tree_rows, visible
from itrain_pipeline.records import write_jsonl
from itrain_testing.reports import report_data
from itrain_testing.searchedtrees import (
    HOSTILE,
    example,
    hostile_tree,
    node,
    record,
    searched,
    shown_trees,
    weather_tree,
)
from itrain_testing.stageports import fetch, stage_result


def rollout(folder: Path, rows: list[object], **counters: float):  # type: ignore[no-untyped-def]
    write_jsonl(folder / "trees.jsonl", rows)
    made = stage_result(StageKind.ROLLOUT, 1, {"trees.jsonl": folder / "trees.jsonl"}, shard=0)
    return made.model_copy(update={"counters": counters})


def test_the_gap_is_between_chosen_and_rejected_of_one_node() -> None:
    assert widest_gap(weather_tree()) == pytest.approx(0.55 + 0.53)
    apart = (node(-1, ""), node(0, "a", q=1.0, role="chosen"), node(1, "b", q=-1.0, role="rejected"))
    assert widest_gap(apart) == 0.0


def test_each_reason_takes_its_own_tree() -> None:
    steps = (node(-1, ""), node(0, "x", q=0.2, role="chosen", standing="right"), node(0, "y", role="rejected"))
    narrow = record("b", steps)
    lost = record("c", (node(-1, ""), node(0, "x", q=-1.0, standing="wrong")), pairs=0)
    plain = record("d", (node(-1, ""), node(0, "x", q=1.0)), best_reward=1.0, pairs=0)
    found = choose([plain, lost, narrow, record("a", weather_tree())])
    assert [(why, r.sample_id) for why, r in found] == [(Why.GAP, "a"), (Why.FAILED, "c"), (Why.NO_PAIR, "d")]


def test_a_choice_does_not_depend_on_the_order_of_records() -> None:
    records = [record(name, weather_tree()) for name in "cab"]
    assert choose(records) == choose(records[::-1])
    assert choose(records)[0][1].sample_id == "a"


def test_steps_without_a_choice_between_them_are_one_row() -> None:
    rows = tree_rows(weather_tree())
    assert [(row.depth, len(row.steps), row.role) for row in rows] == [
        (0, 0, ""),
        (1, 1, "chosen"),
        (2, 1, "chosen"),
        (3, 1, ""),
        (3, 1, ""),
        (2, 1, "rejected"),
        (1, 2, "rejected"),
        (1, 2, ""),
    ]
    assert rows[6].steps == ("[get_current_weather(", "city='San Francisco')]")
    assert (rows[6].reward, rows[6].prior) == ("−0.53", "0.21")


def test_lines_go_on_where_a_sibling_follows() -> None:
    rows = tree_rows(weather_tree())
    assert [row.guides for row in rows] == [(), (), (1,), (1, 2), (1, 2), (1,), (), ()]
    assert [row.last for row in rows] == [True, False, False, False, True, True, False, True]


def test_a_deep_tree_keeps_to_the_page() -> None:
    chain = [node(-1, "", visits=30)]
    for depth in range(20):  # each with a sibling, so that nothing is joined
        chain += [node(max(0, 2 * depth - 1), "a", visits=2), node(max(0, 2 * depth - 1), "b")]
    rows = tree_rows(chain)
    assert len(rows) == 41
    assert max(row.depth for row in rows) == MOST_INDENTS
    assert {level for row in rows for level in row.guides} <= set(range(1, MOST_INDENTS + 1))


def test_q_is_drawn_from_the_middle() -> None:
    rows = tree_rows((node(-1, "", q=0.5), node(0, "x", q=-1.0), node(0, "y", q=0.0)))
    assert [row.bar for row in rows] == [(50.0, 25.0), (0.0, 50.0), (50.0, 0.0)]


def test_what_shows_nothing_is_written_out_and_what_is_long_is_cut_with_its_length() -> None:
    assert visible("a\u202eb\x00\n\td") == "a⟨U+202E⟩b⟨U+0000⟩\n\td"
    assert visible("W" * 10_000) == "W" * MOST_CHARS + " … (9,400 more characters)"
    visible("".join(HOSTILE)).encode()  # a lone surrogate would not survive this


def test_hostile_output_is_no_markup() -> None:
    trees = (hostile_tree(),)
    page = build_report(report_data(trees=trees, searched=searched(trees)))
    assert "<script" not in page
    assert "<img" not in page
    assert page.count("<h1>") == 1
    assert "&lt;script&gt;document.title" in page


def test_a_card_tells_how_the_tree_ended_and_what_is_not_drawn() -> None:
    tree = shown_trees((1,))[0]
    card = tree_card(dataclasses.replace(tree, record=dataclasses.replace(tree.record, nodes=70)))
    assert card.summary.endswith("2 pairs; best answer +1.00. It ended because it had its quota of pairs.")
    assert card.hidden == 60
    assert card.prompt_title == "The whole prompt: 805 tokens, 2 messages, 8 tools"
    assert [name for name, _ in card.tools][:2] == ["get_forecast", "get_forecast_1"]


def test_records_of_an_earlier_version_are_read_and_the_page_says_what_is_missing(tmp_path: Path) -> None:
    kept = ("sample_id", "reason", "simulations", "nodes", "expanded", "answers", "best_reward", "mean_reward")
    kept += ("pairs", "requests", "judge_calls", "prompt_tokens", "decoded_tokens")
    row = {name: value for name, value in dataclasses.asdict(record("a", weather_tree())).items() if name in kept}
    path = tmp_path / "trees.jsonl"
    path.write_text(json.dumps(row) + "\n")
    result = stage_result(StageKind.ROLLOUT, 1, {"trees.jsonl": path}, shard=0)
    data = collect_from_results([result], fetch)
    assert data.trees == ()
    assert "records have counts but no steps" in build_report(data)


def test_fields_of_a_later_version_are_left_out(tmp_path: Path) -> None:
    row = {**dataclasses.asdict(record("a", weather_tree())), "colour": "blue"}
    path = tmp_path / "trees.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (found,) = collect_records([stage_result(StageKind.ROLLOUT, 1, {"trees.jsonl": path}, shard=0)], fetch)
    assert found.records == (record("a", weather_tree()),)


def test_a_row_that_is_no_tree_is_a_data_error(tmp_path: Path) -> None:
    path = tmp_path / "trees.jsonl"
    path.write_text('{"sample_id": "a"}\n')
    with pytest.raises(DataError, match=r"trees\.jsonl: a row is not a TreeRecord"):
        collect_records([stage_result(StageKind.ROLLOUT, 1, {"trees.jsonl": path}, shard=0)], fetch)


def test_trees_come_with_the_example_they_were_searched_for(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [example("other"), example("toolace/1042")])
    prepare = stage_result(StageKind.PREPARE, files={"train.jsonl": tmp_path / "train.jsonl"})
    made = rollout(tmp_path, [record("toolace/1042", weather_tree())])
    (tree,) = collect_from_results([prepare, made], fetch).trees
    assert tree.why == Why.GAP
    assert tree.example == example("toolace/1042")


def test_the_table_gives_ratios_to_the_lower_bound_by_hand() -> None:
    """L = 805 + 112 = 917 tokens; 900 computed + 283 written = 1,183 = 1.29 L; 3 requests for 2 pairs."""
    counters = {"trees": 1.0, "pairs": 2.0, "requests": 3.0, "prefill_computed": 900.0, "decoded": 283.0}
    table = build_search_table({1: counters}, {1: [record("a", weather_tree())]})
    assert table is not None
    told = {row.name: row.cells for _, rows in table.groups for row in rows}
    assert table.columns == ("Iteration 1",)
    assert told["Tokens over the lower bound L"] == ("1.29",)
    assert told["Requests per pair"] == ("1.50",)
    assert told["It had its quota of pairs"] == ("1",)


def test_arms_of_a_benchmark_stand_beside_the_run() -> None:
    bench = {"p800_requests_per_tree_r0": 8.0, "p800_requests_per_tree_ours": 2.4, "p200_requests_per_tree_r0": 9.0}
    table = build_search_table({1: {"trees": 2.0, "requests": 5.0}}, {}, bench)
    assert table is not None
    assert table.columns == ("Iteration 1", "Released code", "Bench, ours")
    told = {row.name: row.cells for _, rows in table.groups for row in rows}
    assert told["Requests per tree"] == ("2.50", "8", "2.40")
    assert told["Trees searched"] == ("2", "–", "–")


def test_a_counter_that_nobody_named_is_still_shown() -> None:
    table = build_search_table({1: {"trees": 2.0, "new_figure": 5.0}}, {})
    assert table is not None
    assert any(row.name == "New figure" for _, rows in table.groups for row in rows)
