"""Hashes of files and folders. A file that keeps size and time of change keeps its hash: the pool has gigabytes."""

from __future__ import annotations

import hashlib
import json
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

from itrain_images.sets import BUILD

KNOWN = "hashes.json"


def sha256(path: Path) -> str:
    """Of a file that was built or downloaded here, read once, and again when size or time have changed."""
    if not path.is_relative_to(BUILD):
        return _read(path)
    stat = path.stat()
    seen = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
    known = _known(BUILD / KNOWN)
    name = str(path.relative_to(BUILD))
    found = known.get(name)
    if found is None or found[:3] != seen:
        found = [*seen, _read(path)]
        known[name] = found
        _keep(BUILD / KNOWN, known)
    return str(found[3])


def tree_sha256(folder: Path, ignored: tuple[str, ...]) -> str:
    """Of the names and contents below a folder, but for names that match `ignored`."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        if path.is_file() and not any(fnmatch(part, pattern) for part in inner.parts for pattern in ignored):
            total.update(f"{inner} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _known(file: Path) -> dict[str, list[int | str]]:
    try:
        found: dict[str, list[int | str]] = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found


def _keep(file: Path, known: dict[str, list[int | str]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temp = file.with_name(f"{file.name}.new")
    temp.write_text(json.dumps(known))
    temp.rename(file)
