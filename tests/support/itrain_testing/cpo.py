"""TRL's CPOTrainer as the reference for SimPO, fed our token ids."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from itrain_pipeline.learn.collate import IGNORED, PairRow, length_mask, pad_right
from itrain_pipeline.learn.simpo import SimpoSettings


def cpo_trainer(model: Any, tokenizer: Any, folder: Path, settings: SimpoSettings) -> Any:
    """TRL's trainer around a model of ours; the one row that it insists to tokenise is not used.

    The variable TRL_EXPERIMENTAL_SILENCE has to be set.
    """
    import datasets

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        return CPOTrainer(
            model=model,
            args=CPOConfig(
                output_dir=str(folder),
                loss_type="simpo",
                cpo_alpha=0.0,
                beta=settings.beta,
                simpo_gamma=settings.gamma,
                use_cpu=model.device.type == "cpu",
                report_to="none",
                bf16=False,
                gradient_checkpointing=False,
            ),
            processing_class=tokenizer,
            train_dataset=datasets.Dataset.from_dict({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}),
        )


def cpo_batch(pairs: Sequence[PairRow]) -> dict[str, torch.Tensor]:
    """Our ids in the shape of TRL's collator: right padding, labels -100 outside of the response."""
    batch: dict[str, torch.Tensor] = {}
    for side in ("chosen", "rejected"):
        answers = [getattr(p, f"{side}_ids") for p in pairs]
        rows = [(*p.context_ids, *answer) for p, answer in zip(pairs, answers, strict=True)]
        labels = [[IGNORED] * len(p.context_ids) + [*answer] for p, answer in zip(pairs, answers, strict=True)]
        batch[f"{side}_input_ids"] = pad_right(rows, 0)
        batch[f"{side}_attention_mask"] = length_mask(rows)
        batch[f"{side}_labels"] = pad_right(labels, IGNORED)
    return batch
