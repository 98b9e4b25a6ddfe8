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


def timed(work: Callable[[], Any], repeats: int) -> tuple[Any, dict[str, float]]:
    """The result of `work`, and the figures of the fastest repetition, the one that others disturbed least."""
    walls, cpus, found = [], [], None
    for _ in range(repeats):
        began, began_cpu = time.perf_counter(), time.process_time()
        found = work()
        walls.append(time.perf_counter() - began)
        cpus.append(time.process_time() - began_cpu)
    return found, {"seconds": min(walls), "cpu_seconds": min(cpus)}


def own_peak_mib() -> float:
    return peak_rss_mib(os.getpid())


def flat(prefix: str, told: Told) -> Figures:
    """The numbers among what a child told, under their names in the flat file."""
    return {f"{prefix}_{name}": value for name, value in told.items() if isinstance(value, int | float)}


def largest_difference(first: list[float], second: list[float]) -> float:
    return max(abs(one - other) for one, other in zip(first, second, strict=True))
