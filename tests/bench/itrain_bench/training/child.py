"""Arms as processes of their own: what a parent starts, and how a child measures.

Memory is a process's high-water mark, so an arm cannot share one with another.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from itrain_bench.controller.usage import peak_rss_mib

Figures = dict[str, float | int | str]
Say = Callable[[str], None]
Told = dict[str, Any]
"""What a child found: figures, and what the parent compares between the arms."""


def run_child(module: str, job: dict[str, Any], folder: Path) -> Told:
    """`python -m MODULE JOB` on the job, to its end; what it found."""
    folder.mkdir(parents=True)
    path, found = folder / "job.json", folder / "found.json"
    path.write_text(json.dumps({**job, "scratch": str(folder / "scratch"), "found": str(found)}))
    subprocess.run([sys.executable, "-m", module, str(path)], check=True, stdout=subprocess.DEVNULL)
    return json.loads(found.read_text())


def run_job(measure: Callable[[dict[str, Any]], Told]) -> int:
    """The child's side of `run_child`."""
    job = json.loads(Path(sys.argv[1]).read_text())
    Path(job["found"]).write_text(json.dumps(measure(job)))
    return 0


Turn = Callable[[], Any]
Finish = Callable[[Any], Told]


def take_turns(module: str, jobs: dict[str, dict[str, Any]], repeats: int, folder: Path) -> dict[str, Told]:
    """A process for each job, all ready before the first begins; then one repetition of each in turn, `repeats` times,
    so that what else the machine does meets all of them alike. Figures are of each one's fastest repetition."""
    children: dict[str, subprocess.Popen[str]] = {}
    turns: dict[str, list[Told]] = {name: [] for name in jobs}
    try:
        for name, job in jobs.items():
            path = folder / f"{name}.json"
            path.write_text(json.dumps(job))
            command = [sys.executable, "-m", module, str(path)]
            children[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            _answer(children[name])
        for _ in range(repeats):
            for name, child in children.items():
                turns[name].append(_ask(child, "go"))
        found = {name: _ask(child, "end") for name, child in children.items()}
    finally:
        for child in children.values():
            child.kill()
            child.communicate()
    for name, told in found.items():
        told |= {key: min(turn[key] for turn in turns[name]) for key in ("seconds", "cpu_seconds")}
    return found


def _ask(child: subprocess.Popen[str], word: str) -> Told:
    assert child.stdin is not None
    child.stdin.write(word + "\n")
    child.stdin.flush()
    return _answer(child)


def _answer(child: subprocess.Popen[str]) -> Told:
    """The next line that is a JSON object; libraries may print others."""
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("{"):
            return json.loads(line)
    raise RuntimeError(f"an arm ended with {child.wait()} before its turn")


def serve_turns(prepare: Callable[[dict[str, Any]], tuple[Turn, Finish]]) -> int:
    """The child's side of `take_turns`: what is made once, one repetition, and what is told of the last one."""
    turn, finish = prepare(json.loads(Path(sys.argv[1]).read_text()))
    print("{}", flush=True)
    found: Any = None
    for line in sys.stdin:
        if line.strip() == "end":
            print(json.dumps(finish(found)), flush=True)
            break
        began, began_cpu = time.perf_counter(), time.process_time()
        found = turn()
        told = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - began_cpu}
        print(json.dumps(told), flush=True)
    return 0


def own_peak_mib() -> float:
    return peak_rss_mib(os.getpid())


def flat(prefix: str, told: Told) -> Figures:
    """The numbers among what a child told, under their names in the flat file."""
    return {f"{prefix}_{name}": value for name, value in told.items() if isinstance(value, int | float)}


def largest_difference(first: list[float], second: list[float]) -> float:
    return max(abs(one - other) for one, other in zip(first, second, strict=True))
