"""Answers in BFCL's own format: the official program reads them and comes to our figures."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from itrain_contract.bfcl import ITEMS
from itrain_pipeline.evals.bfcl import Bfcl, load_items
from itrain_pipeline.evals.bfclresults import result_path, result_row, write_results
from itrain_pipeline.evals.metrics import count_rates
from itrain_pipeline.evals.nativecalls import native_text, read_native
from itrain_pipeline.evals.questions import build_questions, not_asked, predict
from itrain_pipeline.records import Message, Prediction
from itrain_pipeline.toolcalls.parse import ParseResult, parse
from itrain_testing.bfclgold import gold_answer
from itrain_testing.mutations import Task, mutants, write

ROOT = Path(__file__).parents[3]
TALK = ("I cannot help with that.", "[]", "", "[f(a=", "import os; os.system('true')")


class NoPrompts:
    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
        return ()


def read(text: str) -> ParseResult:
    return parse(text, "pythonic")


def predictions(seed: int) -> list[Prediction]:
    """Every item answered: right, wrong in a planted way, in prose, unreadable or empty."""
    rng = random.Random(seed)
    bench = Bfcl(questions=load_items())
    made = []
    for item, question in zip(bench.questions, build_questions(bench, bench.items(), NoPrompts()), strict=True):
        choices = [*TALK, "[anything(x=1)]"]
        if item.possible_answers:
            calls = [(call.name, dict(call.arguments)) for call in gold_answer(item)]
            functions = {function["name"]: function for function in item.functions}
            literal = "java" not in item.category
            task = Task(calls=calls, functions=functions, allowed=list(item.possible_answers), literal=literal)
            choices += [write(calls)] * 8 + [mutant.text for mutant in mutants(task, rng)]
        made.append(predict(question, "m", rng.choice(choices), read))
    return made


@pytest.mark.timeout(300)
def test_the_official_program_scores_every_category_as_we_do(tmp_path: Path) -> None:
    ours = predictions(seed=3)
    assert write_results(tmp_path / "result", ours, read) == ITEMS
    done = subprocess.run(
        [sys.executable, "-m", "itrain_testing.officialbfcl", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests" / "support")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    official = json.loads(done.stdout.splitlines()[-1])
    rates = count_rates(ours)
    assert {name: tuple(score) for name, score in official.items()} == {
        name: (rate.correct, rate.n) for name, rate in rates.items()
    }
    assert all(0 < rate.correct < rate.n for name, rate in rates.items() if rate.n > 50)


def prediction(category: str, output: str, **more: Any) -> Prediction:
    return Prediction(
        benchmark="bfcl", category=category, id=f"{category}_0", point="m", output=output, correct=False, **more
    )


def test_calls_are_written_as_literals_and_text_as_text() -> None:
    row = result_row(prediction("simple_python", "Sure: [f.g(x=1, y=['a'])]"), read)
    assert row == {"id": "simple_python_0", "result": [{"f.g": {"x": 1, "y": ["a"]}}]}
    assert result_row(prediction("simple_python", "No."), read)["result"] == "No."


def test_java_values_travel_as_source_text() -> None:
    row = result_row(prediction("simple_java", "[f(x=1, y='new Foo()')]"), read)
    assert row["result"] == [{"f": {"x": "1", "y": "new Foo()"}}]


def test_native_calls_are_written_in_the_same_form() -> None:
    text = native_text({"tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}]}, {"f": "a.f"})
    assert result_row(prediction("multiple", text), read_native)["result"] == [{"a.f": {"x": 1}}]


def test_an_answer_on_which_the_official_checker_fails_does_not_end_the_official_evaluation() -> None:
    row = result_row(prediction("simple_python", "[f(x=1)]", detail="checker_raised:TypeError: x"), read)
    assert row["result"] == "[f(x=1)]"


def test_what_was_not_asked_and_other_benchmarks_are_left_out(tmp_path: Path) -> None:
    bench = Bfcl(questions=load_items(["irrelevance"], 2))
    first, second = build_questions(bench, bench.items(), NoPrompts())
    other = Prediction(benchmark="dev", category="call", id="1", point="m", output="", correct=True)
    mixed = [not_asked(first, "m", "too long"), predict(second, "m", "No.", read), other]
    assert write_results(tmp_path, mixed, read) == {"irrelevance": 1}
    (line,) = result_path(tmp_path, "irrelevance").read_text().splitlines()
    assert json.loads(line) == {"id": second.id, "result": "No."}
    assert result_path(tmp_path, "live_simple").parent.name == "live"
