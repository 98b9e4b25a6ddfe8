"""Secrets as Kubernetes mounts them."""

from __future__ import annotations

from pathlib import Path


def mount_secret(root: Path, name: str, **keys: str) -> None:
    """A folder for the Secret, its keys links into one that is swapped as a whole."""
    data = root / name / "..2026_01_01"
    data.mkdir(parents=True)
    (root / name / "..data").symlink_to(data.name)
    for key, value in keys.items():
        (data / key).write_text(value)
        (root / name / key).symlink_to(f"..data/{key}")
