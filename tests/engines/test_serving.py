"""What a run exports, served by vLLM as docs/recipes.md says, answers an OpenAI request with tool calls."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from itrain_testing.docs import ROOT, shown_files
from itrain_testing.vllmserver import open_direct, served, serving_commands

pytestmark = pytest.mark.timeout(600)
RECIPES = ROOT / "docs" / "recipes.md"


def exported(folder: Path) -> Path:
    """The model of the page's first run, by the line in which `itrain run` names it."""
    for name, text in shown_files(RECIPES).items():
        (folder / name).write_text(text, encoding="utf-8")
    command = [Path(sys.executable).parent / "itrain", "run", "first.yaml", "--local", "--dir", "first"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (named,) = re.findall(r"^model +(.+)$", done.stdout, flags=re.MULTILINE)
    return Path(named)


def test_the_exported_model_of_a_run_is_served_with_tool_calls(tmp_path: Path) -> None:
    if importlib.util.find_spec("itrain_operator") is None:
        pytest.skip("the itrain command is not installed beside these library versions")
    model = exported(tmp_path)
    template, serve, ask = serving_commands(RECIPES.name)
    with served(model, tmp_path, template, serve) as url:
        assert ask[:2] == ["curl", "http://127.0.0.1:8000/v1/chat/completions"]
        assert ask[-1] == "@question.json"
        request = urllib.request.Request(
            f"{url}/v1/chat/completions",
            data=(tmp_path / "question.json").read_bytes(),
            headers=dict([ask[ask.index("--header") + 1].split(": ")]),
        )
        with open_direct(request) as reply:
            answer: dict[str, Any] = json.loads(reply.read())
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    page = RECIPES.read_text(encoding="utf-8")
    (shown,) = re.findall(r"`choices\[0\].*?```json\n(.*?)```", page, flags=re.DOTALL)
    wanted, made = json.loads(shown), call["function"]
    assert (made["name"], json.loads(made["arguments"])) == (wanted["name"], json.loads(wanted["arguments"]))
