"""A training that is stopped, loses a rank, or has its weights split over ranks: nothing is lost and nothing hangs."""

from __future__ import annotations

import dataclasses
import signal
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from itrain_contract.spec import AdapterSpec
from itrain_pipeline.errors import Interrupted
from itrain_pipeline.files import sha256_file
from itrain_pipeline.learn.checkpoints import whole_checkpoints
from itrain_pipeline.learn.job import TrainJob, deepspeed_config
from itrain_pipeline.learn.launch import run_job
from itrain_pipeline.learn.order import plan_batches
from itrain_testing.learning import StopAfter
from itrain_testing.pairjobs import BATCH, pair_job
from itrain_testing.stageports import FolderWork, folder_ports
from itrain_testing.trainnodes import MakeWorld, adapter_file, wait_until

pytestmark = pytest.mark.e2e

SAVE_WITHIN_S = 30.0


def test_sigterm_is_a_checkpoint_within_30_s_and_the_same_adapter_comes_out(world: MakeWorld) -> None:
    stage = {"epochs": 100, "checkpointSteps": 3, "guards": {"probeRows": 0}}
    whole = world("whole", stage)
    assert whole.run(0) == [0], whole.logs()
    cut = world("cut", stage)
    process = cut.start()
    wait_until(lambda: bool(cut.checkpoints()), 120, cut.logs)
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert cut.wait([process]) == [143], cut.logs()
    assert time.monotonic() - asked < SAVE_WITHIN_S
    (step,) = cut.checkpoints()
    assert cut.run(0, attempt=2) == [0], cut.logs()
    assert f"resuming from step {step}" in cut.log(0).read_text()
    assert sha256_file(adapter_file(cut.result(attempt=2))) == sha256_file(adapter_file(whole.result()))


@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_that_is_killed_ends_the_stage_with_75_and_leaves_a_checkpoint(world: MakeWorld, killed: int) -> None:
    stage = {"processesPerNode": 2, "deepspeed": "none", "maxSteps": 20_000, "checkpointSteps": 1}
    two = world("two", stage)
    process = two.start()
    wait_until(lambda: bool(two.checkpoints()), 120, two.logs)
    ranks = psutil.Process(process.pid).children()
    assert len(ranks) == 2
    ranks[killed].kill()
    assert two.wait([process], within_s=45) == [75], two.logs()
    assert two.termination(0).exit_code == 75
    assert two.checkpoints()
    assert not psutil.wait_procs(ranks, timeout=5)[1]


def zero3_job(folder: Path, model: Path) -> TrainJob:
    """Two ranks with every matrix of the adapter split between them, however small; without dropout, drawn by rank."""
    plan = plan_batches(global_batch=BATCH, micro_batch=2, processes=2)
    config = deepspeed_config("zero3", plan=plan, precision="fp32", quantization="none", max_grad_norm=1.0)
    assert config is not None
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return without_dropout(pair_job(folder, model, processes=2, deepspeed=config))


def without_dropout(job: TrainJob) -> TrainJob:
    return dataclasses.replace(job, adapter_spec=AdapterSpec(rank=4, alpha=8))


def test_zero_3_stopped_and_resumed_saves_the_whole_adapter_of_one_process(tmp_path: Path, model: Path) -> None:
    one = run_job(without_dropout(pair_job(tmp_path / "one", model)), folder_ports(tmp_path / "one", []))
    work = FolderWork(tmp_path / "work")
    with pytest.raises(Interrupted, match="a checkpoint is saved"):
        run_job(zero3_job(tmp_path / "cut", model), folder_ports(tmp_path / "cut", [], work=work, silent=StopAfter(1)))
    (step,) = whole_checkpoints(work)
    assert 0 < step < 6
    two = run_job(zero3_job(tmp_path / "two", model), folder_ports(tmp_path / "two", [], work=work))
    assert one is not None
    assert two is not None
    expected, found = (load_file(result.adapter / "adapter_model.safetensors") for result in (one, two))
    assert {name: weights.shape for name, weights in found.items()} == {n: w.shape for n, w in expected.items()}
    for name, weights in expected.items():
        assert (found[name] - weights).abs().max().item() < 1e-4, name
