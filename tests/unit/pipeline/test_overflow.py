"""What does not fit into fp16 is named before anything is computed with it: weights by file, activations by a row."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from itrain_contract.spec import AdapterSpec
from itrain_pipeline.errors import ConfigError, DataError
from itrain_pipeline.learn.adapter import new_adapter
from itrain_pipeline.learn.fitting import fit_job
from itrain_pipeline.learn.job import Optimisation, TrainJob, plan_training, write_rows
from itrain_pipeline.learn.loading import load_model
from itrain_pipeline.learn.overflow import check_activations, check_weights, weight_files
from itrain_pipeline.learn.precision import Quantization
from itrain_pipeline.learn.supervision import PortsSupervisor
from itrain_testing.stageports import folder_ports
from itrain_testing.tiny_model import write_tiny_model

ROW = (1, 30, 40, 50, 60)
DOWN = "model.layers.1.mlp.down_proj"
REMEDY = r"use precision fp32, or bf16 on a GPU of compute capability 8\.0 or newer"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), hidden=64)


def changed(model_dir: Path, folder: Path, values: Mapping[str, float], dtype: torch.dtype = torch.float32) -> Path:
    """The model with one element of each named tensor set, stored in `dtype`."""
    shutil.copytree(model_dir, folder)
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    for name, value in values.items():
        tensors[name].view(-1)[3] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def scaled(model_dir: Path, folder: Path, name: str, factor: float) -> Path:
    shutil.copytree(model_dir, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[name] *= factor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_model_whose_weights_fit_is_accepted(model_dir: Path, tmp_path: Path) -> None:
    check_weights(model_dir)
    check_weights(changed(model_dir, tmp_path / "edge", {"model.norm.weight": -65519.0}))  # rounded to 65504


@pytest.mark.parametrize(("value", "told"), [(65520.0, "6.552e+04"), (-1e6, "1e+06")])
def test_a_weight_beyond_fp16_is_named_with_its_value_and_the_remedy(
    model_dir: Path, tmp_path: Path, value: float, told: str
) -> None:
    folder = changed(model_dir, tmp_path / "large", {f"{DOWN}.weight": value})
    message = rf"precision: got fp16, but the model's {DOWN}\.weight reaches {told.replace('+', '.')} and fp16 ends at"
    with pytest.raises(ConfigError, match=rf"{message} 65504: {REMEDY}"):
        check_weights(folder)


def test_of_several_weights_the_largest_is_named_and_the_others_are_counted(model_dir: Path, tmp_path: Path) -> None:
    values = {f"{DOWN}.weight": 7e4, "model.norm.weight": 2e5, "model.layers.0.mlp.up_proj.weight": 1e5}
    folder = changed(model_dir, tmp_path / "large", values, torch.bfloat16)
    with pytest.raises(ConfigError, match=r"the model's model\.norm\.weight reaches 1\.99.e.05 \(and 2 more of its"):
        check_weights(folder)


def test_a_finite_weight_beside_an_infinite_one_is_still_seen(model_dir: Path, tmp_path: Path) -> None:
    folder = changed(model_dir, tmp_path / "large", {f"{DOWN}.weight": 7e4})
    tensors = load_file(folder / "model.safetensors")
    tensors[f"{DOWN}.weight"].view(-1)[4] = float("inf")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=rf"{DOWN}\.weight reaches 7e.04"):
        check_weights(folder)


def test_every_shard_of_the_index_is_read_and_no_file_beside_them(model_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    shutil.copytree(model_dir, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"b.safetensors": names[::2], "a.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    weights = {name: file for file, part in shards.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    save_file({"other": torch.tensor([1e6])}, folder / "consolidated.safetensors")
    assert [path.name for path in weight_files(folder)] == ["a.safetensors", "b.safetensors"]
    check_weights(folder)
    last = shards["b.safetensors"][-1]
    tensors[last].view(-1)[0] = 1e6
    save_file({name: tensors[name] for name in shards["b.safetensors"]}, folder / "b.safetensors")
    with pytest.raises(ConfigError, match=f"the model's {last} reaches 1e.06"):
        check_weights(folder)


def test_a_row_that_fits_leaves_the_model_as_it_was(model_dir: Path) -> None:
    model = new_adapter(load_model(model_dir, precision="fp16"), AdapterSpec(rank=4, alpha=8), seed=0).train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    check_activations(model, ROW)
    assert model.training
    assert all(torch.equal(p, before[name]) and p.dtype == before[name].dtype for name, p in model.named_parameters())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("adapted", [False, True])
def test_an_activation_beyond_fp16_is_named_with_about_the_value_that_it_would_have(
    model_dir: Path, tmp_path: Path, quantization: Quantization, adapted: bool
) -> None:
    folder = scaled(model_dir, tmp_path / "hot", f"{DOWN}.weight", 3e4)
    check_weights(folder)
    reference = load_model(folder, precision="fp32", quantization=quantization)
    seen: list[float] = []
    hook = lambda module, inputs, output: seen.append(float(output.abs().max()))  # noqa: E731
    reference.get_submodule(DOWN).register_forward_hook(hook)
    with torch.no_grad():
        reference(input_ids=torch.tensor([ROW]))
    model = load_model(folder, precision="fp16", quantization=quantization)
    if adapted:
        model = new_adapter(model, AdapterSpec(rank=4, alpha=8), seed=0)
    with pytest.raises(ConfigError, match=rf"got fp16, but the output of {DOWN} reaches about .*: {REMEDY}") as caught:
        check_activations(model, ROW)
    reached = float(str(caught.value).split("reaches about ")[1].split()[0])
    assert reached == pytest.approx(seen[0], rel=0.15)
    assert reached > 65504


def test_weights_that_are_no_numbers_are_damage_and_not_a_matter_of_precision(model_dir: Path, tmp_path: Path) -> None:
    folder = changed(model_dir, tmp_path / "damaged", {f"{DOWN}.weight": float("nan")})
    with pytest.raises(DataError, match=rf"the output of {DOWN} is no finite number in bf16 either"):
        check_activations(load_model(folder, precision="fp16"), ROW)


def test_a_training_in_fp16_ends_before_its_first_step_when_the_model_does_not_fit(
    model_dir: Path, tmp_path: Path
) -> None:
    folder = scaled(model_dir, tmp_path / "hot", f"{DOWN}.weight", 3e4)
    order, plan, steps = plan_training(range(1), global_batch=1, micro_batch=1, processes=1)
    how = Optimisation(
        learning_rate=1e-4,
        warmup_ratio=0.0,
        schedule="constant",
        checkpoint_steps=1,
        seed=0,
        precision="fp16",
        on_cpu=True,
        plan=plan,
        steps=steps,
    )
    job = TrainJob(
        kind="sft",
        model=folder,
        adapter=None,
        adapter_spec=AdapterSpec(rank=4, alpha=8),
        rows=write_rows(tmp_path / "rows.jsonl", [(ROW, (70, 2))]),
        order=order,
        folder=tmp_path / "train",
        how=how,
    )
    supervisor = PortsSupervisor(folder_ports(tmp_path, []))
    with pytest.raises(ConfigError, match=f"the output of {DOWN} reaches about"):
        fit_job(job, supervisor)
    assert not (tmp_path / "train").exists()
