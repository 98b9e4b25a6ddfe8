"""The console scripts: help at once, everything else by the command line that they load."""

from __future__ import annotations

import subprocess
import sys

import pytest

from itrain_operator import cli, command

HEAVY = ("aiohttp", "itrain_contract", "kubernetes", "pydantic", "rich", "yaml")
COUNT = f"""
import sys
from itrain_operator.command import main
try:
    main()
finally:
    loaded = sorted(name for name in sys.modules if name.partition(".")[0] in {HEAVY!r})
    print(len(sys.modules), loaded, file=sys.stderr)
"""


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-I", "-c", COUNT, *arguments], capture_output=True, text=True, check=False)


def test_help_loads_neither_models_nor_libraries() -> None:
    """Modules are counted and not seconds, which depend on the machine."""
    done = script("--help")
    assert done.returncode == 0
    count, loaded = done.stderr.split(maxsplit=1)
    assert loaded.strip() == "[]"
    assert int(count) < 400


@pytest.mark.parametrize("columns", ["50", "80", "200"])
@pytest.mark.parametrize("name", ["itrain", "kubectl itrain"])
def test_the_overview_is_what_the_command_line_says_of_itself(
    columns: str, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit) as quick:
        command.show_overview(name)
    shown = capsys.readouterr().out
    with pytest.raises(SystemExit) as whole:
        cli.main(["--help"], prog_name=name)
    assert shown == capsys.readouterr().out
    assert (quick.value.code, whole.value.code) == (0, 0)


def test_everything_else_is_the_command_line() -> None:
    done = script("version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "itrain")
    wrong = script("nonsense")
    assert wrong.returncode == 2
    assert "No such command" in wrong.stderr
