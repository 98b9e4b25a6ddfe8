"""What every store must do, as cases that a test module runs on its own store.

A case takes a `Bench`: a store whose storage root is `root` (it ends with `/`), and a folder for local files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from itrain_pipeline.errors import ConfigError, DataError
from itrain_pipeline.ports import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    store: Store
    root: str
    folder: Path

    def file(self, data: bytes, name: str = "source") -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path


def bytes_come_back_as_they_were_put(bench: Bench) -> None:
    data = bytes(range(256)) * 3
    ref = bench.store.put_bytes(data, bench.root + "a/b.bin")
    assert bench.store.get_bytes(ref.uri) == data
    assert (ref.uri, ref.sha256, ref.size_bytes) == (bench.root + "a/b.bin", hashlib.sha256(data).hexdigest(), 768)


def a_file_comes_back_as_it_was_put(bench: Bench) -> None:
    data = b"x" * 100_003
    ref = bench.store.put_file(bench.file(data), bench.root + "folder/model.safetensors")
    assert (ref.sha256, ref.size_bytes) == (hashlib.sha256(data).hexdigest(), 100_003)
    target = bench.folder / "made" / "on-the-way" / "copy"
    bench.store.get_file(ref.uri, target)
    assert target.read_bytes() == data


def an_empty_file_is_an_object(bench: Bench) -> None:
    ref = bench.store.put_file(bench.file(b""), bench.root + "empty.jsonl")
    assert ref.size_bytes == 0
    assert bench.store.get_bytes(ref.uri) == b""
    bench.store.get_file(ref.uri, bench.folder / "empty")
    assert (bench.folder / "empty").read_bytes() == b""


def a_second_put_replaces_the_first(bench: Bench) -> None:
    bench.store.put_bytes(b"long first text", bench.root + "k")
    bench.store.put_bytes(b"second", bench.root + "k")
    assert bench.store.get_bytes(bench.root + "k") == b"second"


def an_absent_object_is_none_or_a_data_error(bench: Bench) -> None:
    bench.store.put_bytes(b"1", bench.root + "folder/present")
    for name in ("absent", "folder/absent", "folder"):
        assert bench.store.get_bytes(bench.root + name) is None
    with pytest.raises(DataError, match="absent does not exist"):
        bench.store.get_file(bench.root + "absent", bench.folder / "copy")
    assert not (bench.folder / "copy").exists()


def a_listing_is_sorted_recursive_and_complete(bench: Bench) -> None:
    names = ["i1/rollout/a1/shard-10/pairs.jsonl", "i1/rollout/a1/shard-2/pairs.jsonl", "i1/x", "i10/x", "i1.json"]
    for name in names:
        bench.store.put_bytes(b"1", bench.root + name)
    assert bench.store.list(bench.root) == sorted(bench.root + name for name in names)
    assert bench.store.list(bench.root + "i1/") == sorted(bench.root + n for n in names if n.startswith("i1/"))
    assert bench.store.list(bench.root + "nothing/") == []


def a_prefix_without_its_slash_is_refused(bench: Bench) -> None:
    with pytest.raises(ValueError, match="ends with '/'"):
        bench.store.list(bench.root + "i1")


def a_deleted_object_is_gone_and_may_be_deleted_again(bench: Bench) -> None:
    bench.store.put_bytes(b"1", bench.root + "a/one")
    bench.store.put_bytes(b"2", bench.root + "a/two")
    bench.store.delete(bench.root + "a/one")
    bench.store.delete(bench.root + "a/one")
    assert bench.store.list(bench.root) == [bench.root + "a/two"]


def a_write_outside_of_the_root_is_refused(bench: Bench) -> None:
    sibling = bench.root.rstrip("/") + "-other/file"
    for uri in (sibling, bench.root, "/elsewhere/file", "s3://another-bucket/file", "file:///elsewhere/file"):
        with pytest.raises(ConfigError, match="outside of the storage"):
            bench.store.put_bytes(b"1", uri)
        with pytest.raises(ConfigError, match="outside of the storage"):
            bench.store.put_file(bench.file(b"1"), uri)
        with pytest.raises(ConfigError, match="outside of the storage"):
            bench.store.delete(uri)


def a_path_that_climbs_is_refused(bench: Bench) -> None:
    for name in ("../escape", "a/../../escape", "./a", "a/.."):
        with pytest.raises(ConfigError, match=r"'\.\.'"):
            bench.store.put_bytes(b"1", bench.root + name)
        with pytest.raises(ConfigError, match=r"'\.\.'"):
            bench.store.get_bytes(bench.root + name)


def names_with_blanks_and_signs_survive(bench: Bench) -> None:
    uri = bench.root + "a b/c=d,e+f@g.json"
    bench.store.put_bytes(b"1", uri)
    (listed,) = bench.store.list(bench.root)
    assert bench.store.get_bytes(listed) == bench.store.get_bytes(uri) == b"1"


Case = Callable[[Bench], None]
STORE_SUITE: tuple[Case, ...] = (
    bytes_come_back_as_they_were_put,
    a_file_comes_back_as_it_was_put,
    an_empty_file_is_an_object,
    a_second_put_replaces_the_first,
    an_absent_object_is_none_or_a_data_error,
    a_listing_is_sorted_recursive_and_complete,
    a_prefix_without_its_slash_is_refused,
    a_deleted_object_is_gone_and_may_be_deleted_again,
    a_write_outside_of_the_root_is_refused,
    a_path_that_climbs_is_refused,
    names_with_blanks_and_signs_survive,
)


def case_name(case: Case) -> str:
    return case.__name__
