"""The SFT loss on answer positions alone: equal to TRL's on all of them, and what is computed for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from trl import SFTConfig, SFTTrainer

from itrain_contract.spec import AdapterSpec
from itrain_pipeline.learn.adapter import new_adapter
from itrain_pipeline.learn.collate import IGNORED, SftCollator
from itrain_pipeline.learn.loading import load_model
from itrain_pipeline.learn.sft import AnswerTrainer, SftRow, build_dataset
from itrain_testing.tiny_model import build_tokenizer, write_tiny_model

ROWS = [
    SftRow(prompt_ids=tuple(range(10, 10 + prompt)), answer_ids=(*range(200, 200 + answer), 2))
    for prompt, answer in ((30, 3), (7, 5), (50, 1))
]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


def make_trainer(kind: type[SFTTrainer], model_dir: Path, folder: Path) -> Any:
    model = new_adapter(load_model(model_dir, precision="fp32"), AdapterSpec(rank=4, alpha=8), seed=0)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    arguments = SFTConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    trainer = kind(
        model=model,
        args=arguments,
        train_dataset=build_dataset(ROWS, range(len(ROWS))),
        data_collator=SftCollator(),
        processing_class=build_tokenizer(),
    )
    trainer.model.train()
    return trainer


def batch_of(rows: list[SftRow]) -> dict[str, torch.Tensor]:
    return SftCollator()([build_dataset(rows, range(len(rows)))[number] for number in range(len(rows))])


def gradient(trainer: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=torch.tensor(7.0))
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.requires_grad])


def test_loss_gradient_and_watched_values_are_those_of_trl(model_dir: Path, tmp_path: Path) -> None:
    batch = batch_of(ROWS)
    reference, ours = (make_trainer(kind, model_dir, tmp_path) for kind in (SFTTrainer, AnswerTrainer))
    (expected, slope), (found, found_slope) = gradient(reference, batch), gradient(ours, batch)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(found_slope, slope, atol=1e-6 * float(slope.abs().max()) + 1e-8)
    for name in ("entropy", "mean_token_accuracy", "num_tokens"):
        assert ours._metrics["train"][name] == pytest.approx(reference._metrics["train"][name], rel=1e-5)
    assert batch["labels"].shape == batch["input_ids"].shape  # the batch is as it was


def test_logits_are_computed_where_an_answer_token_is_predicted_and_nowhere_else(
    model_dir: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(AnswerTrainer, model_dir, tmp_path)
    vocabulary = trainer.model.config.vocab_size

    class HeadRows(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: set[int] = set()

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            if "aten.mm" in str(function) and out.shape[-1] == vocabulary:
                self.seen.add(out.shape[0])
            return out

    with HeadRows() as head:
        trainer.compute_loss(trainer.model, batch_of(ROWS))
    assert head.seen == {sum(len(row.answer_ids) for row in ROWS)}


def test_a_pass_of_padding_alone_weighs_nothing_and_has_gradients_of_zero(model_dir: Path, tmp_path: Path) -> None:
    """One process of several may be dealt only rows that fill up; all of them must give a gradient."""
    trainer = make_trainer(AnswerTrainer, model_dir, tmp_path)
    batch = {
        "input_ids": torch.zeros(2, 2, dtype=torch.long),
        "attention_mask": torch.ones(2, 2, dtype=torch.long),
        "labels": torch.full((2, 2), IGNORED),
    }
    loss, slope = gradient(trainer, batch)
    assert loss.item() == 0.0
    assert not slope.any()
