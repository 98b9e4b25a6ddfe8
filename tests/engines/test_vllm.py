"""What only vLLM does: to a request that it refuses, and to the process that it runs in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from itrain_pipeline.errors import ConfigError

PRELOAD = os.environ.get("LD_PRELOAD")
"""Of this process, before any engine was opened in it."""

pytestmark = pytest.mark.parametrize("shelf", ["vllm"], indirect=True)


@pytest.fixture
def vllm(shelf: Any) -> Any:
    return shelf


def test_the_process_is_as_it_was(vllm: Any, model_dir: Path) -> None:
    vllm.shared(model_dir).kv_capacity()
    assert os.environ.get("LD_PRELOAD") == PRELOAD
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)


def test_a_context_beyond_the_models_is_refused_before_anything_is_loaded(vllm: Any, model_dir: Path) -> None:
    engine = vllm.own(model_dir, max_model_len=100_000)
    with pytest.raises(ConfigError, match=r"vllm refuses this model or these settings: .*100000"):
        engine.kv_capacity()
    vllm.close_own()
