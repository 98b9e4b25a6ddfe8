"""What `itrain profile` times beside an engine: the training loop's steps, and processes from start to end."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import get_args

import pytest

from itrain_pipeline.profiling import MICRO_BATCH, train_steps
from itrain_pipeline.profiling_start import Start, measured_start
from itrain_testing.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


def test_steps_of_the_training_are_timed_until_the_seconds_are_over(model: Path, tmp_path: Path) -> None:
    rows = [((7, 8, 9), (10, 2))] * (2 * MICRO_BATCH)
    short = train_steps(model, rows, precision="fp32", folder=tmp_path / "short", seconds=0.0)
    long = train_steps(model, rows, precision="fp32", folder=tmp_path / "long", seconds=0.5)
    assert len(short) <= 2  # a step is reported after it was asked whether to stop
    assert sum(long) >= 0.5
    assert sum(long[:-2]) < 0.5
    assert all(step > 0 for step in (*short, *long))


@pytest.mark.parametrize("kind", get_args(Start))
def test_a_process_is_timed_from_start_to_end(model: Path, kind: Start) -> None:
    assert 0.1 < measured_start(kind, model, engine="transformers", precision="fp32") < 300


def test_a_process_that_fails_has_no_time(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        measured_start("engine", tmp_path / "none", engine="transformers", precision="fp32")
