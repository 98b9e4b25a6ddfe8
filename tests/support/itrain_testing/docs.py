"""The commands that the documentation shows."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))


def shown_commands(page: Path) -> list[str]:
    """Every line of every ```bash block, in order; comments and blank lines left out."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def all_commands() -> list[tuple[str, str]]:
    """(page, command) pairs of all pages."""
    return [(page.name, command) for page in PAGES for command in shown_commands(page)]
