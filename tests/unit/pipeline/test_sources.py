"""Rows from files, folders, stores, the hub's cache and the packages; every error names its place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

from itrain_pipeline.data.hub import Snapshot, parse_address
from itrain_pipeline.data.sources import Limits, read_file, read_rows
from itrain_pipeline.errors import ConfigError, DataError
from itrain_pipeline.store import open_store

ROWS = [{"id": 1, "text": "é"}, {"id": 2}]


def read(uri: str, tmp_path: Path, data_format: str = "messages", **more: Any) -> list[Any]:
    return list(read_rows(uri, data_format, store=open_store(f"file://{tmp_path}/s"), scratch=tmp_path / "dl", **more))


def write(path: Path, data: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def lines(rows: list[Any]) -> str:
    return "\n".join(json.dumps(row) for row in rows)


def test_arrays_and_lines_are_told_apart_by_their_first_character(tmp_path: Path) -> None:
    array = write(tmp_path / "a.jsonl", f"\n {json.dumps(ROWS)}")
    split = write(tmp_path / "b.json", f"\ufeff{lines(ROWS)}\n\n")
    assert read(str(array), tmp_path) == read(f"file://{split}", tmp_path) == ROWS


def test_a_folder_is_all_its_data_files_by_name(tmp_path: Path) -> None:
    write(tmp_path / "d" / "2.jsonl", lines(ROWS[1:]))
    write(tmp_path / "d" / "1.json", json.dumps(ROWS[:1]))
    write(tmp_path / "d" / "README.md", "no data")
    assert read(str(tmp_path / "d"), tmp_path) == ROWS


def test_parquet_rows_come_without_the_nulls_that_arrow_adds(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"tools": [{"name": "f", "p": {"a": 1}}]}, {"tools": [{"name": "g", "p": {"b": "x"}}]}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read(str(tmp_path / "a.parquet"), tmp_path) == rows


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"a": 1}\n{"a": \n')
    with pytest.raises(DataError, match=r"a\.jsonl line 2 is no JSON"):
        read(str(path), tmp_path)
    with pytest.raises(DataError, match=r"b\.json is no JSON"):
        read(str(write(tmp_path / "b.json", "[1, ")), tmp_path)
    with pytest.raises(DataError, match=r"none\.json: there is no such file"):
        read(str(tmp_path / "none.json"), tmp_path)


def test_sizes_are_bounded(tmp_path: Path) -> None:
    small = Limits(array_bytes=20, line_bytes=20)
    line = write(tmp_path / "a.jsonl", '{"a": 1}\n{"a": "' + "x" * 20 + '"}')
    with pytest.raises(DataError, match=r"line 2 is longer than 20 bytes"):
        list(read_file(line, "a", small))
    with pytest.raises(DataError, match="JSON array of 26 bytes, allowed are 20: give it as JSON lines"):
        list(read_file(write(tmp_path / "b.json", '["' + "x" * 22 + '"]'), "b", small))


class Bucket:
    """A store with two objects."""

    objects: ClassVar = {
        "s3://b/data/1.jsonl": lines(ROWS[:1]),
        "s3://b/data/2.jsonl": lines(ROWS[1:]),
        "s3://b/data/x.md": "",
    }

    def list(self, prefix: str) -> list[str]:
        return sorted(uri for uri in self.objects if uri.startswith(prefix))

    def get_file(self, uri: str, path: Path) -> None:
        write(path, self.objects[uri])


def test_s3_objects_and_prefixes_come_through_the_store(tmp_path: Path) -> None:
    for uri, rows in (("s3://b/data/2.jsonl", ROWS[1:]), ("s3://b/data/", ROWS)):
        assert list(read_rows(uri, "messages", store=Bucket(), scratch=tmp_path)) == rows  # type: ignore[arg-type]


def test_hub_addresses_name_repository_file_and_revision() -> None:
    for uri in ("hf://org/name", "hf://datasets/org/name"):
        assert parse_address(uri).repo == "org/name"
    full = parse_address("hf://datasets/org/name/train/data.json?revision=v1")
    assert (full.repo, full.file, full.revision) == ("org/name", "train/data.json", "v1")
    for bad in ("hf://name", "hf://org/name?split=train", "hf://org/../name"):
        with pytest.raises(ConfigError, match="expected hf://org/name"):
            parse_address(bad)


def test_a_hub_dataset_is_read_from_its_snapshot(tmp_path: Path) -> None:
    asked: list[Any] = []

    def fetch(*wanted: Any) -> Snapshot:
        asked.append(wanted)
        return Snapshot(folder=tmp_path / "snap", commit="c")

    write(tmp_path / "snap" / "data.json", json.dumps(ROWS))
    assert read("hf://org/name?revision=v1", tmp_path, fetch=fetch) == ROWS
    assert read("hf://org/name/data.json", tmp_path, fetch=fetch) == ROWS
    assert asked == [
        ("org/name", "dataset", "v1", ["*.json", "*.jsonl", "*.parquet"]),
        ("org/name", "dataset", None, ["data.json"]),
    ]


HUB_SCRIPT = """
import sys
from pathlib import Path
from itrain_pipeline.data.sources import Limits, read_file, read_rows
from itrain_pipeline.errors import StageError
for uri in sys.argv[1:]:
    try:
        print(list(read_rows(uri, "messages", store=None, scratch=Path("."))))
    except StageError as error:
        print(type(error).__name__, error)
