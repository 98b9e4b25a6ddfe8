"""What a process loads: a stage must start fast, and the operator must never see an ML library."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "trl", "peft", "deepspeed", "datasets", "vllm", "matplotlib", "bfcl_eval")


def loaded_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after running `code`."""
    script = f"{code}\nimport sys; sys.stdout.write(' '.join({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["itrain_operator.cli", "itrain_operator.machine"])
def test_the_operator_loads_no_ml_library_and_no_object_store(module: str) -> None:
    assert loaded_after(f"import {module}").isdisjoint({*HEAVY, "boto3", "numpy", "itrain_pipeline"})


@pytest.mark.parametrize("stage", ["prepare", "warmup", "score", "rollout", "train", "evaluate", "export"])
def test_a_stage_module_loads_without_its_libraries(stage: str) -> None:
    assert loaded_after(f"import itrain_pipeline.stages.{stage}").isdisjoint({*HEAVY, "boto3"})


def test_the_contract_loads_only_pydantic_and_yaml() -> None:
    assert loaded_after("import itrain_contract.crdgen").isdisjoint({*HEAVY, "boto3", "rich", "typer", "numpy"})
