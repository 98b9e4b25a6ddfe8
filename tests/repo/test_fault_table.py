"""The table of faults in docs/testing.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = {"U": "tests/unit/controller", "I": "tests/integration", "E": "tests/e2e"}
NAMED = re.compile(r"(?:\b([UIE]) )?`([^`]+)`")


def rows() -> list[str]:
    text = (ROOT / "docs/testing.md").read_text()
    table = text.partition("\n## Faults\n")[2].partition("\n## ")[0]
    return [line for line in table.splitlines() if line.startswith("| ") and "---" not in line][1:]


def find(folder: str, file: str, name: str) -> bool:
    """`name` may leave out its beginning or its end (`…`)."""
    source = (ROOT / FOLDERS[folder] / file).read_text()
    pattern = re.escape(name).replace("…", r"\w+")
    return not name or re.search(rf"^(async )?def {pattern}\(", source, re.MULTILINE) is not None


def test_every_test_that_the_table_names_exists() -> None:
    missing = []
    for row in rows():
        folder = file = ""
        for where, named in NAMED.findall(row):
            folder = where or folder
            before, _, name = named.rpartition("::") if "::" in named else (named, "", "")
            if named.startswith("…_"):
                before, name = "", named
            file = before if before.endswith(".py") else file
            if not find(folder, file, name):
                missing.append(f"{folder} {file}::{name}")
    assert missing == []


def test_every_row_names_a_test() -> None:
    assert len(rows()) >= 25
    assert [row for row in rows() if ".py" not in row] == []
