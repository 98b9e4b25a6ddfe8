"""`python -m itrain_bench.evaluate`: is the judging right, and what does asking cost? One flat JSON file."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from itrain_bench.controller.usage import machine
from itrain_bench.evaluate.correct import Figures, correct_figures
from itrain_bench.evaluate.official import official_figures
from itrain_bench.evaluate.speed import Size, speed_figures
from itrain_bench.search.__main__ import versions
from itrain_pipeline.engine.vllm_versions import is_installed

OUT = Path(__file__).parents[4] / "build/bench/evaluate.json"
PARTS = ("correct", "speed", "official")
QUICK = Size(items=12, dialogues=1, dialogue_arms=("", "_uncached"))
FULL = Size(items=64, dialogues=4, official_dialogues=4)
AT_LEAST = {
    "gold_ast_valid": 2494,
    "gold_multiturn_valid": 800,
    "mutations": 18_000,
    "attribution_min": 0.95,
    "attribution_names_min": 0.90,
}
AT_MOST = {"mutation_leaks": 1}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m itrain_bench.evaluate", description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--quick", action="store_true", default=bool(os.environ.get("QUICK")), help="also: QUICK=1")
    parser.add_argument("--only", choices=PARTS, default=os.environ.get("ONLY") or None, help="a part; also: ONLY=…")
    parser.add_argument("--threads", type=int, default=1, help="of torch, the same for all arms")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    parts = (arguments.only,) if arguments.only else PARTS
    if arguments.only:
        arguments.out = arguments.out.with_stem(f"{arguments.out.stem}-{arguments.only}")
    with tempfile.TemporaryDirectory(prefix="itrain-bench-") as temp:
        figures = bench(Path(temp), parts, QUICK if arguments.quick else FULL, threads=arguments.threads)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    told = {k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}
    arguments.out.write_text(json.dumps(told, indent=2) + "\n")
    for name, wanted in {**AT_LEAST, **AT_MOST}.items():
        if name in told:
            met = told[name] >= wanted if name in AT_LEAST else told[name] <= wanted  # type: ignore[operator]
            say(f"{name}: {told[name]}, wanted {wanted}: {'met' if met else 'not met'}")
    print(arguments.out)
    return 0


def bench(
    folder: Path,
    parts: Sequence[str],
    size: Size,
    *,
    threads: int,
    every: int = 1,
    engines: Sequence[str] = ("transformers", "vllm"),
) -> Figures:
    """Every n-th gold answer and mistake; what has no figure says why."""
    begun = time.monotonic()
    figures: Figures = {**machine(), **versions(), "threads": threads}
    if "correct" in parts:
        figures |= correct_figures(every)
        say(f"gold {figures['gold_ast_valid']}, dialogues {figures['gold_multiturn_valid']}")
    if "speed" in parts:
        for kind in engines:
            there = kind != "vllm" or is_installed()
            figures[f"engine_{kind}"] = "measured" if there else "not installed"
            figures |= speed_figures(kind, size, threads=threads, say=say) if there else {}
    if "official" in parts:
        figures |= official_figures(folder, size, say)
        say(f"official: {figures['official']}")
    return figures | {"bench_seconds": round(time.monotonic() - begun)}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
