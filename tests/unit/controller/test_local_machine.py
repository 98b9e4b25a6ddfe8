"""How stages share this machine: never by load, so that results do not depend on the moment."""

from __future__ import annotations

from pathlib import Path

import pytest

from itrain_operator.localmachine import Machine, quantity_bytes, share, this_machine

GIB = 1024**3


def machine(cores: int = 8, memory_gib: int = 64, gpus: int = 0) -> Machine:
    return Machine(cores=cores, memory_bytes=memory_gib * GIB, gpus=tuple(str(i) for i in range(gpus)))


def test_threads_are_cores_divided_by_the_processes_of_the_spec() -> None:
    assert (share(machine(8), shards=4, parallelism=2, gpus=0).threads) == 4
    assert (share(machine(8), shards=1, parallelism=8, gpus=0).threads) == 8
    assert (share(machine(2), shards=8, parallelism=8, gpus=0).threads) == 1


def test_slots_are_bounded_by_parallelism_cores_and_memory_but_never_below_one() -> None:
    assert share(machine(8), shards=16, parallelism=3, gpus=0).slots == 3
    assert share(machine(2), shards=16, parallelism=16, gpus=0).slots == 2
    assert share(machine(8, memory_gib=7), shards=8, parallelism=8, gpus=0).slots == 3  # 7 GiB // 2 GiB
    assert share(machine(8), shards=8, parallelism=8, gpus=0, memory_bytes=100 * GIB).slots == 1


def test_little_memory_changes_how_many_run_at_once_but_not_their_threads() -> None:
    wide = share(machine(8, memory_gib=64), shards=4, parallelism=4, gpus=0)
    tight = share(machine(8, memory_gib=2), shards=4, parallelism=4, gpus=0)
    assert (wide.slots, tight.slots) == (4, 1)
    assert wide.threads == tight.threads == 2


def test_gpus_bound_the_slots_and_a_machine_with_too_few_runs_without() -> None:
    assert share(machine(32, gpus=4), shards=8, parallelism=8, gpus=2).slots == 2
    without = share(machine(4, gpus=1), shards=2, parallelism=2, gpus=8)
    assert (without.gpus, without.slots) == (0, 2)


def test_a_cgroup_narrows_cores_and_memory(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text("1000000\n")
    found = this_machine({"CUDA_VISIBLE_DEVICES": "2,GPU-abc"}, cgroup=tmp_path)
    assert (found.cores, found.memory_bytes, found.gpus) == (1, 1000000, ("2", "GPU-abc"))


def test_an_unlimited_cgroup_and_hidden_gpus(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    found = this_machine({"CUDA_VISIBLE_DEVICES": "-1"}, cgroup=tmp_path)
    assert found.cores >= 1
    assert found.memory_bytes > GIB // 2
    assert found.gpus == ()


@pytest.mark.parametrize(
    ("text", "expected"), [("16Gi", 16 * GIB), ("500M", 500_000_000), (1024, 1024), ("1.5Ki", 1536), ("2k", 2000)]
)
def test_kubernetes_memory_quantities(text: str | int, expected: int) -> None:
    assert quantity_bytes(text) == expected


@pytest.mark.parametrize("text", ["16GB", "many", "", "5Gim"])
def test_a_quantity_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        quantity_bytes(text)
