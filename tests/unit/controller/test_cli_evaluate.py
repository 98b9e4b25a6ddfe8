"""`itrain evaluate` hands everything to the pipeline and becomes it: its words, its signals and its exit code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from itrain_operator.cli_evaluate import evaluate
from itrain_pipeline.evaluating.options import build_parser

FAKE = """#!/bin/sh
printf '%s\\n' "$@" > "$TOLD"
exit 75
"""


def run(tmp_path: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    python = tmp_path / "python"
    python.write_text(FAKE)
    python.chmod(0o755)
    told = tmp_path / "told"
    done = subprocess.run(
        [Path(sys.executable).parent / "itrain", "evaluate", *arguments],
        env={**os.environ, "ITRAIN_PYTHON": str(python), "TOLD": str(told), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done, told.read_text().splitlines() if told.exists() else []


def test_options_reach_the_pipeline_and_its_exit_code_is_the_commands(tmp_path: Path) -> None:
    done, told = run(tmp_path, "a model", "--adapter", "a b", "--categories", "x,y", "--data", "d=/x", "--limit", "3")
    assert done.returncode == 75
    assert told[:2] == ["-m", "itrain_pipeline.evaluating"]
    arguments = build_parser().parse_args(told[2:])
    assert arguments.model_dir == "a model"
    assert arguments.adapter == Path("a b")
    assert (arguments.categories, arguments.data, arguments.limit) == (["x,y"], ["d=/x"], 3)
    assert arguments.out == Path("evaluation")


def test_every_option_of_the_pipeline_can_be_given(tmp_path: Path) -> None:
    values = {
        "--out": "o", "--engine": "vllm", "--precision": "fp16", "--endpoint": "http://x/v1", "--model": "m",
        "--api-key-env": "K", "--dev-format": "xlam", "--call-format": "hermes", "--max-new-tokens": "7",
        "--concurrency": "2", "--timeout": "3.5", "--retries": "0", "--export-bfcl": "e", "--benchmark": "dev",
        "--data": "dev=d", "--categories": "c", "--limit": "1", "--adapter": "a", "--output": "json",
        "--tool-results": "user",
    }  # fmt: skip
    given = [part for pair in values.items() for part in pair]
    _, told = run(tmp_path, *given, "--native", "--plain")
    parsed = vars(build_parser().parse_args(told[2:]))
    default = vars(build_parser().parse_args(["--out", "x"]))
    assert {name for name in parsed if parsed[name] == default[name]} == {"model_dir"}
    assert json.dumps(parsed, default=str, sort_keys=True).count("hermes") == 1


def test_defaults_are_the_pipelines(tmp_path: Path) -> None:
    _, told = run(tmp_path, "m", "--out", "x")
    parsed = vars(build_parser().parse_args(told[2:]))
    assert parsed == vars(build_parser().parse_args(["m", "--out", "x"]))


def test_wrong_usage_starts_nothing(tmp_path: Path) -> None:
    done, told = run(tmp_path, "m", "--precision", "other")
    assert (done.returncode, told) == (2, [])
    done, told = run(tmp_path, "--help")
    assert (done.returncode, told) == (0, [])
    for code in re.findall(r"\b\d+\b", str(evaluate.__doc__)):
        assert code in done.stdout
