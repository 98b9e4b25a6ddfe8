"""Shared by all suites: where real data lies, Helm for the chart, and a list of what was skipped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from itrain_testing import charttools
from itrain_testing.cluster import sessions

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores: torch, which has not been imported yet, must not take all of them for each.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Append every skip, one `nodeid: reason` a line, for CI to compare with its committed list."""
    target = os.environ.get("ITRAIN_SKIPS_FILE")
    if target and report.skipped and isinstance(report.longrepr, tuple):
        with Path(target).open("a") as out:
            out.write(f"{report.nodeid}: {report.longrepr[2].removeprefix('Skipped: ')}\n")


def pytest_collection_finish(session: pytest.Session) -> None:
    """A cold build happens before any test's timeout runs."""
    sessions.build_before_the_first_test(session.items, "chart_tools", charttools.missing)


@pytest.fixture(scope="session")
def chart_tools() -> None:
    """Helm and the schemas; skips (fails in continuous integration) with the reason where they cannot be had."""
    if reason := charttools.missing():
        sessions.unavailable(reason)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real ToolACE and API-Bank rows; they are not part of the repository."""
    folder = os.environ.get("ITRAIN_DATA_DIR")
    if not folder:
        pytest.skip("ITRAIN_DATA_DIR is not set: it names a folder with toolace-sample.json and apibank/")
    return Path(folder)
