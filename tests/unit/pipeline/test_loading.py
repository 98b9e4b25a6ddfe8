"""Models from folders: what is read, what is refused, nf4."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from itrain_contract.spec import AdapterSpec
from itrain_pipeline.errors import ConfigError, DataError
from itrain_pipeline.learn.adapter import new_adapter
from itrain_pipeline.learn.loading import load_model, set_threads
from itrain_testing.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), hidden=64)


def test_a_model_is_loaded_frozen_in_the_precision_asked_for(model_dir: Path) -> None:
    model = load_model(model_dir, precision="bf16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in model.parameters())
    assert model.config._attn_implementation == "sdpa"


def test_a_folder_without_safetensors_is_refused_by_name(model_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(model_dir, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"'pickled' has no \*\.safetensors.*pytorch_model\.bin"):
        load_model(folder, precision="fp32")
    (folder / "config.json").unlink()
    with pytest.raises(DataError, match=r"'pickled' has no config\.json"):
        load_model(folder, precision="fp32")


def test_a_model_with_code_of_its_own_needs_leave(model_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "coded"
    shutil.copytree(model_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "own.Model"}}))
    with pytest.raises(ConfigError, match=r"model\.trustRemoteCode: got false"):
        load_model(folder, precision="fp32")


def test_nf4_quantises_linear_layers_on_cpu_and_trains_a_fp32_adapter(model_dir: Path) -> None:
    import bitsandbytes

    plain = load_model(model_dir, precision="fp32")
    quantised = load_model(model_dir, precision="fp32", quantization="nf4")
    layers = [layer for layer in quantised.modules() if hasattr(layer, "support_avx512bf16_for_cpu")]
    assert layers
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)  # see keep_trainable
    layer = quantised.model.layers[0].mlp.up_proj
    assert isinstance(layer, bitsandbytes.nn.Linear4bit)
    assert layer.weight.dtype == torch.uint8
    ids = torch.tensor([[1, 30, 40, 50]])
    with torch.no_grad():
        difference = (plain(input_ids=ids).logits - quantised(input_ids=ids).logits).abs()
    assert 0 < difference.mean() < plain(input_ids=ids).logits.abs().mean()
    model = new_adapter(quantised, AdapterSpec(rank=4, alpha=8), seed=0)
    model(input_ids=ids, labels=ids).loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name and p.dtype == torch.float32 for name, p in trained.items())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in trained.values())


def test_threads_come_from_the_environment_and_nonsense_is_refused() -> None:
    before = torch.get_num_threads()
    try:
        set_threads({"ITRAIN_THREADS": "1"})
        assert torch.get_num_threads() == 1
        set_threads({})
        assert torch.get_num_threads() == 1
        with pytest.raises(ConfigError, match="ITRAIN_THREADS: got 'many'"):
            set_threads({"ITRAIN_THREADS": "many"})
    finally:
        torch.set_num_threads(before)
