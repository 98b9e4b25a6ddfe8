"""Tree rows on a GPU: their loss and gradients under SDPA and FlexAttention, in every precision, and under nf4."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from itrain_contract.spec import AdapterSpec
from itrain_pipeline.learn import treeprobe
from itrain_pipeline.learn.adapter import new_adapter
from itrain_pipeline.learn.collate import PairRow
from itrain_pipeline.learn.loading import load_model
from itrain_pipeline.learn.precision import ChosenPrecision, Quantization
from itrain_pipeline.learn.preference import PassCollator, pass_losses
from itrain_pipeline.learn.simpo import SimpoSettings
from itrain_pipeline.learn.treemask import FLEX_BLOCK
from itrain_pipeline.learn.treeprobe import usable_form, uses_flex
from itrain_testing.cpo import cpo_batch, cpo_trainer
from itrain_testing.pairtrees import random_tree
from itrain_testing.tiny_model import build_tokenizer

SETTINGS = SimpoSettings(beta=2.5, gamma=0.5)
TREES = [random_tree(random.Random(seed), prompt=200, pairs=4, longest=24) for seed in range(3)]
PAIRS = [pair for tree in TREES for pair in tree]
NAMES = [number for number, tree in enumerate(TREES) for _ in tree]
# Compiling FlexAttention, torch 2.11 looks at the gradient of a tensor inside the graph and warns of itself.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

CLOSE = {"fp32": 5e-5, "bf16": 1e-1, "fp16": 1e-2}
"""|difference| of gradients / |gradient|, by what the base computes in."""


def policy(model_dir: Path, precision: ChosenPrecision, quantization: Quantization = "none") -> Any:
    model = new_adapter(
        load_model(model_dir, precision=precision, quantization=quantization), AdapterSpec(rank=4, alpha=8), seed=0
    )
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def with_attention(model: Any, implementation: str) -> Any:
    model.get_base_model().set_attn_implementation(implementation)
    return model


def gradient(model: Any, form: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of all pairs, and the gradient of their mean as one vector."""
    multiple = FLEX_BLOCK if uses_flex(model) and form != "separate" else 1
    rows = TREES if form == "tree" else [[pair] for pair in PAIRS]
    batch = PassCollator(form=form, multiple=multiple)([rows])
    batch = {name: value.to(model.device) for name, value in batch.items()}
    with torch.autocast("cuda", model.dtype, enabled=model.dtype != torch.float32):
        losses, _ = pass_losses(model, model, batch, SETTINGS)
    return losses.detach(), of_trained(model, losses.mean())


def of_trained(model: Any, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_in_fp32_loss_and_gradient_are_those_of_trl(model_dir: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    model = policy(model_dir, "fp32")
    losses, found = gradient(model, "tree")
    trainer = cpo_trainer(model, build_tokenizer(), tmp_path, SETTINGS)
    batch = {name: value.to(model.device) for name, value in cpo_batch(PAIRS).items()}
    trl_loss, _ = trainer.get_batch_loss_metrics(model, batch)
    assert losses.mean().item() == pytest.approx(trl_loss.item(), rel=1e-5)
    assert relative(found, of_trained(model, trl_loss)) < CLOSE["fp32"]


@pytest.mark.parametrize("attention", ["sdpa", "flex_attention"])
@pytest.mark.parametrize("form", ["tree", "pair"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_either_attention_gives_what_two_rows_per_pair_give(
    model_dir: Path, precision: ChosenPrecision, form: str, attention: str
) -> None:
    model = policy(model_dir, precision)
    expected_losses, expected = gradient(model, "separate")
    losses, found = gradient(with_attention(model, attention), form)
    # FlexAttention's kernel multiplies fp32 as tf32.
    close = 1e-2 if (precision, attention) == ("fp32", "flex_attention") else CLOSE[precision]
    assert torch.allclose(losses, expected_losses, rtol=close, atol=close)
    assert relative(found, expected) < close


def test_a_gpu_from_ampere_on_trains_long_trees_with_flex_attention_and_short_ones_with_sdpa(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = policy(model_dir, "bf16")
    assert usable_form(model, PAIRS, NAMES, "tree") == "tree"
    assert not uses_flex(model)
    monkeypatch.setattr(treeprobe, "FLEX_LENGTH", 200)
    assert usable_form(model, PAIRS, NAMES, "tree") == "tree"
    assert uses_flex(model) == (torch.cuda.get_device_capability() >= (8, 0))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_4_bit_base_gives_tree_rows_the_gradient_of_two_rows_per_pair(
    model_dir: Path, precision: ChosenPrecision
) -> None:
    model = policy(model_dir, precision, "nf4")
    packed = model.get_base_model().model.layers[0].mlp.up_proj.weight
    assert packed.dtype == torch.uint8
    losses, found = gradient(model, "tree")
    expected_losses, expected = gradient(model, "separate")
    assert torch.allclose(losses, expected_losses, rtol=CLOSE[precision], atol=CLOSE[precision])
    assert relative(found, expected) < CLOSE[precision]


def test_a_row_is_padded_to_whole_blocks_for_flex_attention(model_dir: Path) -> None:
    tree: list[PairRow] = TREES[0]
    assert PassCollator(form="tree", multiple=FLEX_BLOCK)([[tree]])["input_ids"].shape[1] % FLEX_BLOCK == 0
