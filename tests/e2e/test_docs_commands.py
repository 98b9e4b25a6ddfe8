"""Every `itrain` command that the documentation shows, run in its order on the examples and on the files that the page
shows; what a page shows as output is what they print."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from itrain_testing.docs import PAGES, ROOT, shown_blocks, shown_commands, shown_files

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]
CLUSTER_PAGE = "cluster.md"  # run against a real API server in tests/integration
SHOWING = [
    page for page in PAGES if page.name != CLUSTER_PAGE and any(c.startswith("itrain ") for c in shown_commands(page))
]


@pytest.mark.parametrize("page", SHOWING, ids=lambda page: page.name)
def test_the_commands_of_a_page_run_as_shown(page: Path, tmp_path: Path) -> None:
    (tmp_path / "crds").symlink_to(ROOT / "crds")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for name, text in shown_files(page).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    for block in shown_blocks(page):
        printed = ""
        for command in block.commands:
            if not command.startswith("itrain "):
                continue
            done = subprocess.run(
                shlex.split(command),
                cwd=tmp_path,
                env={**os.environ, "PATH": path, "COLUMNS": "100"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,  # what a person sees
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{page.name}: {command}\n{done.stdout[-4000:]}"
            printed += done.stdout
        assert block.output is None or block.printed_by(printed), f"{page.name}: {block.commands} printed\n{printed}"


def test_at_least_one_page_shows_a_whole_run() -> None:
    assert any("itrain run" in command for page in SHOWING for command in shown_commands(page))
