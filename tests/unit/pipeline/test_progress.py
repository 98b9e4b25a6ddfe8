"""Progress: a file at most once a second, the last state always."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path

import pytest

from itrain_pipeline.progress import FileProgress


def states(file: Path, times: Iterable[float], total: int) -> list[int]:
    """The `done` that the file shows after each update; one update of one more at each of `times`."""
    ticks = list(times)
    clock = iter(ticks)
    progress = FileProgress(file, lambda: next(clock))
    seen = []
    for done in range(len(ticks)):
        progress.update(done, total)
        seen.append(json.loads(file.read_text())["done"])
    return seen


def test_the_file_is_written_at_most_once_a_second(tmp_path: Path) -> None:
    times = [100.0, 100.4, 100.9, 101.0, 101.9, 102.1, 102.2]
    assert states(tmp_path / "progress.json", times, total=9999) == [0, 0, 0, 3, 3, 5, 5]


def test_the_last_state_is_written_however_soon_it_comes(tmp_path: Path) -> None:
    assert states(tmp_path / "progress.json", [100.0, 100.1, 100.2], total=2) == [0, 0, 2]


def test_the_file_holds_done_total_text_and_time_and_no_leftovers(tmp_path: Path) -> None:
    FileProgress(tmp_path / "progress.json", lambda: 100.0).update(3, 7, "trees")
    state = json.loads((tmp_path / "progress.json").read_text())
    assert state == {"done": 3, "total": 7, "text": "trees", "updated": 100.0}
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"]


def test_the_log_has_a_line_every_five_seconds_and_one_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    ticks = iter([100.0, 102.0, 105.0, 106.0, 106.1])
    progress = FileProgress(None, lambda: next(ticks))
    with caplog.at_level(logging.INFO):
        for done in range(5):
            progress.update(done, 4, "steps")
    assert [record.getMessage() for record in caplog.records] == ["0/4 steps", "2/4 steps", "4/4 steps"]


def test_a_progress_file_that_cannot_be_written_is_said_once_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ticks = iter([100.0, 200.0, 300.0])
    progress = FileProgress(tmp_path / "missing" / "progress.json", lambda: next(ticks))
    for done in range(3):
        progress.update(done, 9)
    assert sum("progress cannot be written" in record.getMessage() for record in caplog.records) == 1
