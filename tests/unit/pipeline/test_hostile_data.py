"""Data whose author means harm: bombs, endless nesting, names and links that lead elsewhere."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from itrain_contract.layout import RESULT_FILE
from itrain_contract.stageio import StageResult
from itrain_contract.stages import StageKind
from itrain_pipeline.data.dialogue import ROW_BYTES, RowError
from itrain_pipeline.data.formats import read_dialogue
from itrain_pipeline.data.hub import fetch_snapshot, parse_address
from itrain_pipeline.data.sources import Limits, read_file, read_rows
from itrain_pipeline.errors import ConfigError, DataError, without_userinfo
from itrain_pipeline.learn.checkpoints import mark_checkpoint, put_checkpoint, restore_checkpoint
from itrain_pipeline.store import open_store
from itrain_pipeline.store.local import local_path
from itrain_pipeline.store.s3 import S3Store, split_uri
from itrain_pipeline.upstream import parse_result
from itrain_testing.stageports import FolderWork

ROW = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


def read(uri: str | Path, folder: Path, store: Any = None) -> list[object]:
    found = store or open_store(f"file://{folder}/storage")
    return list(read_rows(str(uri), "messages", store=found, scratch=folder / "scratch"))


def zipped(data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../escaped.jsonl", data)
    return out.getvalue()


def tarred(data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        info = tarfile.TarInfo("/tmp/escaped.jsonl")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize("pack", [gzip.compress, zipped, tarred])
def test_nothing_unpacks_an_archive(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    packed = pack(json.dumps(ROW).encode() + b"\n" * 1_000_000)
    for name in ("rows.jsonl.gz", "rows.zip", "rows.tar.gz", "rows.jsonl"):
        path = tmp_path / name
        path.write_bytes(packed)
        with pytest.raises(DataError, match="line 1 is no JSON"):
            read(path, tmp_path)
        path.unlink()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/rows.zip").write_bytes(packed)
    with pytest.raises(DataError, match=r"no folder with \.json, \.jsonl, \.parquet"):
        read(tmp_path / "data", tmp_path)


def test_a_parquet_file_that_unpacks_without_end_is_refused_on_the_way(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / "bomb.parquet"
    text = pa.array(["x" * 100_000]).dictionary_encode()
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), text.dictionary)
    parquet.write_table(pa.table({"text": column}), path, compression="zstd")
    assert path.stat().st_size < 200_000
    with pytest.raises(DataError, match=r"bomb unpacks to \d+ rows of \d+ bytes or more"):
        for _ in read_file(path, "bomb", Limits(array_bytes=200_000_000)):
            pass
    parquet.write_table(pa.table({"nothing": pa.nulls(1_000_000)}), path)
    assert path.stat().st_size < 10_000
    with pytest.raises(DataError, match="allowed are 5000 rows"):
        for _ in read_file(path, "bomb", Limits(parquet_rows=5000)):
            pass


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-20], lambda data: b"PAR1" + b"\xff" * 60 + b"PAR1", lambda _: b""]
)
def test_a_broken_parquet_file_is_named(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.table({"a": ["b"]}), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"rows\.parquet is no readable Parquet"):
        read(path, tmp_path)


def test_a_row_of_100_mb_is_refused_as_a_line_and_rejected_in_an_array(tmp_path: Path) -> None:
    row = json.dumps({"messages": [{"role": "user", "content": "x" * 100_000_000}]})
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROW) + "\n" + row)
    with pytest.raises(DataError, match="line 2 is longer than 67108864 bytes"):
        read(path, tmp_path)
    path.write_text(f"[{row}]")
    (big,) = read(path, tmp_path)
    with pytest.raises(RowError, match=f"too_large: the row has 100000047 bytes, allowed are {ROW_BYTES}"):
        read_dialogue(big, "messages")


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_a_row_nested_100_000_deep_is_no_row(opening: str, closing: str, tmp_path: Path) -> None:
    deep = opening * 100_000 + "1" + closing * 100_000
    path = tmp_path / "rows.jsonl"
    for text in (f'{{"messages": {deep}}}', f"[{deep}]", deep):
        path.write_text(text)
        with pytest.raises(DataError, match="is no JSON"):
            read(path, tmp_path)
    for data_format, field in (("xlam", "tools"), ("messages", "tools"), ("toolace", "system")):
        row = {**ROW, "query": "q", "answers": "[]", "conversations": [{"from": "user", "value": "x"}], field: deep}
        with pytest.raises(RowError):
            read_dialogue(row, data_format)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "elsewhere.jsonl"
    secret.write_text(json.dumps(ROW))
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.jsonl").symlink_to(secret)
    with pytest.raises(DataError, match=r"a\.jsonl is a link out of the folder"):
        read(folder, tmp_path)
    (folder / "a.jsonl").unlink()
    (folder / "sub").symlink_to(tmp_path)
    (folder / "b.jsonl").write_text(json.dumps(ROW))
    (folder / "c.jsonl").symlink_to("b.jsonl")
    (folder / "loop.jsonl").symlink_to("loop.jsonl")
    assert read(folder, tmp_path) == [ROW, ROW]


def test_the_links_of_a_hubs_cache_are_followed_and_no_others(tmp_path: Path) -> None:
    repository = tmp_path / "datasets--o--n"
    snapshot = repository / "snapshots/c0ffee"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs/abc").write_text(json.dumps(ROW))
    (snapshot / "rows.jsonl").symlink_to("../../blobs/abc")
    assert read(snapshot, tmp_path) == [ROW]
    (snapshot / "more.jsonl").symlink_to("../../../elsewhere.jsonl")
    (tmp_path / "elsewhere.jsonl").write_text(json.dumps(ROW))
    with pytest.raises(DataError, match="is a link out of the folder"):
        read(snapshot, tmp_path)


class Bucket:
    """A store that lists what its owner likes, and writes whatever it is told to write."""

    def __init__(self, *keys: str) -> None:
        self.keys = keys

    def list(self, prefix: str) -> list[str]:
        return list(self.keys)

    def get_file(self, uri: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"from": uri}))


@pytest.mark.parametrize("key", ["../../up.jsonl", "/etc/abs.jsonl", "a/../../up.jsonl", "a//b.jsonl", "./a.jsonl"])
def test_a_key_that_leads_elsewhere_is_refused_before_anything_is_written(key: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has an empty, '\.' or '\.\.' segment"):
        read("s3://b/data/", tmp_path, Bucket(f"s3://b/data/{key}"))
    assert not list(tmp_path.rglob("*.jsonl"))


def test_two_objects_of_one_name_in_two_folders_are_two_files(tmp_path: Path) -> None:
    """Before, the second took the place of the first."""
    keys = ("s3://b/data/x/train.jsonl", "s3://b/data/y/train.jsonl")
    assert read("s3://b/data/", tmp_path, Bucket(*keys)) == [{"from": key} for key in keys]


@pytest.mark.parametrize(
    "uri",
    [
        "file:///a/../b",
        "file:///a/%2e%2e/b",
        "file:///a/%2E%2E%2Fb",
        "file:///a/./b",
        "/a/../b",
        "/a/..",
        "file:///a%00b",
    ],
)
def test_a_path_that_climbs_or_holds_a_nul_is_no_place_in_a_storage(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        local_path(uri)
    with pytest.raises(ConfigError):
        open_store("file:///a/").put_bytes(b"", uri)


@pytest.mark.parametrize("uri", ["s3://b/a/../c", "s3://b//c", "s3://b/a/./c", "s3://../c", "s3://B/c", "s3://b?x/c"])
def test_a_key_that_readers_would_take_otherwise_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError):
        split_uri(uri)


@pytest.mark.parametrize("uri", ["s3://bucket-evil/x", "file:///storage-evil/x", "file:///etc/x", "/storage/x"])
def test_nothing_is_written_or_deleted_outside_of_the_storage(uri: str) -> None:
    for root in ("s3://bucket", "file:///storage"):
        store = open_store(root, {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"})
        with pytest.raises(ConfigError, match="lies outside of the storage"):
            store.put_bytes(b"", uri)
        with pytest.raises(ConfigError, match="lies outside of the storage"):
            store.delete(uri)


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "adapter/../../x", "adapter//x", "a\\..\\x\0", "adapter/.bashrc", "%2e%2e/x"]
)
def test_a_result_that_names_files_elsewhere_is_no_result(name: str) -> None:
    ref = {"uri": "s3://b/x", "sha256": "0" * 64, "sizeBytes": 1}
    result = StageResult(
        kind=StageKind.WARMUP, iteration=0, attempt=1, digest="d" * 64, outputs={name: ref}  # type: ignore[dict-item]
    )  # fmt: skip
    with pytest.raises(DataError, match=f"s3://b/{RESULT_FILE} is not a stage result"):
        parse_result(result.model_dump_json(by_alias=True).encode(), f"s3://b/{RESULT_FILE}")
    with pytest.raises(DataError):
        parse_result(b"[" * 100_000, "s3://b/x")


def test_a_marker_names_only_what_a_resumption_reads(tmp_path: Path) -> None:
    work = FolderWork(tmp_path / "work")
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "trainer_state.json").write_text("{}")
    files = put_checkpoint(work, folder, 3)
    mark_checkpoint(work, 3, files)
    assert restore_checkpoint(work, tmp_path / "fine") is not None
    for name in ("../../escaped", "training_args.bin", "/etc/escaped", "sitecustomize.py"):
        mark_checkpoint(work, 4, {**files, name: "0" * 64})
        assert restore_checkpoint(work, tmp_path / "restored") is None
    assert not list(tmp_path.rglob("escaped"))
    assert not (tmp_path / "restored").exists()


@pytest.mark.parametrize(
    "revision", ["../../x", "a/../b", "..", "a b", "-\0", "/abs", "refs//x", ".hidden", "a;b", "$(id)"]
)
def test_a_revision_is_no_path(revision: str) -> None:
    with pytest.raises(ConfigError, match="is no branch, tag or commit"):
        fetch_snapshot("org/name", "model", revision, ["*"])
    for uri in ("hf://../name", "hf://org/../name", "hf://org/name/../../x", "hf://org/name?token=x"):
        with pytest.raises(ConfigError):
            parse_address(uri)


def test_a_password_in_an_endpoint_is_in_no_message() -> None:
    endpoint = "https://somebody:hunter2@s3.example:9000"
    store = S3Store({"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}, rounds=1)
    with pytest.raises(ConfigError) as caught, store._explained("bucket"):
        raise store._client.exceptions.ClientError({"Error": {"Code": "InvalidToken"}}, "GetObject")
    assert "s3.example:9000" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        S3Store({"AWS_ENDPOINT_URL": endpoint.replace("https", "ftp")})
    assert "hunter2" not in str(caught.value)
    assert without_userinfo(f"see {endpoint}/a@b and s3://b/k") == "see https://…@s3.example:9000/a@b and s3://b/k"
