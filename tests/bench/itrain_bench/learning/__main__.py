"""`python -m itrain_bench.learning`: do the iterations beat plain fine-tuning at equal steps? One flat JSON file.

The model that ships with the package learns a long-tailed toolworld: one row in twenty of the pool, one in two of the
test set, needs a phrase that its pre-training never had. Training and test share neither tools nor open values.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from itrain_bench.controller.usage import machine
from itrain_bench.learning.measure import FULL, QUICK, Figures, Size, measure, say
from itrain_bench.training.__main__ import versions

OUT = Path(__file__).parents[4] / "build/bench/learning.json"
WANTED_GAIN = 4.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m itrain_bench.learning", description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--quick", action="store_true", default=bool(os.environ.get("QUICK")), help="also: QUICK=1")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=JSON", help="another value of a size's field"
    )
    parser.add_argument("--resume", action="store_true", help="keep the arms that an interrupted bench has finished")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="seeds at a time, a thread each")
    arguments = parser.parse_args()
    size = changed(QUICK if arguments.quick else FULL, arguments.set)
    begun = time.monotonic()
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(size)).encode()).hexdigest()[:12]
    work = arguments.out.with_suffix("") / digest
    if not arguments.resume:
        shutil.rmtree(work, ignore_errors=True)
    figures: Figures = {**machine(), **versions(), **told(size)}
    figures |= measure(size, work, jobs=arguments.jobs)
    figures["bench_seconds"] = round(time.monotonic() - begun)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(figures, indent=2) + "\n")
    say(verdict(figures))
    print(arguments.out)
    if reason := unlearned(figures):
        say(f"bench-learning: {reason}")
        return 1
    return 0


def unlearned(figures: Figures) -> str:
    """Why these iterations fail the bench: they have made the model worse than its warm-up, beyond doubt; else ""."""
    high = float(figures["gain_iterations_over_warmup_ci_high"])
    if high >= 0:
        return ""
    return f"the iterations lose to the warm-up: {figures['gain_iterations_over_warmup']:+} points, 95 % up to {high:+}"


def changed(size: Size, assignments: Sequence[str]) -> Size:
    """`size` with fields set from `name=json`; a list is a tuple. Raises SystemExit for a field that is none."""
    fields = {field.name for field in dataclasses.fields(size)}
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, _, text = assignment.partition("=")
        if name not in fields:
            raise SystemExit(f"--set {name}: allowed are {', '.join(sorted(fields))}")
        value = json.loads(text)
        values[name] = tuple(value) if isinstance(value, list) else value
    return dataclasses.replace(size, **values)


def told(size: Size) -> Figures:
    return {f"size_{name}": value if isinstance(value, int | float) else str(value) for name, value in vars_of(size)}


def vars_of(size: Size) -> list[tuple[str, Any]]:
    return list(dataclasses.asdict(size).items())


def verdict(figures: Figures) -> str:
    """The table of accuracies, and whether the gain is what was wanted."""
    lines = [
        f"{name[4:]:<14}{value:>7} ± {figures[f'se_{name[4:]}']}  rare {figures[f'{name}_rare']}, "
        f"ordinary {figures[f'{name}_ordinary']}"
        for name, value in figures.items()
        if f"se_{name[4:]}" in figures and name.startswith("acc_")
    ]
    gain, low = float(figures["gain_iterations_over_best_sft"]), float(figures["gain_ci_low"])
    met = "met" if gain >= WANTED_GAIN and low > 0 else "not met"
    lines.append(
        f"iterations over {figures['best_sft']}: {gain:+.1f} points, 95 % from {low:+.1f} to "
        f"{float(figures['gain_ci_high']):+.1f}; wanted {WANTED_GAIN:+.1f} and above 0: {met}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
