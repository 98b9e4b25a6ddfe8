"""What a stage says of the machine, the libraries and the number format that it computed in."""

from __future__ import annotations

import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from itrain_contract.stageio import StageResult
from itrain_contract.stages import StageKind
from itrain_pipeline.errors import ConfigError
from itrain_pipeline.learn.hardware import compute_record, describe, installed_versions
from itrain_pipeline.learn.precision import Device, Quantization, detect_device
from itrain_pipeline.runtime import StageFunction
from itrain_pipeline.stages import score, train, warmup
from itrain_pipeline.stages.compute import choose_compute
from itrain_testing.learning import learning_input, make_examples, make_pairs, prepare_result, rollout_results
from itrain_testing.stageports import folder_ports
from itrain_testing.tiny_model import write_tiny_model

CPU = Device(kind="cpu", count=8, memory_bytes=32 << 30)
VOLTA = Device(kind="cuda", capability=(7, 0), name="Tesla V100-SXM2-32GB", count=8, memory_bytes=34_079_637_504)
AMPERE = Device(kind="cuda", capability=(8, 0), name="A100", memory_bytes=80 << 30)


def test_a_device_is_told_with_capability_and_memory() -> None:
    assert describe(VOLTA) == "8 × Tesla V100-SXM2-32GB (sm_70, 32 GiB)"
    assert describe(AMPERE) == "A100 (sm_80, 80 GiB)"
    assert describe(CPU) == f"CPU ({platform.machine()}, 8 threads, 32 GiB)"


def test_this_machine_is_told_with_its_threads_and_memory() -> None:
    device = detect_device()
    assert device.count == torch.get_num_threads()
    total = int(re.findall(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())[0]) * 1024
    assert device.memory_bytes == pytest.approx(total, rel=0.01)


def test_the_record_has_everything_that_may_change_a_number() -> None:
    record = compute_record(VOLTA, "fp16", "nf4", cuda="12.8")
    assert record["precision"] == "fp16"
    assert record["quantization"] == "nf4"
    assert record["device"] == describe(VOLTA)
    assert record["cuda"] == "12.8"
    for name in ("torch", "transformers", "peft", "trl", "accelerate", "deepspeed", "bitsandbytes"):
        assert record[name] == metadata.version(name)
    assert installed_versions().items() <= record.items()
    assert "cuda" not in compute_record(CPU, "fp32")


def test_the_record_names_neither_a_path_nor_a_host() -> None:
    text = " ".join(compute_record(detect_device(), "fp32").values())
    assert "/" not in text
    assert platform.node() not in text


def test_a_stage_learns_its_precision_before_the_model_is_loaded(tmp_path: Path) -> None:
    """The folder is not even looked at where the weights fit for sure."""
    compute = choose_compute(learning_input(StageKind.SCORE, {}, precision="auto"), tmp_path / "none")
    assert compute.precision == "fp32"
    assert compute.record("nf4")["quantization"] == "nf4"
    model_dir = write_tiny_model(tmp_path / "model")
    with pytest.raises(ConfigError, match="precision: got fp16 on a CPU, allowed there are auto, fp32 and bf16"):
        choose_compute(learning_input(StageKind.SCORE, {}, precision="fp16"), model_dir)


def small_run(folder: Path) -> list[StageResult]:
    """What the learning stages read."""
    model_dir = write_tiny_model(folder / "model", hidden=64)
    return [prepare_result(folder, model_dir, make_examples(4)), *rollout_results(folder / "rollout", make_pairs(4))]


SMALL = {"globalBatch": 4, "microBatch": 2, "maxSteps": 1}


@pytest.mark.parametrize(
    ("kind", "run", "stage", "quantization"),
    [
        (StageKind.WARMUP, warmup.run, SMALL, "none"),
        (StageKind.SCORE, score.run, {}, "none"),
        (StageKind.TRAIN, train.run, {**SMALL, "quantization": "nf4"}, "nf4"),
    ],
)
def test_every_learning_stage_records_what_it_computed_with(
    tmp_path: Path, kind: StageKind, run: StageFunction, stage: dict[str, Any], quantization: Quantization
) -> None:
    iteration = 0 if kind == StageKind.WARMUP else 1
    made = run(learning_input(kind, stage, iteration=iteration), folder_ports(tmp_path, small_run(tmp_path)))
    assert made.info.items() >= compute_record(detect_device(), "fp32", quantization).items()


def test_fp16_under_deepspeed_on_a_cpu_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    stage = {**SMALL, "processesPerNode": 2, "deepspeed": "zero2", "quantization": "none"}
    ports = folder_ports(tmp_path, small_run(tmp_path))
    with pytest.raises(ConfigError, match="precision: got fp16 on a CPU, allowed there are auto, fp32 and bf16"):
        train.run(learning_input(StageKind.TRAIN, stage, iteration=1, precision="fp16"), ports)
    assert not (ports.scratch / "train").exists()
