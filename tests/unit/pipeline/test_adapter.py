"""The one adapter: created without effect, continued in fp32, saved as two files that name no machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from itrain_contract.spec import AdapterSpec
from itrain_pipeline.errors import ConfigError, DataError
from itrain_pipeline.learn.adapter import (
    adapter_sha256,
    check_adapter_folder,
    check_rank,
    continue_adapter,
    new_adapter,
    save_adapter,
)
from itrain_pipeline.learn.loading import load_model
from itrain_testing.tiny_model import write_tiny_model

SPEC = AdapterSpec(rank=4, alpha=8)
IDS = torch.tensor([[1, 30, 40, 50]])


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


def test_a_new_adapter_changes_nothing_and_covers_every_linear_layer_but_the_head(model_dir: Path) -> None:
    base = load_model(model_dir, precision="fp32")
    before = logits(base)
    model = new_adapter(base, SPEC, seed=0)
    assert torch.equal(logits(model), before)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 7 * 2  # A and B, seven linear layers, two blocks
    assert not any("lm_head" in name for name in trained)


def test_the_seed_decides_the_new_adapter(model_dir: Path, tmp_path: Path) -> None:
    hashes = [
        adapter_sha256(
            save_adapter(new_adapter(load_model(model_dir, precision="fp32"), SPEC, seed=seed), tmp_path / f"{number}")
        )
        for number, seed in enumerate((0, 0, 1))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_an_adapter_of_a_half_precision_base_is_trained_in_fp32(model_dir: Path, tmp_path: Path) -> None:
    model = new_adapter(load_model(model_dir, precision="bf16"), SPEC, seed=0)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    folder = save_adapter(model, tmp_path / "adapter")
    continued = continue_adapter(load_model(model_dir, precision="bf16"), folder, trainable=True)
    assert {p.dtype for p in continued.parameters() if p.requires_grad} == {torch.float32}


def test_a_saved_adapter_continues_as_it_was_and_frozen_when_asked(model_dir: Path, tmp_path: Path) -> None:
    model = new_adapter(load_model(model_dir, precision="fp32"), SPEC, seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    folder = save_adapter(model, tmp_path / "adapter")
    frozen = continue_adapter(load_model(model_dir, precision="fp32"), folder, trainable=False)
    assert torch.equal(logits(frozen), logits(model))
    assert not any(p.requires_grad for p in frozen.parameters())
    again = continue_adapter(load_model(model_dir, precision="fp32"), folder, trainable=True)
    assert any(p.requires_grad for p in again.parameters())
    second = save_adapter(again, tmp_path / "again")
    assert adapter_sha256(second) == adapter_sha256(folder)
    assert (second / "adapter_config.json").read_bytes() == (folder / "adapter_config.json").read_bytes()


def test_a_saved_adapter_is_two_files_and_names_no_path(model_dir: Path, tmp_path: Path) -> None:
    folder = save_adapter(new_adapter(load_model(model_dir, precision="fp32"), SPEC, seed=0), tmp_path / "adapter")
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert str(model_dir) not in (folder / "adapter_config.json").read_text()


def test_targets_that_the_model_lacks_are_a_configuration_error(model_dir: Path) -> None:
    spec = AdapterSpec(rank=4, alpha=8, targets="no_such_layer")
    with pytest.raises(ConfigError, match=r"adapter\.targets: got 'no_such_layer'"):
        new_adapter(load_model(model_dir, precision="fp32"), spec, seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "IA3"}, "IA3"),
    ],
)
def test_adapters_that_no_engine_serves_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **change}))
    with pytest.raises(ConfigError, match=message):
        check_adapter_folder(tmp_path)


def test_an_incomplete_adapter_folder_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "half"
    folder.mkdir()
    with pytest.raises(DataError, match=r"'half' has no adapter_model\.safetensors"):
        check_adapter_folder(folder)


def test_a_run_keeps_one_rank(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 16, "lora_alpha": 8}))
    with pytest.raises(ConfigError, match=r"adapter\.rank: got 4, the adapter to continue has 16"):
        check_rank(tmp_path, SPEC)


@pytest.mark.parametrize("text", ["{", "[]", '{"r": 100000}'])
def test_a_broken_configuration_of_an_adapter_is_data_and_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(DataError, match=r"^adapter_config\.json"):
        check_adapter_folder(tmp_path)
    with pytest.raises(DataError, match=r"^adapter_config\.json"):
        check_rank(tmp_path, SPEC)
