"""DeepSpeed computes with 16-bit copies of the adapter; what it saves are the fp32 weights of its optimiser."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from itrain_contract.stages import StageKind
from itrain_pipeline.files import sha256_file
from itrain_pipeline.stages.train import run
from itrain_testing.learning import learning_input, make_examples, make_pairs, prepare_result, rollout_results
from itrain_testing.stageports import folder_files, folder_ports, stage_result
from itrain_testing.tiny_model import write_random_adapter, write_tiny_model

pytestmark = pytest.mark.e2e

RATE = 1e-5
STEPS = 3


@pytest.mark.parametrize(("shards", "quantization"), [("zero2", "nf4"), ("zero3", "none")])
def test_steps_that_bf16_could_not_hold_are_in_the_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: str, quantization: str
) -> None:
    """Weights of about 0.2, whose next neighbours in bf16 are 1e-3 away, and three steps of at most 1e-5."""
    monkeypatch.setenv("ITRAIN_THREADS", "1")
    model_dir = write_tiny_model(tmp_path / "model", hidden=64)
    adapter = write_random_adapter(model_dir, tmp_path / "start")
    pairs = make_pairs(4, adapter_sha256=sha256_file(adapter / "adapter_model.safetensors"))
    results = [
        prepare_result(tmp_path, model_dir, make_examples(2)),
        stage_result(StageKind.WARMUP, files=folder_files(adapter, "adapter/")),
        *rollout_results(tmp_path / "rollout", pairs),
    ]
    stage = {
        "processesPerNode": 2,
        "deepspeed": shards,
        "quantization": quantization,
        "globalBatch": 4,
        "learningRate": RATE,
        "schedule": "constant",
        "warmupRatio": 0.0,
        "maxSteps": STEPS,
    }
    output = run(learning_input(StageKind.TRAIN, stage, iteration=1, precision="bf16"), folder_ports(tmp_path, results))
    assert output.info["precision"] == "bf16"
    before = load_file(adapter / "adapter_model.safetensors")
    after = load_file(output.outputs["adapter/adapter_model.safetensors"])
    assert after.keys() == before.keys()
    for name, weights in after.items():
        assert weights.dtype == torch.float32
        moved = (weights - before[name]).abs()
        assert 0.5 * RATE < moved.max().item() < 1.5 * STEPS * RATE, name
