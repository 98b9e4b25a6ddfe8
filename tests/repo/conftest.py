"""Helm and the schemas for the chart's tests: a cold build happens before any test's timeout runs."""

from __future__ import annotations

import pytest

from itrain_testing import charttools
from itrain_testing.cluster import sessions


def pytest_collection_finish(session: pytest.Session) -> None:
    sessions.build_before_the_first_test(session.items, "chart_tools", charttools.missing)


@pytest.fixture(scope="session")
def chart_tools() -> None:
    """Skips (fails in continuous integration) with the reason where Helm cannot be had."""
    if reason := charttools.missing():
        sessions.unavailable(reason)