"""


def test_the_real_hub_code_reads_a_cached_dataset_offline(tmp_path: Path) -> None:
    """The layout that huggingface_hub gives its cache; no network is touched."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "hub" / "datasets--org--name"
    write(repo / "snapshots" / commit / "data.json", json.dumps(ROWS))
    write(repo / "refs" / "main", commit)
    env = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", HUB_SCRIPT, "hf://org/name", "hf://org/other"],
        env=env,
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    first, second = done.stdout.splitlines()
    assert first == str(ROWS)
    assert second.startswith("RetryableError hf://org/other could not be fetched")


def test_bfcl_gold_is_joined_from_the_folder_beside_the_questions(tmp_path: Path) -> None:
    for folder in ("", "question/"):
        path = write(tmp_path / "d" / folder / "x.json", lines([{"id": "a"}, {"id": "b", "ground_truth": ["own()"]}]))
        write(tmp_path / "d" / "possible_answer" / "x.json", lines([{"id": "a", "ground_truth": ["f()"]}]))
        rows = read(str(path), tmp_path, "bfcl")
        assert [row.get("ground_truth") for row in rows] == [["f()"], ["own()"]]


def test_toolworld_takes_its_parameters_from_the_address(tmp_path: Path) -> None:
    rows = read("builtin://toolworld?split=dev&rows=3&seed=5&offset=1&distractors=2", tmp_path)
    assert len(rows) == 3
    assert rows == read("builtin://toolworld?split=dev&rows=4&seed=5&distractors=2", tmp_path)[1:]
    assert rows != read("builtin://toolworld?rows=3&seed=5", tmp_path)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("builtin://toolworld?colour=1", "unknown parameter 'colour', allowed are split, rows"),
        ("builtin://toolworld?rows=many", "rows is 'many', expected a whole number"),
        ("builtin://toolworld?split=all", "got 'all', allowed are train, dev, test"),
        ("builtin://other", "allowed are builtin://toolworld"),
        ("ftp://x/y", "allowed are a path, file://, s3://, hf:// and builtin://"),
    ],
)
def test_addresses_that_cannot_be_are_refused(uri: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(uri, tmp_path)
    assert reason in str(caught.value)


def test_the_retired_bfcl_sets_are_240_rows_with_gold_and_no_heavy_import(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from itrain_pipeline.data.sources import Limits, read_file, read_rows\n"
        "rows = list(read_rows('builtin://bfcl-exec', 'bfcl', store=None, scratch=Path('.')))\n"
        "heavy = {'torch', 'transformers', 'datasets', 'bfcl_eval.constants'} & set(sys.modules)\n"
        "print(len(rows), all(row['ground_truth'] for row in rows), sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.split("\n")[0] == "240 True []"


def test_a_part_of_the_exec_sets_is_spread_over_all_four(tmp_path: Path) -> None:
    store = open_store(tmp_path.as_uri())
    rows = list(read_rows("builtin://bfcl-exec?rows=40", "bfcl", store=store, scratch=tmp_path))
    assert len(rows) == 40
    assert {str(row["id"]).rsplit("_", 1)[0] for row in rows if isinstance(row, dict)} == {
        "exec_simple",
        "exec_multiple",
        "exec_parallel",
        "exec_parallel_multiple",
    }


@pytest.mark.parametrize("query", ["rows=many", "rows=-1", "seed=3"])
def test_another_query_of_the_exec_sets_is_refused(query: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="bfcl-exec"):
        read_rows(f"builtin://bfcl-exec?{query}", "bfcl", store=open_store(tmp_path.as_uri()), scratch=tmp_path)
