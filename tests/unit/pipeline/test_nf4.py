"""A 4-bit base on a CPU: smaller, the same every time, and right under tree rows and gradient checkpointing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from itrain_contract.spec import AdapterSpec
from itrain_pipeline.learn.adapter import new_adapter
from itrain_pipeline.learn.collate import PairRow
from itrain_pipeline.learn.loading import load_model
from itrain_pipeline.learn.treebatch import tree_simpo
from itrain_testing.tiny_model import write_tiny_model

CONTEXT = tuple(range(30, 60))
PAIRS = (
    PairRow(context_ids=CONTEXT, chosen_ids=(11, 12, 13), rejected_ids=(14, 15)),
    PairRow(context_ids=(*CONTEXT, 11, 12, 13), chosen_ids=(16,), rejected_ids=(17, 18)),
    PairRow(context_ids=(*CONTEXT, 11), chosen_ids=(12, 19), rejected_ids=(20,)),
)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), hidden=128)


def adapted(model_dir: Path) -> Any:
    model = new_adapter(
        load_model(model_dir, precision="fp32", quantization="nf4"), AdapterSpec(rank=4, alpha=8), seed=0
    )
    generator = torch.Generator().manual_seed(1)
    for parameter in trained(model).values():  # B starts at zero: the gradient of A would be, too
        parameter.data.normal_(std=0.1, generator=generator)
    return model


def trained(model: Any) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def gradients(model: Any, trees: list[list[PairRow]]) -> tuple[float, dict[str, torch.Tensor]]:
    loss = tree_simpo(model, trees, beta=2.5, gamma=0.5).losses.mean()
    loss.backward()
    found = {name: p.grad.clone() for name, p in trained(model).items() if p.grad is not None}
    model.zero_grad()
    return loss.item(), found


def test_packed_weights_take_an_eighth_of_fp32_and_little_for_their_scales(model_dir: Path) -> None:
    plain = load_model(model_dir, precision="fp32").model.layers[0].mlp.up_proj.weight
    packed = load_model(model_dir, precision="fp32", quantization="nf4").model.layers[0].mlp.up_proj.weight
    assert packed.nbytes * 8 == plain.nbytes
    state = packed.quant_state
    scales = state.absmax.nbytes + state.state2.absmax.nbytes
    assert scales <= plain.numel() // 64 + 4 * (plain.numel() // (64 * 256) + 1)


def test_the_same_step_gives_the_same_bits(model_dir: Path) -> None:
    found = []
    for _ in range(2):
        model = adapted(model_dir)
        tree_simpo(model, [list(PAIRS)], beta=2.5, gamma=0.5).losses.mean().backward()
        torch.optim.AdamW(trained(model).values(), lr=0.01).step()
        found.append({name: p.detach().clone() for name, p in trained(model).items()})
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_tree_rows_have_the_loss_and_the_gradients_of_rows_of_one_pair(model_dir: Path) -> None:
    model = adapted(model_dir)
    tree_loss, tree = gradients(model, [list(PAIRS)])
    pair_loss, pairs = gradients(model, [[pair] for pair in PAIRS])
    assert tree_loss == pytest.approx(pair_loss, rel=1e-5)
    assert tree.keys() == pairs.keys() == trained(model).keys()
    for name, gradient in pairs.items():
        assert gradient.abs().max() > 0
        assert torch.allclose(tree[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max())), name


def test_gradient_checkpointing_changes_nothing(model_dir: Path) -> None:
    model = adapted(model_dir).train()
    loss, plain = gradients(model, [list(PAIRS)])
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    calls = []
    model.get_base_model().model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    again_loss, again = gradients(model, [list(PAIRS)])
    assert len(calls) == 2  # forward, and once more in the backward pass
    assert again_loss == loss
    assert all(torch.equal(again[name], gradient) for name, gradient in plain.items())
