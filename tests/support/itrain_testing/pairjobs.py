"""Small preference trainings in this process: a job on random pairs, run without a stage around it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from itrain_contract.spec import AdapterSpec
from itrain_pipeline.learn.fitting import fit_job
from itrain_pipeline.learn.guards import Guards
from itrain_pipeline.learn.job import FitResult, Optimisation, TrainJob, write_rows
from itrain_pipeline.learn.order import count_steps, plan_batches, plan_tree_order
from itrain_pipeline.learn.passes import RowForm
from itrain_pipeline.stages.train import training_row, tree_numbers
from itrain_testing.learning import make_pairs

BATCH = 4


@dataclasses.dataclass
class Stopping:
    """A supervisor that asks to stop after so many steps (never, by default) and keeps nothing."""

    after: int = 1_000_000
    looks: int = 0

    def report(self, step: int, total: int, text: str) -> None:
        pass

    def should_stop(self) -> bool:
        self.looks += 1
        return self.looks >= self.after

    def saved(self, folder: Path, step: int) -> None:
        pass


def pair_job(
    folder: Path,
    model_dir: Path,
    *,
    guards: Guards | None = None,
    learning_rate: float = 0.005,
    epochs: float = 2,
    checkpoint_steps: int = 1000,
    form: RowForm = "tree",
    processes: int = 1,
    deepspeed: dict[str, Any] | None = None,
    resume_from: Path | None = None,
) -> TrainJob:
    """11 pairs in global batches of 4, with dropout and gradient checkpointing, so that all random state matters."""
    pairs = make_pairs(11)
    trees = tree_numbers([pair.lineage.sample_id for pair in pairs])
    order = plan_tree_order(trees, epochs=epochs, max_steps=0, global_batch=BATCH, seed=3)
    folder.mkdir(parents=True, exist_ok=True)
    return TrainJob(
        kind="simpo",
        model=model_dir,
        adapter=None,
        adapter_spec=AdapterSpec(rank=4, alpha=8, dropout=0.1),
        rows=write_rows(folder / "rows.jsonl", [training_row(pair) for pair in pairs]),
        order=order,
        folder=folder / "train",
        how=Optimisation(
            learning_rate=learning_rate,
            warmup_ratio=0.0,
            schedule="cosine",
            checkpoint_steps=checkpoint_steps,
            seed=3,
            precision="fp32",
            on_cpu=True,
            plan=plan_batches(global_batch=BATCH, micro_batch=2, processes=processes),
            steps=count_steps(len(order), BATCH),
            gradient_checkpointing=True,
            deepspeed=deepspeed,
        ),
        loss={"beta": 2.5, "gamma": 0.5},
        resume_from=resume_from,
        trees=trees,
        form=form,
        guards=guards,
    )


def train_pairs(
    folder: Path, model_dir: Path, *, guards: Guards | None = None, job: TrainJob | None = None
) -> FitResult:
    return fit_job(job or pair_job(folder, model_dir, guards=guards), Stopping())
