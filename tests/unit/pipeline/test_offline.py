"""A benchmark without a run: its questions out, somebody's answers in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from itrain_contract.names import ExitCode
from itrain_pipeline.evals.offline import main
from itrain_pipeline.records import Prediction, read_jsonl

ROW = {
    "file": "a.jsonl",
    "instruction": "The current year is 2023.\nAPI descriptions:\n"
    '{"name": "Open", "description": "", "input_parameters": {"door": {"type": "str"}}}',
    "input": "User: Open it.\nGenerate API Request:",
}


def write_bank(folder: Path) -> Path:
    rows = [{**ROW, "id": at, "expected_output": f"API-Request: [Open(door='{at}')]"} for at in range(3)]
    path = folder / "level-1-api.json"
    path.write_text(json.dumps(rows))
    return path


def write_answers(folder: Path, rows: Sequence[object]) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def questions(folder: Path) -> list[dict[str, str]]:
    out = folder / "questions.jsonl"
    assert main(["--benchmark", "apibank", "--uri", str(write_bank(folder)), "--questions", str(out)]) == ExitCode.DONE
    return [json.loads(line) for line in out.read_text().splitlines()]


def answer(question: Mapping[str, str], output: str) -> dict[str, str]:
    return {"category": question["category"], "id": question["id"], "output": output}


def test_questions_hold_what_is_asked_and_not_the_gold(tmp_path: Path) -> None:
    first, *_ = asked = questions(tmp_path)
    assert len(asked) == 3
    assert sorted(first) == ["category", "id", "messages", "tools"]
    assert "door='0'" not in json.dumps(asked)


@pytest.mark.parametrize(
    ("call_format", "text"),
    [("pythonic", "[Open(door='1')]"), ("hermes", '<tool_call>{"name": "Open", "arguments": {"door": 1}}</tool_call>')],
)
def test_answers_are_judged_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], call_format: str, text: str
) -> None:
    mine = write_answers(tmp_path, [answer(question, text) for question in reversed(questions(tmp_path))])
    capsys.readouterr()
    out = tmp_path / "judged.jsonl"
    arguments = ["--benchmark", "apibank", "--uri", str(tmp_path / "level-1-api.json"), "--call-format", call_format]
    assert main([*arguments, "--answers", str(mine), "--out", str(out)]) == ExitCode.DONE
    told = json.loads(capsys.readouterr().out)
    assert (told["apibank/level_1/accuracy"], told["apibank/n"]) == (0.333333, 3)
    rows = list(read_jsonl(out, Prediction))
    assert [(row.id[-1], row.correct, row.error_class, row.point) for row in rows] == [
        ("0", False, "parameter_value", "mine"),
        ("1", True, None, "mine"),
        ("2", False, "parameter_value", "mine"),
    ]


@pytest.mark.parametrize(
    ("kept", "more", "reason"),
    [
        (2, [], "1 questions have no answer, the first is level_1/1-a.jsonl-2"),
        (
            3,
            [{"category": "level_1", "id": "1-a.jsonl-0", "output": ""}],
            "answer 4 is to level_1/1-a.jsonl-0, a second",
        ),
        (
            3,
            [{"category": "level_1", "id": "x", "output": ""}],
            "answer 4 is to level_1/x, but there is no such question",
        ),
        (3, [{"category": "level_1", "id": "x"}], "answer 4: expected category, id and output"),
        (3, [["level_1"]], "answer 4: expected category, id and output"),
    ],
)
def test_answers_that_do_not_fit_the_questions_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kept: int, more: list[object], reason: str
) -> None:
    mine = write_answers(tmp_path, [*(answer(q, "") for q in questions(tmp_path)[:kept]), *more])
    out = tmp_path / "judged.jsonl"
    arguments = ["--benchmark", "apibank", "--uri", str(tmp_path / "level-1-api.json")]
    assert main([*arguments, "--answers", str(mine), "--out", str(out)]) == ExitCode.DATA
    assert reason in capsys.readouterr().err
    assert not out.exists()


def test_data_that_are_not_there_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--benchmark", "apibank", "--uri", str(tmp_path), "--questions", str(tmp_path / "q.jsonl")]
    assert main(arguments) == ExitCode.DATA
    assert "level-1-api.json: there is no such file on this machine" in capsys.readouterr().err
