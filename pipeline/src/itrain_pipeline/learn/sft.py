"""Supervised fine-tuning of the adapter on answer tokens, on TRL's SFTTrainer (method document, section 1).

TRL's loss reads the backbone's hidden states and labels that are shifted already, and computes logits in tiles; without
Triton for every position, which with answers of some tens of tokens behind prompts of hundreds is nearly half of all
the work at a vocabulary of 32,000. It is given the positions that predict an answer token, and no others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import datasets
import torch
import transformers
from trl import SFTConfig, SFTTrainer

from itrain_pipeline.learn.collate import IGNORED, SftCollator, answer_labels
from itrain_pipeline.learn.job import FitResult, TrainJob
from itrain_pipeline.learn.order import PADDING, longest_first
from itrain_pipeline.learn.supervision import Supervisor
from itrain_pipeline.learn.trainer import fit, require_finite, training_arguments


@dataclass(frozen=True, slots=True, kw_only=True)
class SftRow:
    """One example as ids. The answer includes its end-of-turn token, which is learned too."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + len(self.answer_ids)


class AnswerTrainer(SFTTrainer):
    """SFTTrainer on rows that are tokenised and labelled already: no card, no template, no truncation."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels_BT = inputs["labels"][:, 1:]
        predicts_BT = labels_BT != IGNORED
        given = {name: value for name, value in inputs.items() if name != "labels"}
        given["shift_labels"] = labels_BT[predicts_BT][None]
        with hidden_states_at(self.accelerator.unwrap_model(model), predicts_BT):
            return super().compute_loss(model, given, return_outputs, num_items_in_batch)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(*args, **kwargs)
        require_finite(loss, self.state.global_step + 1, fp16=self.args.fp16)
        return loss

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        transformers.Trainer._save_checkpoint(self, model, trial)  # TRL's writes a model card first


@contextmanager
def hidden_states_at(model: Any, predicts_BT: torch.Tensor) -> Iterator[None]:
    """Let the backbone of a PEFT model give out its last hidden states at these positions only, as [1, R, H].

    `predicts_BT` may be narrower than the rows: what lies behind it is left out.
    """

    def keep(module: Any, args: Any, output: Any) -> Any:
        hidden_BTH = output.last_hidden_state[:, : predicts_BT.shape[1]]
        output.last_hidden_state = hidden_BTH[predicts_BT.to(hidden_BTH.device)][None]
        return output

    handle = model.get_base_model().base_model.register_forward_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def build_dataset(rows: Sequence[SftRow], order: Sequence[int]) -> datasets.Dataset:
    """The rows in training order; PADDING becomes a row without a label."""
    ids = [[*row.prompt_ids, *row.answer_ids] for row in rows]
    labels = [answer_labels(row.prompt_ids, row.answer_ids) for row in rows]
    table = datasets.Dataset.from_dict({"input_ids": [*ids, [0, 0]], "labels": [*labels, [IGNORED, IGNORED]]})
    return table.select([len(rows) if index == PADDING else index for index in order])


def fit_sft(model: Any, tokenizer: Any, rows: Sequence[SftRow], job: TrainJob, supervisor: Supervisor) -> FitResult:
    """Train the adapter of a PEFT model on `rows` in the job's order.

    The loss is the mean over the answer tokens of a global batch, whatever its micro batches, which are made of rows of
    like length. Raises Interrupted and PermanentError as `fit` does.
    """
    order = longest_first(job.order, [row.length for row in rows], global_batch=job.how.plan.global_batch)
    arguments = training_arguments(
        SFTConfig,
        job.folder,
        job.how,
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    trainer = AnswerTrainer(
        model=model,
        args=arguments,
        train_dataset=build_dataset(rows, order),
        data_collator=SftCollator(),
        processing_class=tokenizer,
    )
    return fit(trainer, job, supervisor)
