"""Merging an adapter changes no answer, and a merge that would is refused with its figure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from itrain_pipeline.errors import ConfigError, PermanentError
from itrain_pipeline.learn.merge import merge_adapter, probe_logits, storage_dtypes
from itrain_testing.tiny_model import write_random_adapter, write_tiny_model

PROBES = [[1, 5, 9, 30, 41], list(range(3, 90))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("merge")
    model = write_tiny_model(root / "model")
    return model, write_random_adapter(model, root / "adapter")


def half(model_dir: Path, out: Path) -> Path:
    """The same model stored in fp16, as the shipped one is."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float16)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(model_dir).save_pretrained(out)
    return out


def greedy(model: object, prompt: list[int]) -> list[int]:
    out = model.generate(  # type: ignore[attr-defined]
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=24,
    )
    return [int(token) for token in out[0]]


def test_the_merged_model_gives_the_same_greedy_tokens_as_the_adapter(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    model_dir, adapter_dir = folders
    report = merge_adapter(model_dir, adapter_dir, tmp_path / "out", probes=PROBES, max_difference=1e-3)
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    plain = [greedy(base, prompt) for prompt in PROBES]
    adapted = PeftModel.from_pretrained(base, adapter_dir).eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert merged.dtype == torch.float32
    answers = [greedy(merged, prompt) for prompt in PROBES]
    assert answers == [greedy(adapted, prompt) for prompt in PROBES]
    assert answers != plain, "the adapter must change something, or this test shows nothing"
    assert report.max_difference < 1e-3
    assert report.same_greedy == 1.0
    assert (report.probe_rows, report.probe_positions) == (2, 5 + 64)


def test_what_is_written_is_complete_and_safe(folders: tuple[Path, Path], tmp_path: Path) -> None:
    merge_adapter(*folders, tmp_path / "out", probes=PROBES, max_difference=1.0)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl")) or "adapter" in name]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(folders[0]).chat_template


def test_half_precision_is_measured_as_it_is_stored(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base = half(folders[0], tmp_path / "half")
    assert storage_dtypes(base) == ("float16", "float32")
    report = merge_adapter(base, folders[1], tmp_path / "out", probes=PROBES, max_difference=1.0)
    assert report.dtype == "float16"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float16"
    stored = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folders[1]
    ).eval()
    difference = max(float((probe_logits(stored, p) - probe_logits(adapted, p)).abs().max()) for p in PROBES)
    assert difference == pytest.approx(report.max_difference, rel=1e-3)
    assert difference > 1e-4, "rounding to fp16 must be visible in the figure"


def test_fp32_is_written_where_half_precision_fails_the_gate(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base = half(folders[0], tmp_path / "half")
    report = merge_adapter(base, folders[1], tmp_path / "out", probes=PROBES, max_difference=1e-4)
    assert report.dtype == "float32"
    assert report.refused["float16"] > 1e-4
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.float32


def test_a_merge_that_changes_the_logits_is_refused_with_the_figure(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match=r"differ from the adapter's by up to \d.* stored as float32"):
        merge_adapter(*folders, tmp_path / "out", probes=PROBES, max_difference=1e-12)
    assert not (tmp_path / "out").exists()


def test_a_merge_without_probes_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one probe row"):
        merge_adapter(*folders, tmp_path / "out", probes=[[]], max_difference=1.0)
