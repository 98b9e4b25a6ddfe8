"""Training in two processes: ZeRO-2 on gloo gives what one process gives; a rank's failure keeps its exit code."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from itrain_contract.names import ExitCode
from itrain_contract.spec import AdapterSpec
from itrain_contract.stages import StageKind
from itrain_pipeline.errors import Interrupted, PermanentError
from itrain_pipeline.files import sha256_file
from itrain_pipeline.learn.checkpoints import whole_checkpoints
from itrain_pipeline.learn.job import Optimisation, TrainJob, plan_training, write_rows
from itrain_pipeline.learn.launch import run_job
from itrain_pipeline.ports import StageOutput
from itrain_pipeline.stages.train import run
from itrain_testing.learning import (
    StopAfter,
    learning_input,
    make_examples,
    make_pairs,
    prepare_result,
    rollout_results,
    without_padding,
)
from itrain_testing.stageports import FolderWork, Silent, folder_files, folder_ports, stage_result
from itrain_testing.tiny_model import write_random_adapter, write_tiny_model

pytestmark = pytest.mark.e2e

# 11 pairs in global batches of 4: the last one is neither full nor even.
STAGE = {"globalBatch": 4, "microBatch": 2, "learningRate": 0.002, "quantization": "none", "epochs": 16}
TWO = {"processesPerNode": 2, "deepspeed": "zero2", "checkpointSteps": 1000}


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ITRAIN_THREADS", "2")


def train(
    folder: Path, model_dir: Path, stage: dict[str, Any], work: FolderWork | None = None, silent: Silent | None = None
) -> StageOutput:
    folder.mkdir()
    adapter = write_random_adapter(model_dir, folder / "start")
    pairs = make_pairs(11, adapter_sha256=sha256_file(adapter / "adapter_model.safetensors"))
    results = [
        prepare_result(folder, model_dir, make_examples(2)),
        stage_result(StageKind.WARMUP, files=folder_files(adapter, "adapter/")),
        *rollout_results(folder / "rollout", pairs),
    ]
    ports = folder_ports(folder, results, work=work, silent=silent)
    return run(learning_input(StageKind.TRAIN, {**STAGE, **stage}, iteration=1), ports)


def test_two_processes_stopped_and_resumed_train_the_adapter_of_one(tmp_path: Path) -> None:
    model_dir = write_tiny_model(tmp_path / "model")
    one = train(tmp_path / "one", model_dir, {})
    work = FolderWork(tmp_path / "work")
    with pytest.raises(Interrupted, match=r"stopped after step \d+ of 44; a checkpoint is saved"):
        train(tmp_path / "stopped", model_dir, TWO, work, StopAfter(1))
    (step,) = whole_checkpoints(work)
    assert 0 < step < 44
    two = train(tmp_path / "resumed", model_dir, TWO, work)
    assert two.info["processes"] == "2"
    assert without_padding(two.counters) == without_padding(one.counters)
    assert two.metrics == pytest.approx(one.metrics, rel=1e-3, abs=1e-4)
    expected = load_file(one.outputs["adapter/adapter_model.safetensors"])
    found = load_file(two.outputs["adapter/adapter_model.safetensors"])
    assert found.keys() == expected.keys()
    for name, weights in expected.items():
        assert (found[name] - weights).abs().max().item() < 1e-4, name


def test_a_rank_that_diverges_ends_the_stage_with_its_own_exit_code_and_words(tmp_path: Path) -> None:
    model_dir = write_tiny_model(tmp_path / "model")
    weights = load_file(model_dir / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, model_dir / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PermanentError, match="the loss of step 1 is nan: training diverged") as caught:
        train(tmp_path / "run", model_dir, {**TWO, "deepspeed": "none"})
    assert caught.value.exit_code == ExitCode.PERMANENT


def test_the_warm_up_in_two_processes_gives_the_adapter_of_one(tmp_path: Path) -> None:
    """As on a node with two GPUs: plain data parallelism, the mean over the answer tokens of both ranks."""
    model_dir = write_tiny_model(tmp_path / "model")
    found = []
    for processes in (1, 2):
        folder = tmp_path / f"{processes}"
        folder.mkdir()
        examples = make_examples(11)
        order, plan, steps = plan_training(range(11), global_batch=4, micro_batch=2, processes=processes)
        job = TrainJob(
            kind="sft",
            model=model_dir,
            adapter=None,
            adapter_spec=AdapterSpec(rank=4, alpha=8),
            rows=write_rows(folder / "rows.jsonl", [(e.prompt_ids, e.answer_ids) for e in examples]),
            order=order,
            folder=folder / "train",
            how=Optimisation(
                learning_rate=0.01,
                warmup_ratio=0.0,
                schedule="cosine",
                checkpoint_steps=2,
                seed=3,
                precision="fp32",
                on_cpu=True,
                plan=plan,
                steps=steps,
            ),
        )
        result = run_job(job, folder_ports(folder, []))
        assert result.steps == 3
        found.append((load_file(result.adapter / "adapter_model.safetensors"), [row["loss"] for row in result.log]))
    (one, losses), (two, losses_of_two) = found
    assert losses_of_two == pytest.approx(losses, rel=1e-5)
    for name, weights in one.items():
        apart = (two[name] - weights).abs()
        assert apart.mean().item() < 1e-5, name
        assert apart.max().item() < 1e-3, f"{name}: AdamW makes steps of 0.01 of gradients that are rounding alone"
