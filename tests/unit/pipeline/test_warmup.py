"""warmup: order, what is learned, stop and resume, what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from itrain_contract.spec import AdapterSpec
from itrain_contract.stages import StageKind
from itrain_contract.stagespec import WarmupStage
from itrain_pipeline.errors import ConfigError, DataError, Interrupted, PermanentError
from itrain_pipeline.learn.adapter import adapter_sha256, continue_adapter, new_adapter
from itrain_pipeline.learn.collate import SftCollator
from itrain_pipeline.learn.loading import load_model
from itrain_pipeline.ports import StageOutput
from itrain_pipeline.records import Example
from itrain_pipeline.stages.warmup import arrange, run
from itrain_testing.learning import StopAfter, learning_input, make_examples, prepare_result
from itrain_testing.stageports import FolderWork, Silent, folder_ports
from itrain_testing.tiny_model import write_tiny_model

STAGE = {"globalBatch": 4, "microBatch": 2, "checkpointSteps": 2, "learningRate": 0.01, "warmupRatio": 0.2}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ITRAIN_THREADS", "1")


def warm(
    folder: Path,
    model_dir: Path,
    examples: list[Example],
    stage: dict[str, Any],
    *,
    work: FolderWork | None = None,
    silent: Silent | None = None,
    **spec: Any,
) -> StageOutput:
    folder.mkdir(parents=True, exist_ok=True)
    ports = folder_ports(folder, [prepare_result(folder, model_dir, examples)], work=work, silent=silent)
    return run(learning_input(StageKind.WARMUP, {**STAGE, **stage}, **spec), ports)


def adapter_folder(output: StageOutput) -> Path:
    return output.outputs["adapter/adapter_model.safetensors"].parent


def log_lines(output: StageOutput) -> list[dict[str, float]]:
    return [json.loads(line) for line in output.outputs["log.jsonl"].read_text().splitlines()]


def test_training_lowers_the_answers_loss_and_writes_adapter_and_log(model_dir: Path, tmp_path: Path) -> None:
    examples = make_examples(12)
    output = warm(tmp_path, model_dir, examples, {"epochs": 8})
    log = log_lines(output)
    assert [row["step"] for row in log] == list(range(1, 25))
    assert {"step", "loss", "lr"} <= log[0].keys()
    assert output.counters["steps"] == 24
    assert output.counters["rows"] == 12
    assert mean_nll(model_dir, adapter_folder(output), examples) < mean_nll(model_dir, None, examples) - 0.5
    assert sorted(output.outputs) == ["adapter/adapter_config.json", "adapter/adapter_model.safetensors", "log.jsonl"]


def mean_nll(model_dir: Path, adapter: Path | None, examples: list[Example]) -> float:
    model = load_model(model_dir, precision="fp32")
    if adapter is not None:
        model = continue_adapter(model, adapter, trainable=False)
    losses = []
    for e in examples:
        batch = SftCollator()([{"input_ids": [*e.prompt_ids, *e.answer_ids], "labels": labels(e)}])
        losses.append(model(**batch).loss.item())
    return sum(losses) / len(losses)


def labels(example: Example) -> list[int]:
    return [-100] * len(example.prompt_ids) + list(example.answer_ids)


def test_the_first_step_is_adamw_on_the_mean_over_the_answer_tokens_of_the_global_batch(
    model_dir: Path, tmp_path: Path
) -> None:
    """Worked without a trainer: four rows of unequal length, gradient of Σ NLL / Σ tokens, clipped to 1."""
    examples = [dataclasses.replace(e, bucket="easy") for e in make_examples(4)]
    output = warm(tmp_path, model_dir, examples, {"epochs": 1, "warmupRatio": 0.0})
    model = new_adapter(load_model(model_dir, precision="fp32"), AdapterSpec(rank=4, alpha=8), seed=42)
    summed: Any = 0.0
    for e in examples:
        ids = torch.tensor([[*e.prompt_ids, *e.answer_ids]])
        logprobs = model(input_ids=ids).logits[0].log_softmax(-1)
        for at in range(len(e.prompt_ids), ids.shape[1]):
            summed = summed - logprobs[at - 1, ids[0, at]]
    loss = summed / sum(len(e.answer_ids) for e in examples)
    loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    torch.nn.utils.clip_grad_norm_(list(trained.values()), 1.0)
    torch.optim.AdamW(trained.values(), lr=0.01, weight_decay=0.0).step()
    assert log_lines(output)[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    found = continue_adapter(load_model(model_dir, precision="fp32"), adapter_folder(output), trainable=True)
    for name, parameter in found.named_parameters():
        if name in trained:
            assert torch.allclose(parameter, trained[name], atol=1e-5), name


def test_the_curriculum_comes_easy_to_hard_and_shuffled_is_one_bucket() -> None:
    examples = make_examples(9)
    rows = arrange(examples, WarmupStage(order="curriculum"))
    assert [e.bucket for e in rows.examples] == ["easy"] * 3 + ["medium"] * 3 + ["hard"] * 3
    assert rows.sizes == (3, 3, 3)
    assert arrange(examples, WarmupStage(order="shuffled")).sizes == (9,)


def test_rows_that_are_too_long_are_counted_and_never_cut() -> None:
    examples = make_examples(30)
    rows = arrange(examples, WarmupStage(max_length=20))
    assert 0 < rows.too_long < 30
    assert {e.id for e in rows.examples} == {e.id for e in examples if len(e.prompt_ids + e.answer_ids) <= 20}
    with pytest.raises(DataError, match=r"warmup\.maxLength: none of 30 rows fits into 2 tokens"):
        arrange(examples, WarmupStage(max_length=2))


def test_a_row_without_ids_is_named(model_dir: Path, tmp_path: Path) -> None:
    examples = [*make_examples(3), dataclasses.replace(make_examples(4)[3], answer_ids=())]
    with pytest.raises(DataError, match=r"row row-003 has no prompt_ids or answer_ids"):
        warm(tmp_path, model_dir, examples, {})


@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_stopped_training_resumes_to_the_same_adapter_and_log_bit_by_bit(
    model_dir: Path, tmp_path: Path, stop_after: int
) -> None:
    examples = make_examples(22)
    spec = {"adapter": {"dropout": 0.1}}
    whole = warm(tmp_path / "whole", model_dir, examples, {}, **spec)
    work = FolderWork(tmp_path / "work")
    with pytest.raises(Interrupted, match=f"stopped after step {stop_after + 1} of 6"):
        warm(tmp_path / "first", model_dir, examples, {}, work=work, silent=StopAfter(stop_after), **spec)
    resumed = warm(tmp_path / "second", model_dir, examples, {}, work=work, **spec)
    assert adapter_sha256(adapter_folder(resumed)) == adapter_sha256(adapter_folder(whole))
    assert resumed.outputs["log.jsonl"].read_bytes() == whole.outputs["log.jsonl"].read_bytes()


def test_an_attempt_that_finds_the_last_checkpoint_only_writes_the_adapter_again(
    model_dir: Path, tmp_path: Path
) -> None:
    examples, work = make_examples(9), FolderWork(tmp_path / "work")
    whole = warm(tmp_path / "first", model_dir, examples, {}, work=work)
    silent = Silent()
    again = warm(tmp_path / "second", model_dir, examples, {}, work=work, silent=silent)
    assert silent.updates == []
    assert adapter_sha256(adapter_folder(again)) == adapter_sha256(adapter_folder(whole))


def test_a_loss_that_is_no_number_ends_the_stage_for_good(tmp_path: Path) -> None:
    broken = write_tiny_model(tmp_path / "broken")
    from safetensors.torch import load_file, save_file

    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PermanentError, match="the loss of step 1 is nan: training diverged"):
        warm(tmp_path / "run", broken, make_examples(4), {})


def test_fp16_on_a_cpu_is_refused(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got fp16 on a CPU"):
        warm(tmp_path, model_dir, make_examples(4), {}, precision="fp16")


def test_gradient_checkpointing_changes_nothing_but_memory(model_dir: Path, tmp_path: Path) -> None:
    examples = make_examples(9)
    plain = warm(tmp_path / "plain", model_dir, examples, {})
    saving = warm(tmp_path / "saving", model_dir, examples, {"gradientCheckpointing": True})
    assert saving.metrics["warmup/loss"] == pytest.approx(plain.metrics["warmup/loss"], rel=1e-4)
