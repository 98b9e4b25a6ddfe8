"""Rows from where the data lies: files and folders, `s3://`, `hf://`, and what the packages carry (`builtin://`).

A file is a JSON array or JSON lines; a folder is all of its `.json`, `.jsonl` and `.parquet` files by name. Sizes are
bounded, and every error names the file and the row.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from itrain_pipeline.data import toolworld
from itrain_pipeline.data.hub import Snapshot, fetch_snapshot, parse_address
from itrain_pipeline.errors import ConfigError, DataError
from itrain_pipeline.files import leads_outside
from itrain_pipeline.ports import Store

DATA_SUFFIXES: Final = (".json", ".jsonl", ".parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """A JSON array is read whole; larger data come as JSON lines."""

    array_bytes: int = 2 << 30
    line_bytes: int = 64 << 20
    parquet_rows: int = 10_000_000
    """A page of a few bytes can hold any number of equal rows; their bytes, unpacked, may be `array_bytes`."""


FetchSnapshot = Callable[..., Snapshot]
Rows = Iterator[object]


def read_rows(
    uri: str, data_format: str, *, store: Store, scratch: Path, fetch: FetchSnapshot = fetch_snapshot
) -> Rows:
    """The rows of a source in their order. Downloads go below `scratch`.

    Raises `DataError` for a file that is missing, too large or no JSON, `ConfigError` for an address that cannot be.
    """
    scheme = uri.partition("://")[0] if "://" in uri else "file"
    if scheme == "builtin":
        return _builtin(uri)
    files = _find_files(uri, scheme, store, scratch, fetch)
    rows = (row for path in files for row in read_file(path, f"{uri} ({path.name})" if len(files) > 1 else uri))
    return _with_answers(rows, files) if data_format == "bfcl" else rows


def _find_files(uri: str, scheme: str, store: Store, scratch: Path, fetch: FetchSnapshot) -> list[Path]:
    if scheme == "file":
        path = Path(unquote(urlsplit(uri).path) if uri.startswith("file://") else uri)
        return _data_files(path, uri)
    if scheme == "s3":
        folder = scratch / hashlib.sha256(uri.encode()).hexdigest()[:16]
        objects = [found for found in store.list(uri) if found.endswith(DATA_SUFFIXES)] if uri.endswith("/") else [uri]
        for found in objects:
            name = found.removeprefix(uri) if uri.endswith("/") else found.rpartition("/")[2]
            if {"", ".", ".."} & set(name.split("/")):
                raise DataError(f"{found!r} has an empty, '.' or '..' segment")
            store.get_file(found, folder / name)
        return _data_files(folder, uri)
    if scheme == "hf":
        address = parse_address(uri)
        patterns = [address.file] if address.file else [f"*{suffix}" for suffix in DATA_SUFFIXES]
        folder = fetch(address.repo, "dataset", address.revision, patterns).folder
        return _data_files(folder / address.file if address.file else folder, uri)
    raise ConfigError(f"data.uri {uri!r}: allowed are a path, file://, s3://, hf:// and builtin://")


def _data_files(path: Path, uri: str) -> list[Path]:
    if path.is_file():
        return [path]
    found = sorted(p for p in path.rglob("*") if p.suffix in DATA_SUFFIXES and p.is_file()) if path.is_dir() else []
    # A hub keeps its own description beside the data; it holds no rows.
    found = [p for p in found if p.name not in ("dataset_infos.json", "dataset_dict.json", "state.json")]
    for file in found:
        if leads_outside(file, path):
            where = file.relative_to(path)
            raise DataError(f"{uri}: {where} is a link out of the folder; copy the file, or name it as a source")
    if not found:
        raise DataError(f"{uri}: there is no such file, and no folder with {', '.join(DATA_SUFFIXES)} files")
    return found


def read_file(path: Path, name: str, limits: Limits = Limits()) -> Rows:
    """The rows of one file; `name` is what errors call it."""
    if path.suffix == ".parquet":
        return _read_parquet(path, name, limits)
    with path.open("rb") as data:
        head = data.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    return _read_array(path, name, limits) if head.startswith(b"[") else _read_lines(path, name, limits)


def _read_array(path: Path, name: str, limits: Limits) -> Rows:
    size = path.stat().st_size
    if size > limits.array_bytes:
        raise DataError(
            f"{name} is a JSON array of {size} bytes, allowed are {limits.array_bytes}: give it as JSON lines"
        )
    try:
        rows = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is no JSON: {error}") from error
    yield from rows


def _read_lines(path: Path, name: str, limits: Limits) -> Rows:
    with path.open("rb") as lines:
        number = 0
        while line := lines.readline(limits.line_bytes + 1):
            number += 1
            if len(line) > limits.line_bytes:
                raise DataError(f"{name} line {number} is longer than {limits.line_bytes} bytes")
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not text.strip():
                continue
            try:
                yield json.loads(text)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{name} line {number} is no JSON: {error}") from error


def _read_parquet(path: Path, name: str, limits: Limits) -> Rows:
    """Rows without nulls: Arrow gives every object the keys of all others."""
    import pyarrow.parquet  # type: ignore[import-untyped]

    rows = unpacked = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=256):
            plain = [_decoded(column) for column in batch.columns]
            rows, unpacked = rows + batch.num_rows, unpacked + sum(column.nbytes for column in plain)
            if rows > limits.parquet_rows or unpacked > limits.array_bytes:
                allowed = f"{limits.parquet_rows} rows and {limits.array_bytes} bytes"
                raise DataError(f"{name} unpacks to {rows} rows of {unpacked} bytes or more, allowed are {allowed}")
            for row in pyarrow.RecordBatch.from_arrays(plain, names=batch.schema.names).to_pylist():
                yield _without_nulls(row)
    except (pyarrow.ArrowException, OSError, OverflowError, ValueError) as error:
        raise DataError(f"{name} is no readable Parquet: {str(error)[:200]}") from error


def _decoded(column: Any) -> Any:
    return column.dictionary_decode() if hasattr(column, "dictionary_decode") else column


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _with_answers(rows: Rows, files: list[Path]) -> Rows:
    """BFCL keeps its gold in `possible_answer/<the same name>`, beside the questions or one folder up."""
    answers: dict[str, Any] = {}
    for path in files:
        for folder in (path.parent, path.parent.parent):
            gold = folder / "possible_answer" / path.name
            if gold.is_file():
                pairs = (row for row in read_file(gold, str(gold)) if isinstance(row, Mapping))
                answers |= {str(row.get("id")): row.get("ground_truth") for row in pairs}
                break
    for row in rows:
        if isinstance(row, Mapping) and "ground_truth" not in row and str(row.get("id")) in answers:
            yield {**row, "ground_truth": answers[str(row.get("id"))]}
        else:
            yield row


def _builtin(uri: str) -> Rows:
    parts = urlsplit(uri)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.netloc == "toolworld" and not parts.path:
        return _toolworld(uri, query)
    if parts.netloc == "bfcl-exec" and not parts.path and query.keys() <= {"rows"}:
        return _bfcl_exec(_whole_number(uri, "rows", query["rows"]) if query else None)
    allowed = "builtin://toolworld?split=…&rows=…&seed=… and builtin://bfcl-exec?rows=…"
    raise ConfigError(f"{uri!r}: allowed are {allowed}")


def _whole_number(uri: str, name: str, text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise ConfigError(f"{uri!r}: {name} is {text!r}, expected a whole number")
    return int(text)


def _toolworld(uri: str, query: Mapping[str, str]) -> Rows:
    numbers = {"rows": 600, "seed": 1, "offset": 0}
    optional = ("distractors", "prompt_tokens", "rare")
    unknown = sorted(query.keys() - numbers.keys() - {"split", *optional})
    if unknown:
        allowed = ", ".join(("split", *numbers, *optional))
        raise ConfigError(f"{uri!r}: unknown parameter {unknown[0]!r}, allowed are {allowed}")
    given = {name: _whole_number(uri, name, text) for name, text in query.items() if name != "split"}
    settings = numbers | {name: value for name, value in given.items() if name in numbers}
    more = {name: value for name, value in given.items() if name in optional}
    split = cast("toolworld.Split", query.get("split", "train"))
    return toolworld.generate(split, settings["rows"], settings["seed"], offset=settings["offset"], **more)


def _bfcl_exec(rows: int | None) -> Rows:
    """BFCL's retired exec sets, which no score counts: 240 real questions with tools and call strings.

    With `rows` that many of them, spread evenly over the four sets.
    """
    files = sorted((bfcl_data_folder() / "unused_datasets" / "question").glob("BFCL_v*_exec_*.json"))
    if not files:
        raise DataError("the installed bfcl-eval carries no exec sets: install bfcl-eval==2026.3.23")
    every = list(_with_answers((row for path in files for row in read_file(path, path.name)), files))
    wanted = len(every) if rows is None else min(rows, len(every))
    return (every[at * len(every) // wanted] for at in range(wanted))


def bfcl_data_folder() -> Path:
    """Where the installed bfcl-eval keeps its data, found without importing it; `ConfigError` where it is missing."""
    spec = importlib.util.find_spec("bfcl_eval")
    roots = list(spec.submodule_search_locations or ()) if spec else []
    if not roots:
        raise ConfigError("BFCL's data need the package bfcl-eval: `pip install --no-deps bfcl-eval==2026.3.23`")
    return Path(roots[0]) / "data"
