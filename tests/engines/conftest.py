"""One engine of each kind at a time for the tests in this folder: vLLM has one a process, and starts in seconds."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from itrain_pipeline.engine import open_engine
from itrain_pipeline.engine.vllm_versions import is_installed
from itrain_pipeline.ports import Engine
from itrain_testing.tiny_model import write_random_adapter, write_tiny_model

torch.set_num_threads(1)  # the model is small: two threads wait for each other longer than they work
ENGINES = ("transformers", "vllm", *os.environ.get("ITRAIN_TEST_ENGINES", "").split())
"""Kinds, and engines of other packages as `package.module:factory` (docs/extending.md)."""
CONTEXT = 256
BATCH_TOKENS = 2048


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """vLLM's libraries warn of each other. What we call ourselves, the transformers half of each test holds."""
    for item in items:
        if "[vllm" in item.name:
            item.add_marker(pytest.mark.filterwarnings("default"))


class Shelf:
    """The engine that most tests share, opened when one asks for it and closed when a test needs one of its own."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._shared: Engine | None = None
        self._own: list[Engine] = []
        self._names = count()

    def shared(self, model_dir: Path) -> Engine:
        """On the base model, without known prefixes."""
        if self._shared is None:
            self._shared = open_engine(
                self.kind,  # type: ignore[arg-type]
                model_dir,
                dtype="fp32",
                max_batch_tokens=BATCH_TOKENS,
                max_model_len=CONTEXT,
            )
        self._shared.load_adapter(self.fresh_name(), None)
        self._shared.reset_prefix_cache()
        return self._shared

    def own(self, model_dir: Path, **settings: Any) -> Engine:
        """A new one, for this test alone."""
        self.close()
        engine = open_engine(self.kind, model_dir, **{"dtype": "fp32", **settings})  # type: ignore[arg-type]
        self._own.append(engine)
        return engine

    def fresh_name(self) -> str:
        return f"adapter-{next(self._names)}"

    def close_own(self) -> None:
        while self._own:
            asyncio.run(self._own.pop().aclose())

    def close(self) -> None:
        self.close_own()
        if self._shared is not None:
            asyncio.run(self._shared.aclose())
            self._shared = None


@pytest.fixture(scope="session", params=ENGINES)
def shelf(request: pytest.FixtureRequest) -> Iterator[Shelf]:
    if request.param == "vllm" and not is_installed():
        if os.environ.get("CI"):
            pytest.fail("vLLM is not installed, and CI must run both engines")
        pytest.skip("vLLM is not installed: make install brings it")
    opened = Shelf(request.param)
    yield opened
    opened.close()


@pytest.fixture
def engine(shelf: Shelf, model_dir: Path) -> Engine:
    return shelf.shared(model_dir)


@pytest.fixture
def bench(shelf: Shelf) -> Iterator[Shelf]:
    """For tests that open engines of their own."""
    yield shelf
    shelf.close_own()


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model", context=CONTEXT, hidden=128)


@pytest.fixture(scope="session")
def model(model_dir: Path) -> Any:
    """The same weights without an engine: what is right."""
    return plain_model(model_dir)


@pytest.fixture(scope="session")
def adapters(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return [write_random_adapter(model_dir, folder / f"seed{seed}", seed=seed, rank=4) for seed in (1, 2)]


def plain_model(model_dir: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
