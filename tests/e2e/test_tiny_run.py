"""The seven stages for real, once whole, once killed at ten moments, once on S3: the same end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from itrain_testing.tinyrun import TinyRun

pytestmark = pytest.mark.timeout(1800)

# One thread per process: the arithmetic of a killed and resumed run must not depend on what else the machine does.
ENV = {"OMP_NUM_THREADS": "1"}
MOMENTS = (
    ("i0-prepare", 0),
    ("i0-warmup", 1),
    ("i0-warmup", 4),
    ("i0-evaluate", 1),
    ("i1-score", 0),
    ("i1-rollout", 1),
    ("i1-rollout", 4),
    ("i1-train", 1),
    ("i1-evaluate", 0),
    ("i0-export", 0),
)
MUST_BE_HIT = {"i0-warmup", "i1-score", "i1-rollout", "i1-train"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """An uninterrupted run."""
    run = TinyRun(folder=tmp_path_factory.mktemp("whole"), env=ENV)
    assert run.finish() == 0, run.console()[-4000:]
    return run


def test_a_run_ends_with_a_table_a_summary_and_a_report(whole: TinyRun) -> None:
    summary = json.loads((whole.folder / "summary.json").read_text())
    for key in ("dev_call_accuracy_base", "dev_call_accuracy_warmup", "dev_call_accuracy_iteration_1"):
        assert 0.0 <= summary[key] <= 1.0
    assert summary["pairs_iteration_1"] > 0
    assert summary["failed_trees"] == 0
    assert "report.html" in whole.console()
    (report,) = (whole.folder / "artifacts").glob("tiny-*/i0/export/a1/report.html")
    assert report.stat().st_size > 10_000


def test_a_second_call_does_nothing_and_says_so(whole: TinyRun) -> None:
    before = whole.results()
    jobs = sorted(p.name for p in (whole.folder / "jobs").iterdir())
    assert whole.finish() == 0
    assert whole.results() == before
    assert sorted(p.name for p in (whole.folder / "jobs").iterdir()) == jobs


def test_kill_nine_at_ten_moments_changes_neither_pairs_nor_adapter(whole: TinyRun, tmp_path: Path) -> None:
    killed = TinyRun(folder=tmp_path / "killed", env=ENV)
    hit = {stage for stage, done in MOMENTS if killed.kill_inside(stage, done)}
    assert hit >= MUST_BE_HIT, f"killed inside {sorted(hit)} only"
    assert killed.finish() == 0, killed.console()[-4000:]
    assert killed.results() == whole.results()
    assert half_written(killed.folder / "artifacts") == []


def half_written(artifacts: Path) -> list[Path]:
    """Result files beside which an output that they name is missing or has another size."""
    broken = []
    for result in artifacts.rglob("result.json"):
        for ref in json.loads(result.read_text())["outputs"].values():
            target = Path(ref["uri"].removeprefix("file://"))
            if not target.is_file() or target.stat().st_size != ref["sizeBytes"]:
                broken.append(target)
    return broken


def test_ctrl_c_stops_cleanly_and_the_same_command_goes_on(whole: TinyRun, tmp_path: Path) -> None:
    stopped = TinyRun(folder=tmp_path / "stopped", env=ENV)
    assert stopped.interrupt_inside("i0-warmup", 2) == 130
    assert stopped.finish() == 0, stopped.console()[-4000:]
    assert stopped.results() == whole.results()
