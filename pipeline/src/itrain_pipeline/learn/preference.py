"""SimPO training of the adapter on step pairs, on transformers' Trainer (method document, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers

from itrain_pipeline.learn.collate import PADDING_PAIR, PairCollator, PairRow
from itrain_pipeline.learn.guarding import add_guards
from itrain_pipeline.learn.job import FitResult, TrainJob, with_batches
from itrain_pipeline.learn.logprobs import row_sums, scored_logprobs
from itrain_pipeline.learn.order import PADDING, BatchPlan
from itrain_pipeline.learn.passes import Budget, PassPlan, RowForm, plan_passes
from itrain_pipeline.learn.simpo import ANSWER, PAIRS, SimpoSettings, watched_losses
from itrain_pipeline.learn.supervision import Supervisor
from itrain_pipeline.learn.trainer import fit, require_finite, training_arguments
from itrain_pipeline.learn.treebatch import TreeCollator, answer_logprobs
from itrain_pipeline.learn.treemask import FLEX_BLOCK
from itrain_pipeline.learn.treeprobe import usable_form, uses_flex

ROWS = "rows"
"""Beside `PAIRS`: how many rows figures were summed over."""


class PassDataset(torch.utils.data.Dataset[list[list[PairRow]]]):
    """Forward passes in the order of a plan: the pairs of each row. One that only fills up has a pair of no weight."""

    def __init__(self, pairs: Sequence[PairRow], plan: PassPlan) -> None:
        self._pairs = pairs
        self._plan = plan

    def __len__(self) -> int:
        return len(self._plan.passes)

    def __getitem__(self, at: int) -> list[list[PairRow]]:
        rows = self._plan.passes[at]
        return [[self._pairs[index] for index in row.pairs] for row in rows] or [[PADDING_PAIR]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PassCollator:
    """The one forward pass that a loader's batch is, as tensors of its form."""

    form: RowForm
    multiple: int = 1

    def __call__(self, passes: Sequence[list[list[PairRow]]]) -> dict[str, Any]:
        (rows,) = passes
        if self.form == "separate":
            return PairCollator()([pair for row in rows for pair in row])
        return TreeCollator(multiple=self.multiple)(rows)


class SimpoTrainer(transformers.Trainer):
    """The loss of a global batch is the mean over its pairs, whatever its micro batches and processes."""

    def __init__(self, settings: SimpoSettings, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.settings = settings
        self.loss_is_scaled_for_ga = True
        self.can_return_loss = True
        self._sums: dict[str, torch.Tensor] = {}

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor:
        """Pairs that weigh something in the global batch, over all processes."""
        own = sum((batch["weights"].sum() for batch in batch_samples), torch.tensor(0.0)).to(device)
        return self.accelerator.gather(own).sum() if self.args.world_size > 1 else own

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        losses_P, metrics = pass_losses(model, self.accelerator.unwrap_model(model), inputs, self.settings)
        weights_P = inputs["weights"]
        self._add(metrics, weights_P)
        count = weights_P.sum() if num_items_in_batch is None else num_items_in_batch
        # Gradients are averaged over the processes, `count` is already of all of them.
        return (losses_P * weights_P).sum() / count * self.accelerator.num_processes

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(*args, **kwargs)
        require_finite(loss, self.state.global_step + 1, fp16=self.args.fp16)
        return loss

    def _add(self, metrics_P: dict[str, torch.Tensor], weights_P: torch.Tensor) -> None:
        for name, values_P in {**metrics_P, ROWS: torch.ones_like(weights_P)}.items():
            total = (values_P.detach().float() * weights_P).sum()
            self._sums[name] = self._sums[name] + total if name in self._sums else total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means over the pairs since the last entry, none where there were none, and over the rows where these
        have right answers; `loss` of several processes is already their mean."""
        if self._sums and "loss" in logs:
            names = sorted(self._sums)
            sums = torch.stack([self._sums[name] for name in names])
            if self.args.world_size > 1:
                sums = self.accelerator.reduce(sums, reduction="sum")
            found = dict(zip(names, sums.tolist(), strict=True))
            counts = {name: found.pop(name) for name in (PAIRS, ROWS)}
            per = {name: counts[ROWS if name == ANSWER else PAIRS] for name in found}
            logs |= {name: value / per[name] for name, value in found.items() if per[name]}
            self._sums = {}
        super().log(logs, start_time)


def pass_losses(
    forward: Any, model: Any, inputs: Any, settings: SimpoSettings
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss of each pair [P] of a collated pass, whatever its form, and what is watched."""
    if "ends" not in inputs:
        return pair_losses(forward, model, inputs, settings)
    sums = answer_logprobs(forward, model, inputs)
    return watched_losses(sums, inputs["lengths"], len(inputs["weights"]), settings)


def pair_losses(
    forward: Any, model: Any, inputs: Any, settings: SimpoSettings
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The same of a row per answer, as PairCollator makes them."""
    scored_BT, lengths = inputs["scored"], inputs["lengths"]
    logprobs_R = scored_logprobs(forward, model, inputs["input_ids"], inputs["attention_mask"], scored_BT)
    sums_B, _ = row_sums(logprobs_R, scored_BT)
    sums = torch.zeros(len(lengths), dtype=sums_B.dtype, device=sums_B.device).index_add(0, inputs["answers"], sums_B)
    return watched_losses(sums, lengths, len(inputs["weights"]), settings)


def fit_simpo(
    model: Any, pairs: Sequence[PairRow], job: TrainJob, settings: SimpoSettings, supervisor: Supervisor
) -> FitResult:
    """Train the adapter of a PEFT model on `pairs` in the job's order. Raises what `fit` raises.

    The job's batch plan says how many pairs an optimiser step has, the form how they are shared out over rows.
    """
    trees = job.trees or tuple(range(len(pairs)))
    form = usable_form(model, pairs, trees, job.form)
    plan = plan_passes(
        pairs,
        trees,
        [index for index in job.order if index != PADDING],
        form=form,
        global_batch=job.how.plan.global_batch,
        processes=job.how.plan.processes,
        budget=Budget(tokens=job.pass_tokens, pairs=job.how.plan.micro),
    )
    how = with_batches(job.how, BatchPlan(micro=1, accumulation=plan.accumulation, processes=plan.processes))
    arguments = training_arguments(
        transformers.TrainingArguments, job.folder, how, average_tokens_across_devices=False, label_names=[]
    )
    trainer = SimpoTrainer(
        settings,
        model=model,
        args=arguments,
        train_dataset=PassDataset(pairs, plan),
        data_collator=PassCollator(form=form, multiple=FLEX_BLOCK if uses_flex(model) else 1),
    )
    add_guards(trainer, job)
    result = fit(trainer, job, supervisor)
    return replace(result, form=form, tokens=plan.tokens, naive_tokens=plan.naive_tokens)
