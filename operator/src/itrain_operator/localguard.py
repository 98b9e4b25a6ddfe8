"""Keeps children from outliving `itrain`, even after `kill -9`. Run by path; the standard library only.

`exec PARENT COMMAND…` becomes COMMAND, which the kernel kills when its parent dies (PR_SET_PDEATHSIG survives exec).
`watch` reads `+GROUP` and `-GROUP` lines; at the end of its input, which comes when `itrain` is gone however it
ended, it kills the process groups that remain: grandchildren, and children on systems without prctl.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def become(parent: int, command: list[str]) -> None:
    """Replace this process by `command`, tied to the life of `parent`; does not return."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the tie held
        os._exit(128 + signal.SIGKILL)
    os.execvp(command[0], command)  # noqa: S606 -- the command is itrain's own argument list


def watch() -> None:
    """Kill every registered group once standard input ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        group = int(line[1:])
        if line.startswith("+"):
            groups.add(group)
        else:
            groups.discard(group)
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            continue


if __name__ == "__main__":
    if sys.argv[1] == "watch":
        watch()
    else:
        become(int(sys.argv[2]), sys.argv[3:])
