"""`python -m itrain_bench.learning.sweep`: one iteration behind one warm-up, one setting changed at a time, dev tasks.

A table and one flat JSON file. Nothing here touches the test split.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from itrain_bench.controller.usage import machine
from itrain_bench.learning.measure import Figures, Size, held_out, say, seed_arms
from itrain_bench.learning.stats import accuracy
from itrain_bench.learning.tasks import of_kind
from itrain_pipeline.quickstart import model_path
from itrain_pipeline.stages.rendered import load_renderer

OUT = Path(__file__).parents[4] / "build/bench/learning-sweep.json"
SIZE = Size(seeds=(1,), pool=1200, test=600, warmup_steps=40, iteration_steps=30, iterations=1, split="dev")
VALUES: Final[dict[str, tuple[float, ...]]] = {
    "simpo_rate": (5e-4, 1e-3, 4e-3),
    "answer_nll_weight": (0.0, 1.0, 100.0),
    "beta": (1.0, 5.0),
    "gamma": (0.0, 1.5),
    "fraction": (0.05, 0.2),
    "simulations": (2, 10),
}
"""What is tried instead of the size's own value."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m itrain_bench.learning.sweep", description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--only", action="append", choices=tuple(VALUES), default=[], help="these settings alone")
    parser.add_argument("--resume", action="store_true", help="keep what an interrupted sweep has finished")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    work = arguments.out.with_suffix("")
    if not arguments.resume:
        shutil.rmtree(work, ignore_errors=True)
    figures: Figures = {**machine(), **sweep(SIZE, arguments.only or tuple(VALUES), work)}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(arguments.out)
    return 0


def sweep(size: Size, names: Sequence[str], work: Path) -> Figures:
    """Accuracies in per cent, differences to the warm-up in points with their standard error, and pairs."""
    arms = seed_arms(size, work, size.seeds[0])
    rare = held_out(size, load_renderer(model_path(), "pythonic", trust_remote_code=False)).rare
    warmed = arms.warmup()
    before, figures = Path(warmed["adapter"]), told("warmup", warmed, warmed, rare)
    changed = [(name, value) for name in names for value in VALUES[name]]
    for name, value in [("as_it_is", None), *changed]:
        one = size if value is None else dataclasses.replace(size, **{name: value})
        label = name if value is None else f"{name}_{value:g}"
        found = arms.variant(label, one.method(), before)
        figures |= told(label, found, warmed, rare)
        say(f"{label}: {figures[f'acc_{label}']} % ({figures[f'gain_{label}']:+} ± {figures[f'se_{label}']})")
    return figures


def told(label: str, found: dict[str, Any], before: dict[str, Any], rare: Sequence[bool]) -> Figures:
    differences = [100.0 * (after - was) for after, was in zip(found["right"], before["right"], strict=True)]
    figures: Figures = {
        f"acc_{label}": round(accuracy([found["right"]]), 1),
        f"acc_{label}_rare": round(accuracy(of_kind([found["right"]], rare, wanted=True)), 1),
        f"acc_{label}_ordinary": round(accuracy(of_kind([found["right"]], rare, wanted=False)), 1),
        f"gain_{label}": round(statistics.mean(differences), 1),
        f"se_{label}": round(statistics.stdev(differences) / math.sqrt(len(differences)), 1),
    }
    return figures | {f"{name}_{label}": found[name] for name in ("trees", "pairs", "missed") if name in found}


if __name__ == "__main__":
    sys.exit(main())
