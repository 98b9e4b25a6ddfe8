"""A suite of its own (`make test-gpu`): no other test needs a GPU, and without one this ends instead of skipping."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from itrain_testing.tiny_model import write_tiny_model


def pytest_sessionstart() -> None:
    if not torch.cuda.is_available():
        raise pytest.UsageError("tests/gpu: torch sees no GPU here")


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), hidden=128)
