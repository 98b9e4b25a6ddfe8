"""Requirement files as the resolver writes them, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from itrain_images.locks import LockError, read_lock, read_locks

HASHES = ("a" * 64, "b" * 64)


def lock(folder: Path, text: str, name: str = "x.txt") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def pin(name: str, version: str = "1.0", *hashes: str, marker: str = "") -> str:
    lines = [f"{name}=={version}{marker} \\", *(f"    --hash=sha256:{digest} \\" for digest in hashes or HASHES)]
    return "\n".join(lines).removesuffix(" \\") + "\n    # via something\n"


def test_a_pin_has_name_version_and_every_hash(tmp_path: Path) -> None:
    text = pin("a-b", "2.0.post1") + pin("c", "1!3", HASHES[0], marker=" ; python_version < '4'")
    first, second = read_lock(lock(tmp_path, text))
    assert (first.name, first.version, first.hashes) == ("a-b", "2.0.post1", frozenset(HASHES))
    assert (second.name, second.version, second.hashes) == ("c", "1!3", frozenset(HASHES[:1]))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a==1.0\n", "x.txt:1: got 'a==1.0'"),
        ("a==1.0 \\\n    # via b\n", "no hash for a"),
        (f"    --hash=sha256:{HASHES[0]}\n", "x.txt:1: a hash before the first pin"),
        ("a>=1.0 \\\n", "x.txt:1: got 'a>=1.0"),
        ("--index-url https://example.org/simple\n", "x.txt:1: got '--index-url"),
        (pin("a").replace("a" * 64, "a" * 63), "x.txt:2: got"),
    ],
)
def test_anything_else_is_refused_by_file_and_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(LockError, match=said):
        read_lock(lock(tmp_path, text))


def test_two_locks_of_one_environment_must_agree(tmp_path: Path) -> None:
    one, two = lock(tmp_path, pin("a") + pin("b"), "one.txt"), lock(tmp_path, pin("b") + pin("c"), "two.txt")
    assert [p.name for p in read_locks([one, two])] == ["a", "b", "c"]
    with pytest.raises(LockError, match=r"three\.txt: b 2\.0, elsewhere 1\.0"):
        read_locks([one, lock(tmp_path, pin("b", "2.0"), "three.txt")])
