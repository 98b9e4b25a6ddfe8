"""resumeFrom: the adapter of another run, the best one, proven by its hashes and made for the same model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from itrain_contract.layout import RunLayout
from itrain_contract.spec import ResumeFrom
from itrain_contract.stageio import StageResult
from itrain_contract.stages import StageKind, StageRef
from itrain_pipeline.errors import DataError
from itrain_pipeline.stages.resume import TakenAdapter, choose_adapter, find_adapter
from itrain_pipeline.store import open_store

WEIGHTS = save({"lora_A.weight": np.zeros((2, 3), np.float32)})
PREPARE, WARMUP, TRAIN, EXPORT = StageKind.PREPARE, StageKind.WARMUP, StageKind.TRAIN, StageKind.EXPORT


@dataclasses.dataclass
class OldRun:
    """A finished run in a storage folder."""

    folder: Path
    name: str = "old"
    uid: str = "aaaaaaaa-1"

    @property
    def root(self) -> str:
        return f"file://{self.folder}/storage"

    def add(
        self, kind: StageKind, iteration: int = 0, *, adapter: bool = True, started: float = 1.0, **info: str
    ) -> StageResult:
        layout = RunLayout(storage=self.root, name=self.name, uid=self.uid)
        prefix = layout.attempt(StageRef(kind=kind, iteration=iteration), 1)
        store = open_store(self.root)
        outputs = {}
        if adapter:
            config = {
                "peft_type": "LORA",
                "r": 2,
                "target_modules": ["q_proj"],
                "revision": f"{self.uid} {kind} {iteration}",
            }
            for name, data in (("config.json", json.dumps(config).encode()), ("model.safetensors", WEIGHTS)):
                outputs[f"adapter/adapter_{name}"] = store.put_bytes(data, f"{prefix}adapter/adapter_{name}")
        result = StageResult(
            kind=kind, iteration=iteration, attempt=1, digest="d" * 64, outputs=outputs, info=info, started=started
        )
        store.put_bytes(result.model_dump_json(by_alias=True).encode(), f"{prefix}result.json")
        return result


@pytest.fixture
def old(tmp_path: Path) -> OldRun:
    return OldRun(tmp_path)


def take(old: OldRun, revision: str = "rev", **origin: Any) -> TakenAdapter:
    scratch = old.folder / "scratch"
    return find_adapter(ResumeFrom(**origin), old.root, revision, open_store(old.root), scratch)


def made_by(taken: TakenAdapter) -> str:
    return str(json.loads((taken.folder / "adapter_config.json").read_text())["revision"])


def test_without_an_export_the_newest_trained_adapter_is_taken(old: OldRun) -> None:
    old.add(PREPARE, adapter=False, model_revision="rev")
    old.add(WARMUP)
    assert made_by(take(old, run_name="old")) == "aaaaaaaa-1 warmup 0"
    old.add(TRAIN, 1)
    old.add(TRAIN, 2)
    taken = take(old, run_name="old")
    assert made_by(taken) == "aaaaaaaa-1 train 2"
    assert (taken.folder / "adapter_model.safetensors").read_bytes() == WEIGHTS
    assert "i2/train/a1/adapter/" in taken.origin


@pytest.mark.parametrize(("point", "kind", "iteration"), [("iteration-1", TRAIN, 1), ("warmup", WARMUP, 0)])
def test_the_point_that_was_exported_is_taken(old: OldRun, point: str, kind: StageKind, iteration: int) -> None:
    results = [
        old.add(WARMUP),
        old.add(TRAIN, 1),
        old.add(TRAIN, 2),
        old.add(EXPORT, 2, adapter=False, best_point=point),
    ]
    chosen = choose_adapter(results)
    assert chosen is not None
    assert (chosen.kind, chosen.iteration) == (kind, iteration)


def test_of_two_runs_of_one_name_the_newer_counts_and_longer_names_are_others(old: OldRun) -> None:
    old.add(TRAIN, 1, started=10.0)
    dataclasses.replace(old, uid="bbbbbbbb-1").add(WARMUP, started=20.0)
    dataclasses.replace(old, name="old-more", uid="cccccccc-1").add(TRAIN, 9, started=30.0)
    assert made_by(take(old, run_name="old")) == "bbbbbbbb-1 warmup 0"


def test_a_uri_names_a_run_or_an_adapter(old: OldRun) -> None:
    old.add(WARMUP)
    run = f"{old.root}/old-aaaaaaaa"
    assert made_by(take(old, uri=run)) == "aaaaaaaa-1 warmup 0"
    assert made_by(take(old, uri=f"{run}/i0/warmup/a1/adapter")) == "aaaaaaaa-1 warmup 0"


def test_an_adapter_for_another_model_is_refused(old: OldRun) -> None:
    old.add(PREPARE, adapter=False, model_revision="other")
    old.add(WARMUP)
    with pytest.raises(DataError, match="made for model revision other, this run has rev"):
        take(old, run_name="old")


def test_a_changed_file_is_refused(old: OldRun) -> None:
    result = old.add(WARMUP)
    uri = result.outputs["adapter/adapter_model.safetensors"].uri
    open_store(old.root).put_bytes(b"others", uri)
    with pytest.raises(DataError, match="is not the file that its stage wrote"):
        take(old, run_name="old")


def test_what_is_no_plain_lora_is_refused(old: OldRun) -> None:
    prefix = f"{old.root}/elsewhere/adapter/"
    store = open_store(old.root)
    store.put_bytes(b"w", f"{prefix}adapter_model.safetensors")
    for config in ({"peft_type": "LORA", "use_dora": True}, {"peft_type": "IA3"}):
        store.put_bytes(json.dumps(config).encode(), f"{prefix}adapter_config.json")
        with pytest.raises(DataError, match="not a plain LoRA adapter"):
            take(old, uri=prefix)


def test_a_run_that_is_not_there_or_has_no_adapter_is_named(old: OldRun) -> None:
    with pytest.raises(DataError, match=r"resumeFrom\.runName 'old': no results of a run are there"):
        take(old, run_name="old")
    old.add(PREPARE, adapter=False)
    with pytest.raises(DataError, match="has no adapter"):
        take(old, run_name="old")
