"""The packages of every image, resolved again from the package index for the image's own platform."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from itrain_testing.cluster.access import ROOT
from itrain_testing.gotools import exclusively

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]


def images_lock(checkout: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "images-lock"], cwd=checkout, capture_output=True, text=True, check=False)


def test_every_matrix_gives_the_lock_that_is_committed() -> None:
    with exclusively("images"):  # its tools are installed by whoever comes first
        done = images_lock(ROOT)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def test_a_lock_that_its_matrix_does_not_give_is_named(tmp_path: Path) -> None:
    """A pin of the V100 trainer is taken out of its lock."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    (tmp_path / "build").mkdir()
    (tmp_path / "build/images").symlink_to(ROOT / "build/images")
    lock = tmp_path / "requirements/trainer-volta.txt"
    without, pins = re.subn(r"^peft==.*?(?=^\S+==)", "", lock.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert pins == 1
    lock.write_text(without)
    done = images_lock(tmp_path)
    assert done.returncode != 0
    assert "trainer-volta.txt" in done.stdout
