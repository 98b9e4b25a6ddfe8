"""The plug-in point: how a benchmark is found, what is refused by name, and what it is given."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from itrain_pipeline.errors import ConfigError, DataError, PermanentError
from itrain_pipeline.evals.benchmark import (
    BUILTIN,
    Answer,
    Benchmark,
    Item,
    Judgement,
    Opening,
    find_factory,
    join_uri,
    open_benchmark,
)
from itrain_pipeline.evals.devset import DevSet
from itrain_pipeline.evals.metrics import Rate, Score, pooled, score_groups
from itrain_pipeline.evals.questions import build_questions, predict
from itrain_pipeline.records import Message, Prediction
from itrain_pipeline.toolcalls.parse import ParseResult


@dataclass(frozen=True)
class Echo:
    """Right where the answer is the gold text; `boom` makes the judge fail."""

    name: str = "echo"

    def items(self) -> list[Item]:
        said = (Message(role="user", content="Say it."),)
        return [
            Item(category=category, id=text, messages=said, tools=(), gold=text, prompt_ids=(1, 2))
            for category, text in (("short", "a"), ("long", "bb"), ("long", "boom"))
        ]

    def judge(self, item: Item, answer: Answer) -> Judgement:
        if item.gold == "boom":
            raise KeyError("no such gold")
        return Judgement(correct=answer.text == item.gold)

    def groups(self, rates: Mapping[str, Rate]) -> Mapping[str, Score | None]:
        return {"both/accuracy": pooled(rates.values()).score if len(rates) == 2 else None}

    def info(self) -> Mapping[str, str]:
        return {}


class NoPrompts:
    def prompt_ids(self, messages: Any, tools: Any) -> tuple[int, ...]:
        raise AssertionError("items with prompt ids are asked as they are")


def read(_text: str) -> ParseResult:
    return ParseResult()


def test_our_own_benchmarks_have_the_shape_that_plug_ins_have() -> None:
    assert isinstance(DevSet(examples=[]), Benchmark)
    assert isinstance(Echo(), Benchmark)
    assert not isinstance(object(), Benchmark)
    assert all(callable(find_factory(name)) for name in BUILTIN)


def test_answers_are_judged_by_the_benchmark_and_counted_by_category_and_group() -> None:
    echo = Echo()
    questions = build_questions(echo, echo.items()[:2], NoPrompts())
    rows = [predict(question, "base", "a", read) for question in questions]
    assert [(row.category, row.id, row.correct) for row in rows] == [("short", "a", True), ("long", "bb", False)]
    scores = score_groups(rows, {"echo": echo.groups})
    assert scores["echo/both/accuracy"] == Score(value=0.5, se=pytest.approx(0.125**0.5), n=2)
    assert scores["echo/short/accuracy"].value == 1.0
    assert "echo/both/accuracy" not in score_groups(rows[:1], {"echo": echo.groups})
    assert set(score_groups(rows)) == {"echo/accuracy", "echo/short/accuracy", "echo/long/accuracy"}


def test_a_judge_that_fails_ends_the_stage_for_good_and_names_its_item() -> None:
    """Asked again it would fail again, after all the questions before it."""
    echo = Echo()
    *_, broken = build_questions(echo, echo.items(), NoPrompts())
    with pytest.raises(PermanentError, match="benchmark echo: judging long/boom failed with KeyError"):
        predict(broken, "base", "a", read)


def test_an_unknown_benchmark_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(
        ConfigError, match=r"'bfc': known here are acebench, apibank, bfcl, dev, and package.module:fac"
    ):
        find_factory("bfc")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no_such_package.of_mine:make", "cannot be imported here: No module named 'no_such_package'"),
        ("json:no_such", "cannot be imported here: module 'json' has no attribute 'no_such'"),
        ("json:__name__", "is a str, expected a factory"),
        ("builtins:id", "its factory made a int, which lacks a Benchmark's parts"),
    ],
)
def test_a_dotted_path_that_leads_to_no_benchmark_is_refused_by_name(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        open_benchmark(name, Opening())


def test_a_factory_that_fails_ends_the_stage_for_good() -> None:
    with pytest.raises(PermanentError, match="benchmark 'builtins:sum' cannot be opened: TypeError: 'Opening' object"):
        open_benchmark("builtins:sum", Opening())


def test_a_category_that_cannot_name_a_metric_is_refused() -> None:
    items = [dataclasses.replace(Echo().items()[0], category="Two words")]
    with pytest.raises(DataError, match="benchmark echo: category 'Two words'; allowed are a-z"):
        build_questions(Echo(), items, NoPrompts())


def test_an_installed_packages_benchmark_is_found_by_its_entry_point(tmp_path: Path) -> None:
    """And cannot take over a built-in name. In a process of its own: what is installed is read from sys.path."""
    (tmp_path / "their_bench.py").write_text(
        "class Theirs:\n"
        "    def __init__(self, opening): self.name = opening.uri\n"
        "    def items(self): return []\n"
        "    def judge(self, item, answer): raise AssertionError\n"
        "    def groups(self, rates): return {}\n"
        "    def info(self): return {}\n"
    )
    meta = tmp_path / "their_bench-1.0.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: their-bench\nVersion: 1.0\n")
    (meta / "entry_points.txt").write_text(
        "[itrain.benchmarks]\ntheirs = their_bench:Theirs\nbfcl = their_bench:Theirs\nlost = their_bench:Lost\n"
    )
    script = (
        "from itrain_pipeline.evals.benchmark import Opening, find_factory, open_benchmark\n"
        "from itrain_pipeline.errors import ConfigError\n"
        "asked = (('theirs', 'mine'), ('their_bench:Theirs', 'other'), ('theirs', 'Not A Name'), ('lost', 'x'))\n"
        "for name, uri in asked:\n"
        "    try: print(open_benchmark(name, Opening(uri=uri)).name)\n"
        "    except ConfigError as error: print(error)\n"
        "print(find_factory('bfcl').__module__)\n"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "mine",
        "other",
        "benchmark 'theirs' calls itself 'Not A Name': allowed are a-z, 0-9 and _, 40 at most",
        "benchmark 'lost' cannot be imported here: module 'their_bench' has no attribute 'Lost'",
        "itrain_pipeline.evals.bfcl",
    ]


def test_rows_are_read_below_the_uri_and_must_be_objects() -> None:
    files: dict[str, list[object]] = {"s3://b/x/one.json": [{"id": 1}], "/x/two.json": [{"id": 1}, 7], "/x/no.json": []}
    opening = Opening(uri="s3://b/x/", read=files.__getitem__)
    assert opening.rows("one.json") == [{"id": 1}]
    with pytest.raises(DataError, match=r"/x/two\.json row 2: expected a JSON object, found int"):
        Opening(uri="/x", read=files.__getitem__).rows("two.json")
    with pytest.raises(DataError, match=r"/x/no\.json holds no rows"):
        Opening(uri="/x/no.json", read=files.__getitem__).rows()
    with pytest.raises(ConfigError, match="say where they lie"):
        Opening().rows("one.json")


def test_a_query_stays_behind_the_file() -> None:
    assert join_uri("hf://org/name?revision=abc", "a.json") == "hf://org/name/a.json?revision=abc"
    assert join_uri("./data/", "a.json") == "./data/a.json"


def test_a_reports_groups_are_those_of_the_stage() -> None:
    """The report has predictions only: BFCL's and API-Bank's groups are known without their data."""
    rows = [
        Prediction(benchmark="apibank", category=category, id=str(at), point="base", output="", correct=at < 1)
        for category, n in (("level_2_call", 3), ("level_2_search", 1))
        for at in range(n)
    ]
    assert score_groups(rows)["apibank/level_2/accuracy"] == Score(value=0.5, se=0.25, n=4)
    assert "apibank/level_2/accuracy" not in score_groups(rows[:3])
