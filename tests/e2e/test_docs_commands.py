"""Every `itrain` command that the documentation shows, run in its order on the examples."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from itrain_testing.docs import PAGES, ROOT, shown_commands

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]
CLUSTER_PAGE = "cluster.md"  # run against a real API server in tests/integration
SHOWING = [
    page for page in PAGES if page.name != CLUSTER_PAGE and any(c.startswith("itrain ") for c in shown_commands(page))
]


@pytest.mark.parametrize("page", SHOWING, ids=lambda page: page.name)
def test_the_commands_of_a_page_run_as_shown(page: Path, tmp_path: Path) -> None:
    (tmp_path / "crds").symlink_to(ROOT / "crds")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in shown_commands(page):
        if not command.startswith("itrain "):
            continue
        done = subprocess.run(
            shlex.split(command),
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{page.name}: {command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_at_least_one_page_shows_a_whole_run() -> None:
    assert any("itrain run" in command for page in SHOWING for command in shown_commands(page))
