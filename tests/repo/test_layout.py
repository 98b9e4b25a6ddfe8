"""The tree keeps its own rules: names that clash, sizes, words that do not belong into a repository."""

from __future__ import annotations

import operator
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("crds/src", "operator/src", "pipeline/src")


def tracked(*patterns: str) -> list[Path]:
    """Files that git tracks, or would track: what a clone holds."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def test_the_folder_operator_holds_no_python_of_its_own() -> None:
    assert list((ROOT / "operator").glob("*.py")) == []
    assert not Path(operator.__file__ or "").is_relative_to(ROOT)


def test_the_standard_library_wins_when_python_starts_in_the_root() -> None:
    code = "import collections, operator, sys; sys.stdout.write(operator.__file__)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not found.stdout.startswith(str(ROOT))


def test_tests_are_no_packages_and_none_is_named_operator() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) in ([], [ROOT / "tests/support/itrain_testing/__init__.py"])
    assert not (ROOT / "tests/operator").exists()


def test_pytest_is_configured_in_one_place() -> None:
    for name in ("pytest.ini", "tox.ini", "setup.cfg"):
        assert tracked(name, f"**/{name}") == []


def test_modules_stay_readable() -> None:
    sizes = {p: len(p.read_text(encoding="utf-8").splitlines()) for d in PACKAGES for p in tracked(f"{d}/*.py")}
    assert {str(p.relative_to(ROOT)): n for p, n in sizes.items() if n > 500} == {}
    assert sorted(sizes.values())[len(sizes) // 2] <= 150


def test_nothing_unfinished_is_left() -> None:
    marks = re.compile(
        "|".join(["raise NotImplemented" + "Error", "TO" + "DO", "FIX" + "ME", r"except( Exception)?:\s*pass"])
    )
    found = [str(p) for d in PACKAGES for p in tracked(f"{d}/*.py") if marks.search(p.read_text(encoding="utf-8"))]
    assert found == []


def test_no_file_names_a_registry_or_a_private_path() -> None:
    words = re.compile(
        "python" + "hosted|py" + r"pi\.org|proxy\.gol" + r"ang|registry\.n" + r"pm|(?<![\w}>.…])/(root|work)/"
    )
    text_files = [p for p in tracked() if p.suffix not in (".safetensors", ".png", ".sum")]
    found = {str(p.relative_to(ROOT)): hit[0] for p in text_files if (hit := words.search(_text(p)))}
    assert found == {}


def test_only_ci_names_where_real_data_lies() -> None:
    found = [p for p in tracked() if p.suffix in (".py", ".yaml", ".md", ".toml", "") and p.name != "run"]
    place = "sha" + "red/da" + "ta"
    assert [str(p) for p in found if place in _text(p)] == []


def test_models_are_safetensors_and_small() -> None:
    assert tracked("*.bin", "*.pt", "*.pkl", "*.pth") == []
    shipped = sum(p.stat().st_size for p in tracked("pipeline/src/itrain_pipeline/quickstart/*"))
    assert 0 < shipped <= 4 * 1024 * 1024


def test_every_lock_is_hashed() -> None:
    for lock in tracked("requirements/*.txt"):
        for line in lock.read_text().splitlines():
            if re.match(r"^[a-zA-Z0-9]", line):
                assert line.endswith("\\"), f"{lock.name}: {line} has no hash"
