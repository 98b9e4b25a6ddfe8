"""`python -m itrain_bench.training`: training next to what others compute for the same, in one flat JSON file."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

from itrain_bench.controller.usage import machine
from itrain_bench.training.simpo import ARMS, LEAST_MEMORY, Figures, simpo_figures
from itrain_bench.training.workload import Workload

OUT = Path(__file__).parents[4] / "build/bench/train.json"
QUICK = Workload(trees=2, pairs_per_tree=2, repeats=2)
FULL = Workload(trees=4, pairs_per_tree=2, repeats=5)
MORE_PAIRS = Workload(trees=2, pairs_per_tree=4, repeats=3)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m itrain_bench.training", description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--quick", action="store_true", default=bool(os.environ.get("QUICK")), help="also: QUICK=1")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="itrain-bench-") as temp:
        figures = bench(Path(temp), quick=arguments.quick)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(arguments.out)
    return 0


def bench(folder: Path, *, quick: bool) -> Figures:
    """Two pairs per tree in both; the full one also four, and TRL with a pair at a time."""
    began = time.monotonic()
    figures: Figures = {**machine(), **versions()}
    if quick:
        figures |= simpo_figures(QUICK, folder / "simpo", say)
    else:
        figures |= simpo_figures(FULL, folder / "simpo", say, (*ARMS, LEAST_MEMORY))
        more = simpo_figures(MORE_PAIRS, folder / "simpo-4", say)
        figures |= {f"pairs_4_{name}": value for name, value in more.items()}
    return figures | {"bench_seconds": round(time.monotonic() - began)}


def versions() -> Figures:
    names = ("torch", "transformers", "peft", "trl")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
