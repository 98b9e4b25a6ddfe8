"""SimPO training of the adapter on step pairs, on transformers' Trainer (method document, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from itrain_pipeline.learn.collate import PADDING_PAIR, PairCollator, PairRow
from itrain_pipeline.learn.job import FitResult, TrainJob
from itrain_pipeline.learn.logprobs import row_sums, scored_logprobs
from itrain_pipeline.learn.order import PADDING
from itrain_pipeline.learn.simpo import simpo_loss
from itrain_pipeline.learn.supervision import Supervisor
from itrain_pipeline.learn.trainer import fit, require_finite, training_arguments


@dataclass(frozen=True, slots=True, kw_only=True)
class SimpoSettings:
    """β and γ of SimPO; `nll_weight` weighs the mean NLL of the chosen response's tokens."""

    beta: float
    gamma: float
    nll_weight: float = 0.0


class PairDataset(torch.utils.data.Dataset[PairRow]):
    """Pairs in training order; PADDING becomes a pair that weighs nothing."""

    def __init__(self, pairs: Sequence[PairRow], order: Sequence[int]) -> None:
        self._pairs = pairs
        self._order = order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, at: int) -> PairRow:
        index = self._order[at]
        return PADDING_PAIR if index == PADDING else self._pairs[index]


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
        losses_P, metrics = pair_losses(model, self.accelerator.unwrap_model(model), inputs, self.settings)
        weights_P = inputs["weights"]
        self._add(metrics, weights_P)
        count = weights_P.sum() if num_items_in_batch is None else num_items_in_batch
        # Gradients are averaged over the processes, `count` is already of all of them.
        return (losses_P * weights_P).sum() / count * self.accelerator.num_processes

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(*args, **kwargs)
        require_finite(loss, self.state.global_step + 1)
        return loss

    def _add(self, metrics_P: dict[str, torch.Tensor], weights_P: torch.Tensor) -> None:
        for name, values_P in {**metrics_P, "pairs": torch.ones_like(weights_P)}.items():
            total = (values_P.detach().float() * weights_P).sum()
            self._sums[name] = self._sums[name] + total if name in self._sums else total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means over the pairs since the last entry; `loss` of several processes is already their mean."""
        if self._sums and "loss" in logs:
            names = sorted(self._sums)
            sums = torch.stack([self._sums[name] for name in names])
            if self.args.world_size > 1:
                sums = self.accelerator.reduce(sums, reduction="sum")
            found = dict(zip(names, sums.tolist(), strict=True))
            pairs = found.pop("pairs")
            logs |= {name: value / pairs for name, value in found.items()}
            self._sums = {}
        super().log(logs, start_time)


def pair_losses(
    forward: Any, model: Any, inputs: Any, settings: SimpoSettings
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss of each pair [P] with its gradient, and what is watched: margin, accuracy and the chosen step's logprob."""
    scored_BT = inputs["scored"]
    logprobs_R = scored_logprobs(forward, model, inputs["input_ids"], inputs["attention_mask"], scored_BT)
    sums_B, counts_B = row_sums(logprobs_R, scored_BT)
    (chosen_P, rejected_P), (chosen_len_P, rejected_len_P) = sums_B.chunk(2), counts_B.chunk(2)
    found = simpo_loss(chosen_P, chosen_len_P, rejected_P, rejected_len_P, beta=settings.beta, gamma=settings.gamma)
    chosen_mean_P = chosen_P / chosen_len_P
    loss_P = found.losses
    if settings.nll_weight:
        loss_P = loss_P - settings.nll_weight * chosen_mean_P
    margins_P = found.chosen_rewards - found.rejected_rewards
    return loss_P, {
        "reward_margin": margins_P,
        "reward_accuracy": (margins_P > 0).float(),
        "chosen_logprob": chosen_mean_P,
        "rejected_logprob": rejected_P / rejected_len_P,
    }


def fit_simpo(
    model: Any, pairs: Sequence[PairRow], job: TrainJob, settings: SimpoSettings, supervisor: Supervisor
) -> FitResult:
    """Train the adapter of a PEFT model on `pairs` in the job's order. Raises what `fit` raises."""
    arguments = training_arguments(
        transformers.TrainingArguments, job.folder, job.how, average_tokens_across_devices=False, label_names=[]
    )
    trainer = SimpoTrainer(
        settings,
        model=model,
        args=arguments,
        train_dataset=PairDataset(pairs, job.order),
        data_collator=PairCollator(),
    )
    return fit(trainer, job, supervisor)
