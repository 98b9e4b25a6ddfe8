"""Hashed requirement files as `uv pip compile --generate-hashes` writes them, and the layers that they become."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

PIN = re.compile(r"^(?P<name>[a-z0-9][a-z0-9-]*)==(?P<version>[^ ;\\]+)(?: ;[^\\]*)? \\$")
HASH = re.compile(r"^ {4}--hash=sha256:([0-9a-f]{64})(?: \\)?$")


class LockError(ValueError):
    """A requirement file is not what the resolver writes; the message names file and line."""


class Layer(StrEnum):
    """From the largest and rarest change to the smallest and most frequent; a layer of the image each."""

    CUDA = "cuda"
    TORCH = "torch"
    REST = "rest"
    CODE = "code"


CUDA_PREFIXES = ("nvidia-", "cuda-", "flashinfer-")
TORCH_NAMES = frozenset({"torch", "torchaudio", "torchcodec", "torchvision", "triton"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    name: str
    """Normalized, as in the lock."""
    version: str
    hashes: frozenset[str]
    """sha256 of every file that may be installed."""

    @property
    def layer(self) -> Layer:
        if self.name.startswith(CUDA_PREFIXES):
            return Layer.CUDA
        return Layer.TORCH if self.name in TORCH_NAMES else Layer.REST


def read_lock(path: Path) -> list[Pin]:
    """The pins of a lock, in its order. Raises LockError for a line without a version or a pin without a hash."""
    pins: list[tuple[str, str, set[str]]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if pin := PIN.match(line):
            pins.append((pin["name"], pin["version"], set()))
        elif found := HASH.match(line):
            if not pins:
                raise LockError(f"{path.name}:{number}: a hash before the first pin")
            pins[-1][2].add(found[1])
        elif line.strip() and not line.lstrip().startswith("#"):
            raise LockError(f"{path.name}:{number}: got {line!r}, allowed are name==version with hashes")
    unhashed = [name for name, _, hashes in pins if not hashes]
    if unhashed:
        raise LockError(f"{path.name}: no hash for {', '.join(unhashed)}")
    return [Pin(name=name, version=version, hashes=frozenset(hashes)) for name, version, hashes in pins]


def read_locks(paths: Iterable[Path]) -> list[Pin]:
    """The pins of several locks for one environment; LockError when two pin a package differently."""
    found: dict[str, Pin] = {}
    for path in paths:
        for pin in read_lock(path):
            if found.setdefault(pin.name, pin).version != pin.version:
                raise LockError(f"{path.name}: {pin.name} {pin.version}, elsewhere {found[pin.name].version}")
    return sorted(found.values(), key=lambda pin: pin.name)
