"""Programs that the tests build with Go, once, from the pinned modules in tests/support/tools.

The binaries lie outside the checkout, in ~/.cache/itrain/tools or $ITRAIN_TOOLS_DIR, under a name that carries the hash
of go.mod, go.sum and any main.go: another version is another file.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MODULES = Path(__file__).resolve().parents[1] / "tools"


class ToolMissingError(RuntimeError):
    """A program is not installed and cannot be had; the message says in one line what is missing."""


def tools_dir() -> Path:
    return Path(os.environ.get("ITRAIN_TOOLS_DIR") or Path.home() / ".cache" / "itrain" / "tools")


def go_tool(module: str, package: str, *, linked: str = "", takes: str) -> Path:
    """The binary of `package`, built in tests/support/tools/`module` when there is none.

    `linked` are linker flags beyond stripping; `takes` is what a cold build costs, for the line that announces it.
    """
    folder, name = MODULES / module, package.rpartition("/")[2]
    inputs = [folder / "go.sum", folder / "go.mod", *sorted(folder.glob("*.go"))]
    lock = b"".join(path.read_bytes() for path in inputs) + linked.encode()
    binary = tools_dir() / f"{name}-{hashlib.sha256(lock).hexdigest()[:12]}"
    if binary.is_file():
        return binary
    if shutil.which("go") is None:
        raise ToolMissingError(f"{name} is not on PATH and go is not installed to build it")
    with exclusively(name):
        if not binary.is_file():
            print(f"building {name} into {binary} ({takes}, once)", file=sys.stderr, flush=True)
            _build(folder, package, binary, linked)
    return binary


def _build(folder: Path, package: str, binary: Path, linked: str) -> None:
    temp = binary.with_suffix(".building")
    flags = ["-trimpath", "-buildvcs=false", "-mod=readonly", f"-ldflags=-s -w {linked}".rstrip()]
    command = ["nice", "go", "build", *flags, "-o", str(temp), package]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolMissingError(f"{binary.name} cannot be built: {done.stderr.strip()[-500:]}")
    temp.rename(binary)


@contextmanager
def exclusively(name: str) -> Iterator[None]:
    """One process at a time makes the tool `name`; the others wait and then find it."""
    tools = tools_dir()
    tools.mkdir(parents=True, exist_ok=True)
    with (tools / f"{name}.lock").open("w") as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX)
        yield
