"""Whole local runs of crds/examples/tiny.yaml by the real command: started, killed at a chosen moment, compared."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
TINY = ROOT / "crds/examples/tiny.yaml"
TIMEOUT_S = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyRun:
    """One run directory; artifacts lie in it too."""

    folder: Path
    env: dict[str, str]
    storage: str = ""
    """S3 URI; artifacts lie in `folder` when empty."""

    def command(self) -> list[str]:
        storage = self.storage or str(self.folder / "artifacts")
        return [
            *(sys.executable, "-m", "itrain_operator.cli", "run", str(TINY), "--local", "--plain"),
            *("--dir", str(self.folder), "--set", f"storage.uri={storage}"),
            *("--summary", str(self.folder / "summary.json")),
        ]

    def start(self) -> subprocess.Popen[bytes]:
        """The command in a process group of its own, its output in `folder`/console.log."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "console.log").open("ab") as log:
            return subprocess.Popen(
                self.command(), env={**os.environ, **self.env}, stdout=log, stderr=log, start_new_session=True
            )

    def finish(self) -> int:
        """Run to the end; the exit code."""
        return self.start().wait(TIMEOUT_S)

    def console(self) -> str:
        return (self.folder / "console.log").read_text(encoding="utf-8", errors="replace")

    def job(self, stage: str) -> Path:
        return self.folder / "jobs" / f"tiny-{stage}-a1"

    def done_in(self, stage: str) -> int:
        """The largest progress that a process of a stage has told; -1 before its job exists."""
        if not (self.job(stage) / "job.json").exists():
            return -1
        told = [json.loads(p.read_text()).get("done", 0) for p in self.job(stage).glob("*.progress.json")]
        return max(told, default=0)

    def has_ended(self, stage: str) -> bool:
        exits = list(self.job(stage).glob("*.exit.json"))
        return bool(exits) and len(exits) >= len(list(self.job(stage).glob("*.log")))

    def kill_inside(self, stage: str, done: int) -> bool:
        """Start, and kill -9 once a stage has told `done`; whether it was still at work then."""
        process = self.start()
        reached = wait_for(lambda: self.done_in(stage) >= done or process.poll() is not None)
        assert reached, f"{stage} never came to {done}:\n{self.console()[-3000:]}"
        inside = process.poll() is None and not self.has_ended(stage)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
        return inside

    def interrupt_inside(self, stage: str, done: int) -> int:
        """Start, and press Ctrl-C once a stage has told `done`; the exit code."""
        process = self.start()
        assert wait_for(lambda: self.done_in(stage) >= done), self.console()[-3000:]
        process.send_signal(signal.SIGINT)
        return process.wait(120)

    def results(self) -> dict[str, str]:
        """sha256 of every pair file and of every adapter, by their place in the run."""
        (root,) = [p for p in (self.folder / "artifacts").iterdir() if p.is_dir()]
        wanted = [*root.rglob("a*/**/pairs.jsonl"), *root.rglob("a*/adapter/adapter_model.safetensors")]
        return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(wanted)}


def wait_for(condition: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> bool:
    """Poll often: the moments that tests kill at are short."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False
