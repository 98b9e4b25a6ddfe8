"""Base images from Debian's packages, for machines that reach no container registry: mmdebstrap, then one layer.

`python` is Debian 12's essential packages with Python and certificate authorities, `compiler` adds what Triton needs at
run time. Neither has a package manager's lists, this machine's sources, names or resolver.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from itrain_images.sets import BUILD

EPOCH = 1_767_225_600
"""2026-01-01: a base depends on Debian's packages alone, not on when or from what commit it was built."""
SUITE = "bookworm"
PACKAGES = {
    "python": ("ca-certificates", "python3", "usr-is-merged"),
    "compiler": ("ca-certificates", "g++", "gcc", "libc6-dev", "libnuma1", "python3", "python3-dev", "usr-is-merged"),
}
MERGED_HOOKS = "/usr/share/mmdebstrap/hooks/merged-usr"
"""/bin is a link from the start: what Debian installs to make it one later needs the whole of Perl."""
OWN_SOURCES = Path("/etc/apt/sources.list.d/debian.sources")
ENV_SOURCES = "ITRAIN_DEBIAN_SOURCES"
"""A file of apt sources or the address of a mirror, in place of this machine's own or Debian's."""
UNNEEDED = ("/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/doc/*", "/usr/share/lintian/*")
KEPT = "/usr/share/doc/*/copyright"
REMOVED = (
    "etc/apt/sources.list",
    "etc/apt/sources.list.d/*",
    "etc/hostname",
    "etc/machine-id",
    "etc/resolv.conf",
    "var/cache/ldconfig/aux-cache",
    "var/log/*",
)
"""Of this machine or of this moment."""
BYTECODE = "python3 -m compileall -q -f --invalidation-mode unchecked-hash /usr/lib/python3 /usr/lib/python3.11"
"""Builders set the files' times anew, and a root file system is read-only: bytecode must not depend on times."""


class BaseError(RuntimeError):
    """A base cannot be made here; the message says in one line why."""


def make_base(kind: str) -> Path:
    """The root file system as a tar; made once for a recipe, until `make clean`. Raises BaseError."""
    recipe = hashlib.sha256(" ".join(build_command(kind, Path(), sources="")).encode()).hexdigest()
    archive = BUILD / f"base-{kind}-{recipe[:8]}.tar"
    if archive.is_file():
        return archive
    if shutil.which("mmdebstrap") is None:
        raise BaseError("mmdebstrap is not installed: install it, or name a BASE_IMAGE that a registry has")
    archive.parent.mkdir(parents=True, exist_ok=True)
    temp = archive.with_name(f"{archive.name}.making")
    done = subprocess.run(
        build_command(kind, temp, sources=debian_sources(os.environ.get, OWN_SOURCES)),
        env={**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH), "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        temp.unlink(missing_ok=True)
        raise BaseError(f"mmdebstrap cannot make the base {kind}: {' '.join(done.stderr.split()[-60:])}")
    temp.rename(archive)
    return archive


def build_command(kind: str, archive: Path, *, sources: str) -> list[str]:
    gone = " ".join(f'"$1"/{path}' for path in REMOVED)
    options = [f"path-exclude={path}" for path in UNNEEDED] + [f"path-include={KEPT}"]
    return [
        "mmdebstrap",
        "--quiet",
        "--format=tar",
        "--variant=essential",
        f"--hook-dir={MERGED_HOOKS}",
        f"--include={','.join(PACKAGES[kind])}",
        *(f"--dpkgopt={option}" for option in options),
        f'--customize-hook=chroot "$1" {BYTECODE}',
        f"--customize-hook=rm -rf {gone}",
        SUITE,
        str(archive),
        *([sources] if sources else []),
    ]


def debian_sources(environ: Callable[[str], str | None], own: Path) -> str:
    """Where packages come from: as named, else as this machine's own if it is the same Debian, else Debian's mirror."""
    named = environ(ENV_SOURCES)
    if named:
        return named
    same = own.is_file() and re.search(rf"^Suites:.*\b{SUITE}\b", own.read_text(), flags=re.MULTILINE)
    return str(own) if same else ""
