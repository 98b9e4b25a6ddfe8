"""SFT: the same rows, steps and adapter by TRL's SFTTrainer as it is, and by ours."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import Any

from itrain_bench.training.answers import SHORT, AnswerWorkload, make_rows, padded_tokens
from itrain_bench.training.child import Figures, Say, Told, flat, largest_difference, own_peak_mib, run_child, run_job
from itrain_bench.training.workload import open_policy, write_model

REFERENCE = "trl"
ARMS = (REFERENCE, "ours")
SAME = 1e-4
"""Losses of about 10, summed up in another order."""


def sft_figures(workload: AnswerWorkload, folder: Path, say: Say) -> Figures:
    """`sft_speedup` by CPU seconds. Raises AssertionError when the losses of a step differ."""
    model = write_model(workload.model, folder / "model")
    told: dict[str, Told] = {}
    for arm in ARMS:
        job = {"arm": arm, "workload": dataclasses.asdict(workload), "model": str(model)}
        told[arm] = found = run_child("itrain_bench.training.sft", job, folder / arm)
        say(
            f"sft {arm}: {found['cpu_seconds']:.1f} CPU s, {found['tokens']:,} tokens, "
            f"peak {found['peak_mib']:,.0f} MiB"
        )
    reference, ours = (told[arm] for arm in ARMS)
    difference = largest_difference(reference["losses"], ours["losses"])
    assert difference < SAME, f"losses differ by {difference}: {reference['losses']} and {ours['losses']}"
    return {
        **{f"sft_{name}": value for name, value in dataclasses.asdict(workload).items()},
        **{name: value for arm in ARMS for name, value in flat(f"sft_{arm}", told[arm]).items()},
        "sft_speedup": reference["cpu_seconds"] / ours["cpu_seconds"],
        "sft_speedup_wall": reference["seconds"] / ours["seconds"],
        "sft_peak_memory_ratio": ours["peak_mib"] / reference["peak_mib"],
        "sft_loss_max_abs_diff": difference,
    }


class StepClock:
    """Wall clock and CPU seconds at the end of every optimiser step."""

    def __init__(self) -> None:
        self.walls: list[float] = []
        self.cpus: list[float] = []

    def tick(self) -> None:
        self.walls.append(time.perf_counter())
        self.cpus.append(time.process_time())

    def figures(self, repeats: int) -> dict[str, float]:
        """The fastest repetition: as many steps each, behind a first step that warms up."""
        steps = (len(self.walls) - 1) // repeats
        ends = range(steps, len(self.walls), steps)
        return {
            "seconds": min(self.walls[end] - self.walls[end - steps] for end in ends),
            "cpu_seconds": min(self.cpus[end] - self.cpus[end - steps] for end in ends),
        }

    # What a training of ours asks and tells (Supervisor).
    def report(self, step: int, total: int, text: str) -> None:
        pass

    def should_stop(self) -> bool:
        self.tick()
        return False

    def saved(self, folder: Path, step: int) -> None:
        pass


def measure(job: dict[str, Any]) -> Told:
    """One arm in a process of its own: one step of short rows, then all rows `repeats` times."""
    import torch

    from itrain_contract.spec import AdapterSpec
    from itrain_pipeline.learn.job import Optimisation, TrainJob
    from itrain_pipeline.learn.order import BatchPlan, longest_first
    from itrain_pipeline.learn.sft import SftRow, fit_sft
    from itrain_testing.tiny_model import build_tokenizer

    torch.set_num_threads(1)
    workload, scratch = AnswerWorkload(**job["workload"]), Path(job["scratch"])
    batch = workload.global_batch
    examples = [*make_rows(workload, batch, prompt=SHORT), *make_rows(workload, workload.rows)]
    rows = [SftRow(prompt_ids=e.prompt_ids, answer_ids=e.answer_ids) for e in examples]
    one = tuple(range(batch, batch + workload.rows))
    order = (*range(batch), *one * workload.repeats)
    how = Optimisation(
        learning_rate=1e-4,
        warmup_ratio=0.0,
        schedule="constant",
        checkpoint_steps=len(order),
        seed=0,
        precision="fp32",
        on_cpu=True,
        plan=BatchPlan(micro=workload.micro_batch, accumulation=batch // workload.micro_batch, processes=1),
        steps=len(order) // batch,
    )
    model, clock = open_policy(Path(job["model"])), StepClock()
    loaded = own_peak_mib()
    lengths = [row.length for row in rows]
    if job["arm"] == REFERENCE:
        losses = train_with_trl(model, build_tokenizer(), rows, order, how, scratch, clock)
    else:
        train = TrainJob(
            kind="sft",
            model=Path(job["model"]),
            adapter=None,
            adapter_spec=AdapterSpec(),
            rows=scratch / "unused",
            order=order,
            folder=scratch,
            how=how,
        )
        losses = [row["loss"] for row in fit_sft(model, build_tokenizer(), rows, train, clock).log]
        one = longest_first(one, lengths, global_batch=batch)
    return {
        **clock.figures(workload.repeats),
        "tokens": padded_tokens([lengths[index] for index in one], workload.micro_batch),
        "losses": losses,
        "loss": losses[-1],
        "loaded_mib": loaded,
        "peak_mib": own_peak_mib(),
    }


def train_with_trl(
    model: Any, tokenizer: Any, rows: Any, order: Any, how: Any, folder: Path, clock: StepClock
) -> list[float]:
    """TRL's trainer with its own collator, on the same labels; the loss of every step."""
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from itrain_pipeline.learn.sft import build_dataset
    from itrain_pipeline.learn.trainer import training_arguments

    class Tick(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.tick()

    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    trainer = SFTTrainer(
        model=model,
        args=training_arguments(
            SFTConfig,
            folder,
            how,
            max_length=None,
            packing=False,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=build_dataset(rows, order),
        processing_class=tokenizer,
        callbacks=[Tick()],
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    sys.exit(run_job(measure))
