"""Pages say what is there: links lead somewhere, make targets exist. (Commands of `itrain` are run in tests/e2e.)"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from itrain_contract.names import ConditionType, ExitCode, Reason
from itrain_operator.metrics import Metrics
from itrain_testing.docs import PAGES, ROOT, Shown, all_commands, shown_blocks, table

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


@pytest.mark.parametrize("name", ["reference.md", "operator-settings.md"])
def test_every_field_of_the_resource_and_of_the_settings_has_a_meaning(name: str) -> None:
    rows = table(ROOT / "docs" / name, "field")
    assert len(rows) > 80
    assert [row[0] for row in rows if not row[-1]] == []


TROUBLE = ROOT / "docs" / "troubleshooting.md"


def test_every_condition_reason_is_explained_and_no_other() -> None:
    explained = [row[0].strip("`") for row in table(TROUBLE, "reason")]
    assert sorted(explained) == sorted(Reason)
    assert all(meaning and remedy for _, _, meaning, remedy in table(TROUBLE, "reason"))


def test_every_condition_reason_is_one_that_the_code_gives() -> None:
    """One that is only a key of a table, an entry of a list or compared with is given by nobody."""
    sources = [*(ROOT / "operator" / "src").rglob("*.py"), ROOT / "crds" / "src" / "itrain_contract" / "status.py"]
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    text = re.sub(r"^ *Reason\.\w+,$", "", text, flags=re.MULTILINE)
    given = re.findall(r"(?<!== )\bReason\.([A-Z_]+)\b(?!:)", text)
    assert set(given) == set(Reason.__members__)


def test_every_condition_type_and_exit_code_is_explained_and_no_other() -> None:
    types = [name for row in table(TROUBLE, "condition") for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(types) == sorted(ConditionType)
    assert [int(row[0]) for row in table(TROUBLE, "code")] == sorted(ExitCode)


OPERATING = ROOT / "docs" / "operating.md"


def test_every_metric_is_explained_and_no_other() -> None:
    metrics = Metrics(phases=dict, queue_depth=float, resync_age_s=float, leading=float)
    kinds = re.findall(r"^# TYPE (\w+) (\w+)$", metrics.text().decode(), flags=re.MULTILINE)
    served = {name for name, _ in kinds if not name.endswith("_created")}
    assert {row[0].strip("`") for row in table(OPERATING, "metric")} == served


def test_every_alert_is_explained_and_no_other() -> None:
    rules = (ROOT / "charts" / "itrain" / "templates" / "alerts.yaml").read_text(encoding="utf-8")
    assert [row[0].strip("`") for row in table(OPERATING, "alert")] == re.findall(r"- alert: (\w+)", rules)


def test_output_is_compared_line_by_line() -> None:
    shown = Shown(commands=("itrain x",), output="a …\n…\nend\n")
    assert shown.printed_by("a 1\nend\n")
    assert shown.printed_by("a 2.5  \nb\nc\nend\n")
    assert not shown.printed_by("a 1\n")
    assert not shown.printed_by("a 1\nend\nmore\n")
    assert not shown.printed_by("b 1\nend\n")


def test_every_page_shows_what_its_itrain_commands_print() -> None:
    blocks = [(page.name, b) for page in PAGES for b in shown_blocks(page)]
    ours = [(name, b) for name, b in blocks if any(c.startswith("itrain ") for c in b.commands)]
    assert {name for name, _ in ours} >= {"recipes.md", "running.md", "evaluation.md", "plan.md", "cluster.md"}
    assert [(name, b.commands) for name, b in ours if b.output is None] == []


def headings(page: Path) -> set[str]:
    """Anchors of a page as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_into_pages_lead_to_a_heading(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*\.md)?#([^)\s]+)\)", page.read_text(encoding="utf-8")):
        there = page.parent / target if target else page
        assert anchor in headings(there), f"{page.name} links to {target}#{anchor}"
