"""The store on a folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from itrain_pipeline.errors import ConfigError
from itrain_pipeline.store import local_path, open_store, purge
from itrain_testing.store_suite import STORE_SUITE, Bench, Case, case_name


@pytest.mark.parametrize("scheme", ["file://", ""])
@pytest.mark.parametrize("case", STORE_SUITE, ids=case_name)
def test_a_folder_is_a_store(case: Case, scheme: str, tmp_path: Path) -> None:
    root = f"{scheme}{tmp_path}/storage/"
    (tmp_path / "local").mkdir()
    case(Bench(store=open_store(root), root=root, folder=tmp_path / "local"))


def test_a_percent_encoded_root_names_the_decoded_folder_and_lists_what_it_can_read(tmp_path: Path) -> None:
    root = (tmp_path / "my runs").as_uri() + "/"
    assert "%20" in root
    store = open_store(root)
    ref = store.put_bytes(b"1", root + "a/b.json")
    assert (tmp_path / "my runs" / "a" / "b.json").read_bytes() == b"1"
    assert store.list(root) == [ref.uri]


WRITER = """
import sys
from pathlib import Path
from itrain_pipeline.store import open_store
open_store(sys.argv[1]).put_file(Path(sys.argv[2]), sys.argv[1] + "model.safetensors")
"""


def test_a_writer_killed_inside_a_file_leaves_no_object(tmp_path: Path) -> None:
    root = f"file://{tmp_path}/storage/"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, root, str(pipe)])
    with pipe.open("wb") as half:
        half.write(b"x" * (4 << 20))  # more than the pipe and one chunk hold: the writer is inside the file
        half.flush()
        writer.send_signal(signal.SIGKILL)
        assert writer.wait() == -signal.SIGKILL
    left = [path for path in (tmp_path / "storage").rglob("*") if path.is_file()]
    assert left, "the writer had not started: the test shows nothing"
    assert open_store(root).list(root) == []
    assert open_store(root).get_bytes(root + "model.safetensors") is None


def test_an_existing_object_survives_a_put_that_fails(tmp_path: Path) -> None:
    store, uri = open_store(f"{tmp_path}/storage"), f"{tmp_path}/storage/k"
    store.put_bytes(b"old", uri)
    with pytest.raises(FileNotFoundError):
        store.put_file(tmp_path / "missing", uri)
    assert store.get_bytes(uri) == b"old"


def test_a_file_put_onto_itself_stays(tmp_path: Path) -> None:
    store, path = open_store(str(tmp_path)), tmp_path / "k"
    path.write_bytes(b"1234")
    assert store.put_file(path, str(path)).size_bytes == 4
    assert path.read_bytes() == b"1234"


def test_a_storage_folder_below_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write .*file/x"):
        open_store(f"{tmp_path}/file").put_bytes(b"1", f"{tmp_path}/file/x")


@pytest.mark.parametrize("uri", ["gs://bucket/x", "relative/folder", "http://host/x", "", "s3:bucket"])
def test_an_unknown_scheme_is_refused_and_the_known_ones_are_named(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"allowed are s3://.*file://"):
        open_store(uri, {})


@pytest.mark.parametrize("uri", ["file://host/folder", "file://relative", "file:///a/../b", "/a/%2e/../b"])
def test_a_file_uri_with_a_host_or_a_climbing_path_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError):
        local_path(uri)


def test_percent_encoded_dots_do_not_climb() -> None:
    with pytest.raises(ConfigError, match=r"'\.\.'"):
        local_path("file:///storage/%2e%2e/secret")


def test_purge_removes_the_folder_with_what_killed_writers_left(tmp_path: Path) -> None:
    root = f"file://{tmp_path}/storage/quick-12345678/"
    store = open_store(root)
    store.put_bytes(b"1", root + "i0/prepare/a1/result.json")
    (tmp_path / "storage/quick-12345678/.model.abc.tmp").write_text("half")
    store_of_other = open_store(f"{tmp_path}/storage")
    store_of_other.put_bytes(b"1", f"{tmp_path}/storage/quick-87654321/report.html")
    assert purge(root) == 1
    assert [path.name for path in (tmp_path / "storage").iterdir()] == ["quick-87654321"]
