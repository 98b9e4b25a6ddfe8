"""A hash is read once while a file stays as it is; a folder's follows from what is in it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from itrain_images import files
from itrain_images.files import sha256, tree_sha256


def of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(files, "BUILD", tmp_path)
    files._known.cache_clear()
    return tmp_path


def test_a_file_that_keeps_size_and_time_is_not_read_again(build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = build / "a.whl"
    wheel.write_bytes(b"one")
    assert sha256(wheel) == of(b"one")
    files._known.cache_clear()  # another process
    monkeypatch.setattr(files, "_read", lambda path: pytest.fail(f"{path} is read"))
    assert sha256(wheel) == of(b"one")


def test_a_file_that_changed_is_read(build: Path) -> None:
    wheel = build / "a.whl"
    wheel.write_bytes(b"one")
    sha256(wheel)
    wheel.write_bytes(b"two")
    os.utime(wheel, ns=(0, 12345))
    assert sha256(wheel) == of(b"two")


def test_a_broken_record_is_none(build: Path) -> None:
    (build / files.KNOWN).write_text("{")
    wheel = build / "a.whl"
    wheel.write_bytes(b"one")
    assert sha256(wheel) == of(b"one")


def test_files_elsewhere_are_read_each_time(build: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("elsewhere") / "x"
    other.write_bytes(b"x")
    assert sha256(other) == of(b"x")
    assert not (build / files.KNOWN).exists()


def test_a_folders_hash_follows_names_and_contents_but_for_what_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "src/__pycache__").mkdir(parents=True)
    (tmp_path / "src/a.py").write_text("1")
    before = tree_sha256(tmp_path, ("__pycache__",))
    (tmp_path / "src/__pycache__/a.pyc").write_text("compiled")
    assert tree_sha256(tmp_path, ("__pycache__",)) == before
    (tmp_path / "src/a.py").rename(tmp_path / "src/b.py")
    renamed = tree_sha256(tmp_path, ("__pycache__",))
    (tmp_path / "src/b.py").write_text("2")
    assert len({before, renamed, tree_sha256(tmp_path, ("__pycache__",))}) == 3
