"""Local runs in tests: a run file, the fake pipeline behind ITRAIN_PYTHON, its ledger, and `itrain` as a process."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FAKE = Path(__file__).with_name("fakepipeline.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the fake pipeline's ledger."""

    event: str
    ref: str
    shard: str
    attempt: int
    pid: int


def run_document(name: str = "demo", *, iterations: int = 1, **stages: Mapping[str, Any]) -> dict[str, Any]:
    """A small run; `stages` add to the stage blocks. Retries wait not at all unless a test says so."""
    quick = {"gpus": 0, "retry": {"limit": 2, "backoffSeconds": 0, "maxBackoffSeconds": 0}}
    blocks: dict[str, dict[str, Any]] = {
        kind: dict(quick) for kind in ("prepare", "warmup", "score", "rollout", "train", "evaluate", "export")
    }
    for kind in ("score", "rollout"):
        blocks[kind] |= {"shards": 2, "parallelism": 2}
    for kind, block in stages.items():
        blocks[kind] |= block
    return {
        "apiVersion": "itrain.dev/v1alpha1",
        "kind": "ITrainRun",
        "metadata": {"name": name},
        "spec": {
            "model": {"uri": "builtin://toolworld"},
            "data": {"uri": "builtin://toolworld?split=train"},
            "storage": {"uri": "./artifacts"},
            "iterations": {"max": iterations},
            "stages": blocks,
        },
    }


class LocalWorld:
    """A folder with a run file in it, and everything needed to run it with the fake pipeline."""

    def __init__(self, path: Path, document: dict[str, Any], script: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.file = path / "run.yaml"
        self.folder = path / "state"
        self.ledger_file = path / "ledger"
        self.write(document)
        self.script: Mapping[str, Any] = script or {}
        self.python = path / "fake-python"
        self.python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -I -S {shlex.quote(str(FAKE))} "$@"\n')
        self.python.chmod(0o755)

    def write(self, document: dict[str, Any]) -> None:
        self.file.write_text(yaml.safe_dump(document))

    @property
    def environ(self) -> dict[str, str]:
        return {
            **os.environ,
            "ITRAIN_PYTHON": str(self.python),
            "ITRAIN_FAKE_SCRIPT": json.dumps(self.script),
            "ITRAIN_FAKE_LEDGER": str(self.ledger_file),
        }

    def command(self, *arguments: str) -> list[str]:
        code = "from itrain_operator.cli import main; main()"
        return [sys.executable, "-c", code, *arguments]

    def run_command(self, *options: str) -> list[str]:
        return self.command("run", str(self.file), "--local", "--dir", str(self.folder), *options)

    def start(self, *options: str) -> subprocess.Popen[str]:
        """`itrain run` in the background, in a group of its own as a shell would start it."""
        return subprocess.Popen(
            self.run_command(*options),
            cwd=self.path,
            env=self.environ,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
        )

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        return self.call(*self.run_command(*options)[3:])

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), cwd=self.path, env=self.environ, text=True, capture_output=True, check=False
        )

    def ledger(self) -> list[Line]:
        if not self.ledger_file.exists():
            return []
        rows = [line.split() for line in self.ledger_file.read_text().splitlines()]
        return [Line(event=e, ref=r, shard=s, attempt=int(a), pid=int(p)) for e, r, s, a, p in rows]

    def done(self) -> list[tuple[str, str]]:
        """(stage, shard) in the order in which they were finished."""
        return [(line.ref, line.shard) for line in self.ledger() if line.event == "done"]

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "status.json").read_text())
        return found


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
