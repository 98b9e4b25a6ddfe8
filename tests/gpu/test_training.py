"""The training loop on a GPU: precisions, the loss scaler, DeepSpeed's, resumption, and what a run records."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from itrain_contract.stages import StageKind
from itrain_pipeline.errors import Interrupted
from itrain_pipeline.files import sha256_file
from itrain_pipeline.learn.checkpoints import whole_checkpoints
from itrain_pipeline.learn.fitting import fit_job
from itrain_pipeline.learn.job import TrainJob, deepspeed_config, with_batches
from itrain_pipeline.learn.launch import run_ranks
from itrain_pipeline.learn.order import plan_batches
from itrain_pipeline.learn.precision import ChosenPrecision
from itrain_pipeline.stages.train import run
from itrain_testing.learning import (
    StopAfter,
    learning_input,
    make_examples,
    make_pairs,
    prepare_result,
    rollout_results,
)
from itrain_testing.pairjobs import BATCH, Stopping, pair_job
from itrain_testing.stageports import FolderWork, Silent, folder_files, folder_ports, stage_result
from itrain_testing.tiny_model import write_random_adapter

PRECISIONS: tuple[ChosenPrecision, ...] = ("fp32", "bf16", "fp16")


def stage(folder: Path, model_dir: Path, adapter: Path, fields: dict[str, Any], **extra: Any) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    pairs = make_pairs(10, adapter_sha256=sha256_file(adapter / "adapter_model.safetensors"))
    results = [
        prepare_result(folder, model_dir, make_examples(2)),
        stage_result(StageKind.WARMUP, files=folder_files(adapter, "adapter/")),
        *rollout_results(folder / "rollout", pairs),
    ]
    given = {"globalBatch": 4, "microBatch": 2, "checkpointSteps": 2, "learningRate": 0.005, "epochs": 4, **fields}
    precision = extra.pop("precision", "fp32")
    ports = folder_ports(folder, results, **extra)
    return run(learning_input(StageKind.TRAIN, given, iteration=1, precision=precision), ports)


@pytest.fixture(scope="module")
def adapter(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_adapter(model_dir, tmp_path_factory.mktemp("start") / "adapter")


def weights(output: Any) -> dict[str, torch.Tensor]:
    return load_file(output.outputs["adapter/adapter_model.safetensors"])


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("precision", ["auto", *PRECISIONS])
def test_every_precision_trains_and_is_recorded(
    model_dir: Path, adapter: Path, tmp_path: Path, precision: str, quantization: str
) -> None:
    output = stage(tmp_path, model_dir, adapter, {"quantization": quantization}, precision=precision)
    ampere = torch.cuda.get_device_capability() >= (8, 0)
    expected = ("bf16" if ampere else "fp16") if precision == "auto" else precision
    assert output.info["precision"] == expected
    assert output.info["quantization"] == quantization
    assert torch.cuda.get_device_name() in output.info["device"]
    assert output.info["rows"] == "tree"
    assert output.metrics["train/loss"] < output.metrics["train/loss_first"]
    before = load_file(adapter / "adapter_model.safetensors")
    for name, after in weights(output).items():
        assert after.dtype == torch.float32
        assert bool(after.isfinite().all())
        assert not torch.equal(after, before[name]), name


def test_a_training_that_is_stopped_goes_on_where_it_was(model_dir: Path, adapter: Path, tmp_path: Path) -> None:
    whole = stage(tmp_path / "whole", model_dir, adapter, {})
    work = FolderWork(tmp_path / "work")
    with pytest.raises(Interrupted, match="a checkpoint is saved"):
        stage(tmp_path / "cut", model_dir, adapter, {}, work=work, silent=StopAfter(3))
    (step,) = whole_checkpoints(work)
    assert 0 < step < 10
    resumed = weights(stage(tmp_path / "resumed", model_dir, adapter, {}, work=work, silent=Silent()))
    for name, expected in weights(whole).items():
        assert (resumed[name] - expected).abs().max().item() < 1e-6, name


def on_gpu(job: TrainJob, precision: ChosenPrecision, **loss: float) -> TrainJob:
    how = dataclasses.replace(job.how, precision=precision, on_cpu=False)
    return dataclasses.replace(job, how=how, loss={**job.loss, **loss})


def test_the_loss_scaler_skips_steps_that_overflow_and_they_are_counted(model_dir: Path, tmp_path: Path) -> None:
    """A loss so steep that its gradients, scaled by 2^16, are beyond fp16; the scale halves until they are not."""
    result = fit_job(on_gpu(pair_job(tmp_path, model_dir, epochs=8), "fp16", beta=1e4), Stopping())
    assert 0 < result.skipped_steps < result.steps
    found = load_file(result.adapter / "adapter_model.safetensors")
    assert all(bool(value.isfinite().all()) for value in found.values())


@pytest.mark.parametrize("shards", ["zero2", "zero3"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_deepspeed_in_16_bits_trains_as_the_plain_loop_does(
    model_dir: Path, tmp_path: Path, precision: ChosenPrecision, shards: Any
) -> None:
    """One rank, so nothing is split; what differs from a CPU is its fp16, with a loss scale of its own."""
    rate = 1e-4
    plain = fit_job(on_gpu(pair_job(tmp_path / "plain", model_dir, learning_rate=rate), precision), Stopping())
    two = plan_batches(global_batch=BATCH, micro_batch=2, processes=2)
    config = deepspeed_config(shards, plan=two, precision=precision, quantization="none", max_grad_norm=1.0)
    job = on_gpu(pair_job(tmp_path / "sharded", model_dir, learning_rate=rate, deepspeed=config), precision)
    job = dataclasses.replace(job, how=with_batches(job.how, job.how.plan))
    result = run_ranks(job, folder_ports(tmp_path / "ports", []))
    assert result.steps == plain.steps
    before = load_file(tmp_path / "sharded" / "train" / "adapter" / "adapter_model.safetensors")
    expected = load_file(plain.adapter / "adapter_model.safetensors")
    for name, value in before.items():
        assert value.dtype == torch.float32
        assert (value - expected[name]).abs().max().item() < 2 * rate * result.steps, name
    moved = max(float(value.abs().max()) for name, value in before.items() if "lora_B" in name)
    assert moved > 0.1 * rate
