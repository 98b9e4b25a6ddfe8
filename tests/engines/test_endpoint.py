"""`itrain evaluate --endpoint` against vLLM's own server, by the commands of docs/evaluation.md."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from itrain_contract.names import ExitCode
from itrain_pipeline.data.formats import read_dialogue
from itrain_pipeline.data.sources import read_rows
from itrain_pipeline.evals.nativecalls import read_native, wire_messages, wire_names, wire_tools
from itrain_pipeline.evaluating.__main__ import main
from itrain_pipeline.quickstart import model_path
from itrain_pipeline.records import Message, Prediction, read_jsonl
from itrain_pipeline.stages.rendered import load_renderer
from itrain_pipeline.toolcalls.parse import parse
from itrain_testing.stageports import Silent
from itrain_testing.vllmserver import open_direct, served, serving_commands

pytestmark = pytest.mark.timeout(600)
DEV = ["--benchmark", "dev", "--data", "dev=builtin://toolworld?split=dev&rows=12&seed=2&distractors=6"]
SHORT = ["--max-new-tokens", "96", "--plain"]
PLAIN_NAME = re.compile(r"[A-Za-z]\w*")


def documented() -> list[list[str]]:
    """The template, the server, and an evaluation in each mode."""
    return serving_commands("evaluation.md")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """vLLM serving the shipped model under the printed template, as the page says; its URL."""
    template, serve, *_ = documented()
    with served(model_path(), tmp_path_factory.mktemp("serve"), template, serve) as url:
        yield url


def evaluate(out: Path, *options: str) -> list[Prediction]:
    assert main([*options, *DEV, *SHORT, "--out", str(out)], Silent()) == ExitCode.DONE
    return list(read_jsonl(out / "predictions.jsonl", Prediction))


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> list[Prediction]:
    """The same questions to the same model on our own engine."""
    return evaluate(tmp_path_factory.mktemp("ours") / "out", str(model_path()), "--engine", "transformers")


def test_tools_in_the_prompt_get_the_answers_of_our_own_engine(
    server: str, ours: list[Prediction], tmp_path: Path
) -> None:
    served = evaluate(tmp_path / "out", "--endpoint", f"{server}/v1", "--model", "toolworld")
    assert [(p.id, p.output, p.correct) for p in served] == [(p.id, p.output, p.correct) for p in ours]
    assert 0 < sum(p.correct for p in served) < len(served)


def test_native_calls_are_the_same_calls_where_the_servers_parser_reads_them(
    server: str, ours: list[Prediction], tmp_path: Path
) -> None:
    """Of 12 questions, those whose tools all have names that the API takes as they are."""
    served = evaluate(tmp_path / "out", "--endpoint", f"{server}/v1", "--model", "toolworld", "--native")
    compared = 0
    for mine, theirs in zip(ours, served, strict=True):
        assert mine.id == theirs.id
        calls = parse(mine.output, "pythonic").calls
        if calls and all(PLAIN_NAME.fullmatch(call.name) for call in calls):
            assert read_native(theirs.output).calls == calls, mine.id
            compared += 1
    assert compared >= 6


def test_under_the_printed_template_a_request_with_tools_is_our_prompt_to_the_token(server: str) -> None:
    renderer = load_renderer(model_path(), "pythonic", trust_remote_code=False)
    tools = tuple({**tool, "name": name} for name, tool in zip(wire_names(shown_tools()), shown_tools(), strict=True))
    messages = (Message(role="system", content="Today is Monday."), Message(role="user", content="Rent a report."))
    names = wire_names(tools)
    body = {
        "model": "toolworld",
        "messages": wire_messages(messages, names, "pythonic"),
        "tools": wire_tools(tools, names),
        "add_generation_prompt": True,
    }
    request = urllib.request.Request(
        f"{server}/tokenize", data=json.dumps(body).encode(), headers={"content-type": "application/json"}
    )
    with open_direct(request) as reply:
        assert tuple(json.loads(reply.read())["tokens"]) == renderer.prompt_ids(messages, tools)


def test_a_prompt_without_room_and_an_unknown_model_are_told_apart(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [long_row("Hello. " * 20), long_row("Hello. " * 4096)]
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    where = ["--endpoint", f"{server}/v1", "--benchmark", "dev", "--data", f"dev={tmp_path}/dev.jsonl"]
    where += ["--dev-format", "messages", *SHORT]
    assert main([*where, "--model", "toolworld", "--out", str(tmp_path / "out")], Silent()) == ExitCode.DONE
    short, long = read_jsonl(tmp_path / "out" / "predictions.jsonl", Prediction)
    assert (short.error_class == "not_asked", long.error_class) == (False, "not_asked")
    assert "4096" in long.detail
    assert main([*where, "--model", "nobody", "--out", str(tmp_path / "other")], Silent()) == ExitCode.CONFIG
    assert "nobody" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("at", [2, 3])
def test_the_commands_of_the_page_run_as_shown(server: str, tmp_path: Path, at: int) -> None:
    if importlib.util.find_spec("itrain_operator") is None or importlib.util.find_spec("bfcl_eval") is None:
        pytest.skip("the itrain command and bfcl-eval are not installed beside these library versions")
    command = documented()[at]
    assert command[:2] == ["itrain", "evaluate"]
    shown = [f"{server}/v1" if part == "http://127.0.0.1:8000/v1" else part for part in command[1:]]
    assert f"{server}/v1" in shown
    done = subprocess.run(
        [Path(sys.executable).parent / "itrain", *shown], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"bfcl/simple_python/accuracy +\d+\.\d +\d+\.\d +5 ", done.stdout)


def converse(out: Path, *options: str) -> list[Prediction]:
    asked = ["--benchmark", "itrain_testing.shortdialogues:ShortDialogues", "--limit", "3"]
    assert main([*options, *asked, *SHORT, "--out", str(out)], Silent()) == ExitCode.DONE
    return list(read_jsonl(out / "predictions.jsonl", Prediction))


def test_dialogues_go_the_same_way_on_our_engine_and_at_the_server(server: str, tmp_path: Path) -> None:
    """Several turns and steps with results between; in the prompt text by text, natively call by call."""
    at = ["--endpoint", f"{server}/v1", "--model", "toolworld"]
    ours = converse(tmp_path / "ours", str(model_path()), "--engine", "transformers")
    prompted = converse(tmp_path / "prompt", *at, "--tool-results", "tool")
    native = converse(tmp_path / "native", *at, "--native")
    assert [p.output for p in prompted] == [p.output for p in ours]
    assert max(len(turn) for p in ours for turn in json.loads(p.output)) > 1
    for mine, theirs in zip(ours, native, strict=True):
        first, same = json.loads(mine.output)[0][0], json.loads(theirs.output)[0][0]
        assert read_native(same).calls == parse(first, "pythonic").calls


def long_row(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "Hello."}]}


def shown_tools() -> tuple[dict[str, Any], ...]:

    rows = list(read_rows("builtin://toolworld?split=dev&rows=3&seed=2", "toolace", store=None, scratch=None))  # type: ignore[arg-type]
    return tuple(tool for row in rows for tool in read_dialogue(row, "toolace").tools)
