"""Child processes end politely, then surely, and never outlive their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from itrain_operator.localproc import Child, Guard, start_child
from itrain_testing.localruns import alive

PYTHON = [sys.executable, "-I", "-S", "-c"]


@pytest.fixture
def guard() -> Iterator[Guard]:
    guard = Guard()
    yield guard
    guard.close()


def launch(guard: Guard, code: str, log: Path) -> Child:
    return start_child([*PYTHON, code], env=dict(os.environ), log=log, now=0.0, guard=guard)


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that must happen; the test's own limit ends a wait in vain."""
    while not condition():
        time.sleep(0.01)


def code_of(child: Child) -> int:
    until(lambda: child.exit_code() is not None)
    found = child.exit_code()
    assert found is not None
    return found


def test_exit_code_and_output_are_kept(guard: Guard, tmp_path: Path) -> None:
    child = launch(guard, "import sys; print('out'); sys.stderr.write('err'); sys.exit(70)", tmp_path / "log")
    assert code_of(child) == 70
    assert sorted((tmp_path / "log").read_text().split()) == ["err", "out"]


def test_the_log_of_a_second_execution_follows_the_first(guard: Guard, tmp_path: Path) -> None:
    for word in ("first", "second"):
        code_of(launch(guard, f"print('{word}')", tmp_path / "log"))
    assert (tmp_path / "log").read_text().split() == ["first", "second"]


def test_a_signal_reads_as_128_plus_its_number(guard: Guard, tmp_path: Path) -> None:
    child = launch(guard, "import os; os.kill(os.getpid(), 9)", tmp_path / "log")
    assert code_of(child) == 137


def test_stop_asks_with_sigterm_first(guard: Guard, tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "print('ready', flush=True)\ntime.sleep(60)"
    )
    child = launch(guard, code, tmp_path / "log")
    until(lambda: (tmp_path / "log").read_text() == "ready\n")
    child.stop(0.0, 30.0)
    assert code_of(child) == 143


def test_a_process_that_ignores_sigterm_is_killed_after_the_grace_period(guard: Guard, tmp_path: Path) -> None:
    code = (
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    child = launch(guard, code, tmp_path / "log")
    until(lambda: (tmp_path / "log").read_text() == "ready\n")
    child.stop(100.0, 30.0)
    child.enforce(129.9)
    assert child.exit_code() is None
    child.enforce(130.0)
    assert code_of(child) == 137


def test_what_a_process_leaves_behind_in_its_group_ends_with_it(guard: Guard, tmp_path: Path) -> None:
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-I', '-S', '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid)"
    )
    child = launch(guard, code, tmp_path / "log")
    assert code_of(child) == 0
    left_behind = int((tmp_path / "log").read_text())
    until(lambda: not alive(left_behind))


def test_kill_9_of_the_parent_ends_children_and_grandchildren(tmp_path: Path) -> None:
    log = tmp_path / "log"
    inner = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-I', '-S', '-c', 'import time; time.sleep(60)'])\n"
        "print(os.getpid(), child.pid, flush=True)\ntime.sleep(60)"
    )
    outer = (
        "import os, sys, time\nfrom pathlib import Path\nfrom itrain_operator.localproc import Guard, start_child\n"
        "start_child([sys.executable, '-I', '-S', '-c', sys.argv[1]], env=dict(os.environ), "
        "log=Path(sys.argv[2]), now=0.0, guard=Guard())\ntime.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", outer, inner, str(log)])
    until(lambda: log.exists() and len(log.read_text().split()) == 2)
    child, grandchild = map(int, log.read_text().split())
    assert alive(child)
    assert alive(grandchild)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until(lambda: not alive(child) and not alive(grandchild))


def test_a_child_whose_parent_died_before_the_tie_held_does_not_start(tmp_path: Path) -> None:
    from itrain_operator.localproc import GUARD

    mark = tmp_path / "mark"
    ended = subprocess.run([*GUARD, "exec", "1", "touch", str(mark)], check=False)
    assert ended.returncode == 137
    assert not mark.exists()
