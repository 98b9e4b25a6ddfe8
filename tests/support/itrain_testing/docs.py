"""The commands that the documentation shows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))


def shown_commands(page: Path) -> list[str]:
    """Every line of every ```bash block, in order; comments and blank lines left out."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A ```bash block: its commands, and what they print where a ```text block follows."""

    commands: tuple[str, ...]
    output: str | None

    def printed_by(self, text: str) -> bool:
        """Whether the commands' whole output is what is shown: `…` is any text in a line, alone any lines."""
        lines = [
            r"(?:.*\n)*?" if line.strip() == "…" else ".*?".join(map(re.escape, line.rstrip().split("…"))) + r" *\n"
            for line in (self.output or "").splitlines()
        ]
        return re.fullmatch("".join(lines), text) is not None


def shown_blocks(page: Path) -> list[Shown]:
    text = page.read_text(encoding="utf-8")
    pairs = re.findall(r"^```bash\n(.*?)^```\n(?:\n```text\n(.*?)^```$)?", text, flags=re.MULTILINE | re.DOTALL)
    return [
        Shown(
            commands=tuple(line.strip() for line in block.splitlines() if line.strip() and not line.startswith("#")),
            output=output or None,
        )
        for block, output in pairs
    ]


def shown_files(page: Path) -> dict[str, str]:
    """Files that a page shows in full: blocks opened as ```yaml file=first.yaml."""
    text = page.read_text(encoding="utf-8")
    return dict(re.findall(r"^```\w+ file=(\S+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL))


def all_commands() -> list[tuple[str, str]]:
    """(page, command) pairs of all pages."""
    return [(page.name, command) for page in PAGES for command in shown_commands(page)]


def table(page: Path, first: str) -> list[list[str]]:
    """The cells of every row of every table whose first column is headed `first`."""
    rows: list[list[str]] = []
    inside = False
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not cells:
            inside = False
        elif inside and not set("".join(cells)) <= set("-: "):
            rows.append(cells)
        elif cells[0] == first:
            inside = True
    return rows
