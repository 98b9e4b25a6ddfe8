"""What this machine can carry: cores, memory, GPUs, as the process's own limits allow (affinity, cgroup)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
CHILD_MEMORY_BYTES = 2 * 1024**3
"""Assumed for a stage process that requests no memory: torch and a small model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    cores: int
    memory_bytes: int
    gpus: tuple[str, ...] = ()
    """Values for CUDA_VISIBLE_DEVICES, one per GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How a stage's processes share the machine."""

    slots: int
    """Processes at a time."""
    threads: int
    """Threads of each; fixed by shards × parallelism, never by load: results must not depend on the moment."""
    gpus: int
    """GPUs of each process; 0 where the machine has too few."""


def share(
    machine: Machine, *, shards: int, parallelism: int, gpus: int, memory_bytes: int = CHILD_MEMORY_BYTES
) -> Share:
    """At most `parallelism` processes, one core, `memory_bytes` and `gpus` GPUs each; always at least one."""
    wanted = max(1, min(shards, parallelism))
    usable = gpus if len(machine.gpus) >= gpus else 0
    bounds = [wanted, machine.cores, machine.memory_bytes // max(1, memory_bytes)]
    if usable:
        bounds.append(len(machine.gpus) // usable)
    slots = max(1, min(bounds))
    return Share(slots=slots, threads=max(1, machine.cores // min(wanted, machine.cores)), gpus=usable)


def this_machine(environ: Mapping[str, str], cgroup: Path = CGROUP) -> Machine:
    """Cores by affinity and cgroup quota, memory by the smaller of RAM and the cgroup's limit, NVIDIA GPUs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup(cgroup / "cpu.max").split()
    if len(quota) == 2 and quota[0] != "max":
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _cgroup(cgroup / "memory.max")
    if limit.isdigit():
        memory = min(memory, int(limit))
    return Machine(cores=cores, memory_bytes=memory, gpus=_gpus(environ))


def _gpus(environ: Mapping[str, str]) -> tuple[str, ...]:
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(part.strip() for part in visible.split(",") if part.strip() not in ("", "-1"))
    found = [p.name.removeprefix("nvidia") for p in Path("/dev").glob("nvidia[0-9]*")]
    return tuple(sorted(found, key=int))


def _cgroup(path: Path) -> str:
    return path.read_text().strip() if path.is_file() else ""


_SUFFIXES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SUFFIXES |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def quantity_bytes(quantity: int | str) -> int:
    """A Kubernetes memory quantity (`16Gi`, `500M`, 1024) in bytes; ValueError on anything else."""
    text = str(quantity).strip()
    number = text.rstrip("kKMGTi")
    suffix = text[len(number) :]
    if suffix not in _SUFFIXES:
        raise ValueError(f"memory quantity {quantity!r}: allowed suffixes are {', '.join(filter(None, _SUFFIXES))}")
    return int(float(number) * _SUFFIXES[suffix])
