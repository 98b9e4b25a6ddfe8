"""Programs from Debian packages, unpacked into the cache: nothing is installed, no service starts, no root needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from itrain_testing.gotools import ToolMissingError, exclusively, tools_dir


def unpacked(package: str) -> Path:
    """The folder that holds the package's files (`usr/bin/…`); apt checks the signatures. Raises ToolMissingError."""
    folder = tools_dir() / "debian" / package
    if folder.is_dir():
        return folder
    for program in ("apt-get", "dpkg"):
        if shutil.which(program) is None:
            raise ToolMissingError(f"{package} is not installed and there is no {program} to fetch Debian's package")
    with exclusively(f"debian-{package}"):
        if not folder.is_dir():
            _fetch(package, folder)
    return folder


def _fetch(package: str, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temp:
        done = _download(package, temp)
        if done.returncode and os.geteuid() == 0:  # a machine whose package lists were removed, as in a container
            subprocess.run(["apt-get", "update", "--quiet"], capture_output=True, check=False)
            done = _download(package, temp)
        found = list(Path(temp).glob("*.deb"))
        if done.returncode or len(found) != 1:
            raise ToolMissingError(f"Debian's package {package} cannot be fetched: {done.stderr.strip()[-300:]}")
        content = Path(temp) / "content"
        subprocess.run(["dpkg", "--extract", str(found[0]), str(content)], check=True, capture_output=True)
        content.rename(folder)


def _download(package: str, folder: str) -> subprocess.CompletedProcess[str]:
    command = ["apt-get", "download", "--quiet", package]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
