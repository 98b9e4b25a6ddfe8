"""`python -m itrain_pipeline.profiling_start KIND MODEL ENGINE PRECISION`: what a stage's process does before its work.

Timed from outside, from the start of the process to its end: imports are most of it.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal, get_args

Start = Literal["prepare", "engine", "train"]
"""Stages that only render, those that generate or score, those that train."""


def measured_start(kind: Start, model: Path, *, engine: str, precision: str) -> float:
    """Seconds of such a process. Raises CalledProcessError, its output on stderr, for one that fails."""
    command = [sys.executable, "-m", "itrain_pipeline.profiling_start", kind, str(model), engine, precision]
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def main(argv: list[str]) -> int:
    kind, model, engine, precision = argv
    if kind not in get_args(Start):
        raise SystemExit(f"got {kind}, allowed are {', '.join(get_args(Start))}")
    from itrain_pipeline.stages.rendered import load_renderer

    renderer = load_renderer(Path(model), "pythonic", trust_remote_code=False)
    if kind == "engine":
        asyncio.run(_answer(Path(model), engine, precision, renderer))
    elif kind == "train":
        from itrain_pipeline.profiling import train_steps

        with tempfile.TemporaryDirectory(prefix="itrain-profile-") as folder:
            train_steps(Path(model), [((1, 2), (3,))], precision=precision, folder=Path(folder), seconds=0.0)
    else:
        import itrain_pipeline.stages.prepare  # noqa: F401
    return 0


async def _answer(model: Path, kind: Any, precision: Any, renderer: Any) -> None:
    import itrain_pipeline.stages.rollout  # noqa: F401
    from itrain_pipeline.engine import open_engine
    from itrain_pipeline.ports import SamplingParams

    engine = open_engine(kind, model, dtype=precision)
    params = SamplingParams(seeds=(1,), max_tokens=1, stop_token_ids=(renderer.end_of_turn_id,))
    await engine.generate((1, 2), params)
    await engine.aclose()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
