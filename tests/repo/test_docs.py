"""Pages say what is there: links lead somewhere, make targets exist. (Commands of `itrain` are run in tests/e2e.)"""

from __future__ import annotations

import re
import subprocess

import pytest

from itrain_testing.docs import PAGES, ROOT, all_commands

COMMANDS = all_commands()
TARGETS = [(page, command) for page, command in COMMANDS if command.startswith("make ")]


def test_every_shown_command_is_one_that_a_test_runs() -> None:
    assert [c for _, c in COMMANDS if not c.startswith(("make ", "itrain "))] == []


@pytest.mark.parametrize(("page", "command"), TARGETS, ids=[" ".join(pair) for pair in TARGETS])
def test_a_shown_make_target_exists_and_is_explained(page: str, command: str) -> None:
    target = command.split()[1]
    assert re.search(rf"^{target}:.*## ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), page
    subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page) -> None:  # type: ignore[no-untyped-def]
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
