"""Supervised fine-tuning of the adapter on answer tokens, on TRL's SFTTrainer (method document, section 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import transformers
from trl import SFTConfig, SFTTrainer

from itrain_pipeline.learn.collate import IGNORED, SftCollator, answer_labels
from itrain_pipeline.learn.job import FitResult, TrainJob
from itrain_pipeline.learn.order import PADDING
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

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(*args, **kwargs)
        require_finite(loss, self.state.global_step + 1)
        return loss

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        transformers.Trainer._save_checkpoint(self, model, trial)  # TRL's writes a model card first


def build_dataset(rows: Sequence[SftRow], order: Sequence[int]) -> datasets.Dataset:
    """The rows in training order; PADDING becomes a row without a label."""
    ids = [[*row.prompt_ids, *row.answer_ids] for row in rows]
    labels = [answer_labels(row.prompt_ids, row.answer_ids) for row in rows]
    table = datasets.Dataset.from_dict({"input_ids": [*ids, [0, 0]], "labels": [*labels, [IGNORED, IGNORED]]})
    return table.select([len(rows) if index == PADDING else index for index in order])


def fit_sft(model: Any, tokenizer: Any, rows: Sequence[SftRow], job: TrainJob, supervisor: Supervisor) -> FitResult:
    """Train the adapter of a PEFT model on `rows` in the job's order.

    The loss is the mean over the answer tokens of a global batch, whatever its micro batches. Raises Interrupted
    and PermanentError as `fit` does.
    """
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
        train_dataset=build_dataset(rows, job.order),
        data_collator=SftCollator(),
        processing_class=tokenizer,
    )
    return fit(trainer, job, supervisor)
