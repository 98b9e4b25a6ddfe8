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
from collections.abc import Sequence
from pathlib import Path

from itrain_bench.controller.usage import machine
from itrain_bench.training.answers import AnswerWorkload
from itrain_bench.training.child import Figures
from itrain_bench.training.ppl import ppl_figures
from itrain_bench.training.sft import sft_figures
from itrain_bench.training.simpo import ARMS, LEAST_MEMORY, simpo_figures
from itrain_bench.training.workload import Workload

OUT = Path(__file__).parents[4] / "build/bench/train.json"
PARTS = ("simpo", "sft", "ppl")
QUICK = Workload(trees=1, pairs_per_tree=2, repeats=2, layers=6)
FULL = Workload(trees=4, pairs_per_tree=2, repeats=5)
MORE_PAIRS = Workload(trees=2, pairs_per_tree=4, repeats=3)
QUICK_SFT = AnswerWorkload(rows=4, repeats=2, layers=6, global_batch=4)
FULL_SFT = AnswerWorkload(rows=16, repeats=5)
QUICK_PPL = AnswerWorkload(rows=4, repeats=3, layers=6)
FULL_PPL = AnswerWorkload(rows=16, repeats=3, layers=6)
"""Beside the vocabulary a body of 5 M parameters: what can be saved is the output head's share of the work."""
VOCABULARIES = (4_000, 32_000, 128_000)
TARGETS = {"sft_speedup": 1.0, "ppl_speedup_4k": 1.2, "ppl_speedup_32k": 2.5, "ppl_speedup_128k": 5.0}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m itrain_bench.training", description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--quick", action="store_true", default=bool(os.environ.get("QUICK")), help="also: QUICK=1")
    parser.add_argument("--only", choices=PARTS, default=os.environ.get("ONLY") or None, help="a part; also: ONLY=…")
    arguments = parser.parse_args()
    parts = (arguments.only,) if arguments.only else PARTS
    if arguments.only:
        arguments.out = arguments.out.with_stem(f"{arguments.out.stem}-{arguments.only}")
    with tempfile.TemporaryDirectory(prefix="itrain-bench-") as temp:
        figures = bench(Path(temp), parts, quick=arguments.quick)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(figures, indent=2) + "\n")
    for name, least in TARGETS.items():
        if name in figures:
            say(f"{name}: {figures[name]:.2f}, wanted {least}: {'met' if figures[name] >= least else 'not met'}")
    print(arguments.out)
    return 0


def bench(folder: Path, parts: Sequence[str], *, quick: bool) -> Figures:
    """SimPO: two pairs per tree; the full one also four, and TRL with a pair at a time. Perplexity: the full one also
    with logits for all positions and their log-softmax for answers only."""
    began = time.monotonic()
    figures: Figures = {**machine(), **versions()}
    if "simpo" in parts:
        figures |= simpo_figures(
            QUICK if quick else FULL, folder / "simpo", say, ARMS if quick else (*ARMS, LEAST_MEMORY)
        )
        if not quick:
            more = simpo_figures(MORE_PAIRS, folder / "simpo-4", say)
            figures |= {f"pairs_4_{name}": value for name, value in more.items()}
    if "sft" in parts:
        figures |= sft_figures(QUICK_SFT if quick else FULL_SFT, folder / "sft", say)
    if "ppl" in parts:
        arms = ("loop", "ours") if quick else ("loop", "sliced", "ours")
        figures |= ppl_figures(QUICK_PPL if quick else FULL_PPL, VOCABULARIES, folder / "ppl", say, arms)
    return figures | {"bench_seconds": round(time.monotonic() - began)}


def versions() -> Figures:
    names = ("torch", "transformers", "peft", "trl")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
