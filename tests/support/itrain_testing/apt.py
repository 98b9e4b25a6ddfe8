"""Programs that tests need and Debian has: installed where apt and root allow it."""

from __future__ import annotations

import os
import shutil
import subprocess

from itrain_testing.gotools import ToolMissingError, exclusively


def install_programs(**packages: str) -> None:
    """Have each program (the keyword) in PATH, by the Debian package named. Raises ToolMissingError with a reason."""
    absent = _absent(packages)
    if not absent:
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise ToolMissingError(f"no {' and no '.join(absent)} in PATH, and only root on Debian can install them")
    with exclusively("apt"):
        if not (absent := _absent(packages)):
            return
        _apt("update", "--quiet")
        wanted = sorted({packages[program] for program in absent})
        done = _apt("install", "--quiet", "--yes", "--no-install-recommends", *wanted)
        if absent := _absent(packages):
            raise ToolMissingError(f"Debian's {' and '.join(absent)} cannot be installed: {done.stderr.strip()[-300:]}")


def _absent(packages: dict[str, str]) -> list[str]:
    return [program for program in packages if shutil.which(program) is None]


def _apt(*arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(["apt-get", *arguments], env=environ, capture_output=True, text=True, check=False)
