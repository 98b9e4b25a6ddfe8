"""Child processes: started in a group of their own, stopped politely then surely, never orphaned."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from itrain_operator import localguard

GUARD = [sys.executable, "-I", "-S", str(Path(localguard.__file__).resolve())]


class Guard:
    """The process that outlives us by a moment and kills the groups we leave behind."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [*GUARD, "watch"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _tell(self, line: str) -> None:
        pipe = self._process.stdin
        if pipe is None or pipe.closed or self._process.poll() is not None:
            return  # the kernel's own tie (PR_SET_PDEATHSIG) still holds
        pipe.write(line.encode())
        pipe.flush()

    def add(self, group: int) -> None:
        self._tell(f"+{group}\n")

    def remove(self, group: int) -> None:
        self._tell(f"-{group}\n")

    def close(self) -> None:
        """End the guard; whatever is still registered is killed."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()


@dataclass(slots=True, kw_only=True)
class Child:
    """One running stage process. Times are seconds of the caller's clock."""

    process: subprocess.Popen[bytes]
    started: float
    guard: Guard
    gpus: tuple[str, ...] = ()
    kill_at: float | None = None
    """Set once it was asked to stop: when it is killed."""
    _killed: bool = field(default=False)

    def exit_code(self) -> int | None:
        """None while it runs; a signal's number + 128 as a shell reports it."""
        if self.process.returncode is None:
            if os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return None
            self._kill_group()  # before the leader is reaped: its number cannot have passed to another process
            self.guard.remove(self.process.pid)
        code = self.process.wait()
        return 128 - code if code < 0 else code

    @property
    def asked_to_stop(self) -> bool:
        return self.kill_at is not None

    def stop(self, now: float, grace_s: float) -> None:
        """SIGTERM now, SIGKILL after the grace period (`enforce`); a second call may shorten the wait."""
        if self.kill_at is None and self.process.returncode is None:
            os.kill(self.process.pid, signal.SIGTERM)  # not reaped yet, so the number is still its own
        self.kill_at = min(now + grace_s, self.kill_at if self.kill_at is not None else now + grace_s)
        self.enforce(now)

    def enforce(self, now: float) -> None:
        """Kill the group once the grace period is over."""
        if self.kill_at is not None and now >= self.kill_at and not self._killed:
            self._killed = True
            self._kill_group()

    def _kill_group(self) -> None:
        """The leader and whatever it left behind: ranks, data loaders."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return


def start_child(
    command: list[str], *, env: dict[str, str], log: Path, now: float, guard: Guard, gpus: tuple[str, ...] = ()
) -> Child:
    """Start `command` with its output appended to `log`; OSError when it cannot be started."""
    with _open_log(log) as out:
        process = subprocess.Popen(
            [*GUARD, "exec", str(os.getpid()), *command],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    guard.add(process.pid)
    return Child(process=process, started=now, guard=guard, gpus=gpus)


def _open_log(log: Path) -> IO[bytes]:
    log.parent.mkdir(parents=True, exist_ok=True)
    return log.open("ab")
