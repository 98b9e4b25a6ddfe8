"""`python -m itrain_bench.training.arm JOB`: one arm of the SimPO bench in a process of its own.

Memory is the process's high-water mark, so an arm cannot share one with another.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from itrain_bench.controller.usage import peak_rss_mib, rss_mib
from itrain_bench.training.workload import SETTINGS, Workload, make_passes, open_policy
from itrain_pipeline.learn.collate import PairRow
from itrain_pipeline.learn.passes import RowForm, naive_tokens
from itrain_pipeline.learn.preference import PassCollator, pass_losses
from itrain_pipeline.learn.treemask import FLEX_BLOCK
from itrain_pipeline.learn.treeprobe import uses_flex
from itrain_testing.cpo import cpo_batch, cpo_trainer
from itrain_testing.tiny_model import build_tokenizer

Rows = Sequence[Sequence[PairRow]]
Step = Callable[[Rows], tuple[torch.Tensor, int]]
"""Sum of the losses of a pass, and the tokens that it computes, padding included."""


def main(argv: list[str]) -> int:
    job = json.loads(Path(argv[0]).read_text())
    found, gradient = measure(job["arm"], Workload(**job["workload"]), Path(job["model"]), Path(job["scratch"]))
    torch.save(gradient, job["gradient"])
    Path(job["figures"]).write_text(json.dumps(found))
    return 0


def measure(arm: str, workload: Workload, model_dir: Path, scratch: Path) -> tuple[dict[str, float], torch.Tensor]:
    """Figures of the fastest of `repeats` passes over all pairs, the one that others disturbed least, and the gradient
    of the mean loss. One thread."""
    torch.set_num_threads(1)
    model = open_policy(model_dir)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    step = trl_step(model, scratch) if arm.startswith("trl") else our_step(model, arm)
    passes: list[Rows] = list(make_passes(workload))
    if arm == "trl_one":  # a pair at a time: the least memory that it can do with
        passes = [[[pair]] for rows in passes for tree in rows for pair in tree]
    pairs = [pair for rows in passes for tree in rows for pair in tree]
    loaded = rss_mib(os.getpid())
    run([[[shortened(pairs[0])]]], step)
    walls, cpus = [], []
    for _ in range(workload.repeats):
        model.zero_grad()
        began, began_cpu = time.perf_counter(), time.process_time()
        tokens, loss = run(passes, step, count=len(pairs))
        walls.append(time.perf_counter() - began)
        cpus.append(time.process_time() - began_cpu)
    return {
        "seconds": min(walls),
        "cpu_seconds": min(cpus),
        "tokens": tokens,
        "naive_tokens": sum(map(naive_tokens, pairs)),
        "loss": float(loss),
        "loaded_mib": loaded,
        "peak_mib": peak_rss_mib(os.getpid()),
    }, torch.cat([parameter.grad.flatten() for parameter in trained])


def shortened(pair: PairRow) -> PairRow:
    """For a first step: what is made once in a process is no part of what is measured."""
    return dataclasses.replace(pair, context_ids=pair.context_ids[:32])


def run(passes: Sequence[Rows], step: Step, *, count: int = 1) -> tuple[int, torch.Tensor]:
    """Accumulate the gradient of the mean over `count` pairs; tokens and that mean."""
    tokens, mean = 0, torch.zeros(())
    for rows in passes:
        loss, computed = step(rows)
        (loss / count).backward()
        mean += loss.detach() / count
        tokens += computed
    return tokens, mean


def our_step(model: Any, arm: str) -> Step:
    form = cast("RowForm", arm)
    collator = PassCollator(form=form, multiple=FLEX_BLOCK if uses_flex(model) else 1)

    def step(trees: Rows) -> tuple[torch.Tensor, int]:
        rows = trees if form == "tree" else [[pair] for tree in trees for pair in tree]
        batch = on_device(model, collator([[list(row) for row in rows]]))
        losses, _ = pass_losses(model, model, batch, SETTINGS)
        return losses.sum(), batch["input_ids"].numel()

    return step


def on_device(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.to(model.device) for name, value in batch.items()}


def trl_step(model: Any, scratch: Path) -> Step:
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    trainer = cpo_trainer(model, build_tokenizer(), scratch, SETTINGS)

    def step(trees: Rows) -> tuple[torch.Tensor, int]:
        pairs = [pair for tree in trees for pair in tree]
        batch = on_device(model, cpo_batch(pairs))
        loss, _ = trainer.get_batch_loss_metrics(model, batch)
        widest = max(batch["chosen_input_ids"].shape[1], batch["rejected_input_ids"].shape[1])
        return loss * len(pairs), 2 * len(pairs) * widest

    return step


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
