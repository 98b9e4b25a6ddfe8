"""Checkpoints in the work area: believed whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from itrain_pipeline.learn.checkpoints import (
    checkpoint_files,
    restore_checkpoint,
    upload_checkpoint,
    whole_checkpoints,
)
from itrain_testing.fakestage import Killed
from itrain_testing.stageports import FolderWork


class DyingWork(FolderWork):
    """A work area whose process is killed instead of the put after the `survives`-th."""

    def __init__(self, folder: Path, survives: int) -> None:
        super().__init__(folder)
        self._survives = survives

    def put(self, name: str, path: Path) -> None:
        if self.puts >= self._survives:
            raise Killed(name)
        super().put(name, path)


def write_checkpoint(folder: Path, step: int) -> Path:
    target = folder / f"checkpoint-{step}"
    (target / "global_step3").mkdir(parents=True)
    for name in ("adapter_model.safetensors", "optimizer.pt", "rng_state_0.pth", "global_step3/states.pt"):
        (target / name).write_text(f"{name} of step {step}")
    for name in ("training_args.bin", "README.md", "tokenizer.json"):
        (target / name).write_text("not needed")
    return target


def test_a_checkpoint_comes_back_as_it_was_without_what_no_resumption_reads(tmp_path: Path) -> None:
    work = FolderWork(tmp_path / "work")
    local = write_checkpoint(tmp_path, 3)
    upload_checkpoint(work, local, 3)
    found = restore_checkpoint(work, tmp_path / "again")
    assert found is not None
    assert found.name == "checkpoint-3"
    names = [path.relative_to(found).as_posix() for path in found.rglob("*") if path.is_file()]
    assert sorted(names) == checkpoint_files(local)
    assert "training_args.bin" not in names
    assert all((found / name).read_text() == f"{name} of step 3" for name in names)


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert restore_checkpoint(FolderWork(tmp_path / "work"), tmp_path / "again") is None


def test_the_newest_by_number_wins_and_older_ones_are_deleted(tmp_path: Path) -> None:
    work = FolderWork(tmp_path / "work")
    for step in (9, 10):
        upload_checkpoint(work, write_checkpoint(tmp_path, step), step)
    assert whole_checkpoints(work) == [10]
    assert not work.names("checkpoint-9/")


@pytest.mark.parametrize("survives", range(5))
def test_a_process_killed_during_an_upload_leaves_the_checkpoint_before(tmp_path: Path, survives: int) -> None:
    upload_checkpoint(FolderWork(tmp_path / "work"), write_checkpoint(tmp_path, 1), 1)
    with pytest.raises(Killed):
        upload_checkpoint(DyingWork(tmp_path / "work", survives), write_checkpoint(tmp_path, 2), 2)
    found = restore_checkpoint(FolderWork(tmp_path / "work"), tmp_path / "again")
    assert found is not None
    assert found.name == "checkpoint-1"


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    work = FolderWork(tmp_path / "work")
    for step in (1, 2):
        upload_checkpoint(FolderWork(tmp_path / f"work-{step}"), write_checkpoint(tmp_path, step), step)
        for name in FolderWork(tmp_path / f"work-{step}").names():
            work.put(name, tmp_path / f"work-{step}" / "stored" / name)
    stored = work.stored / "checkpoint-2" / "optimizer.pt"
    stored.unlink() if damage == "missing" else stored.write_text("others")
    found = restore_checkpoint(work, tmp_path / "again")
    assert found is not None
    assert found.name == "checkpoint-1"
    assert "checkpoint of step 2 is passed over: optimizer.pt" in caplog.text
