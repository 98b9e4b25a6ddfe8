"""A folder as a store: atomic writes, and temporary files that no listing shows."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote

from itrain_contract.stageio import ArtifactRef
from itrain_pipeline.errors import ConfigError, DataError
from itrain_pipeline.files import atomic_writer, sha256_file

FILE_SCHEME = "file://"
CHUNK_BYTES = 1 << 20
TEMPORARY = re.compile(r"^\..*\.tmp$")
"""What `itrain_pipeline.files` names a file under way; a killed writer leaves it behind."""


def local_path(uri: str) -> Path | None:
    """The path that a `file://` URI (percent-encoded) or an absolute path names; None for another scheme.

    Raises `ConfigError` for a path with `.` or `..` segments and for a `file://` URI with a host.
    """
    if uri.startswith(FILE_SCHEME):
        text = unquote(uri.removeprefix(FILE_SCHEME).removeprefix("localhost"))
        if not text.startswith("/"):
            raise ConfigError(f"storage URI {uri!r}: a file URI has three slashes and no host, as in file:///folder")
    elif uri.startswith("/"):
        text = uri
    else:
        return None
    if {".", ".."} & set(text.split("/")) or "\0" in text:
        raise ConfigError(f"storage URI {uri!r} has a '.' or '..' segment or a NUL")
    return Path(text)


class LocalStore:
    """`Store` on the file system: temp name, fsync, rename. The bytes of an object are those of its file."""

    def put_file(self, path: Path, uri: str) -> ArtifactRef:
        target = _path(uri)
        if path.resolve() == target.resolve():
            return ArtifactRef(uri=uri, sha256=sha256_file(target), size_bytes=target.stat().st_size)
        digest, size = hashlib.sha256(), 0
        with path.open("rb") as source, _writing(uri), atomic_writer(target) as out:
            while chunk := source.read(CHUNK_BYTES):
                digest.update(chunk)
                size += out.write(chunk)
        return ArtifactRef(uri=uri, sha256=digest.hexdigest(), size_bytes=size)

    def put_bytes(self, data: bytes, uri: str) -> ArtifactRef:
        with _writing(uri), atomic_writer(_path(uri)) as out:
            out.write(data)
        return ArtifactRef(uri=uri, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))

    def get_file(self, uri: str, path: Path) -> None:
        source = _path(uri)
        if not source.is_file():
            raise DataError(f"{uri} does not exist")
        if path.resolve() == source.resolve():
            return
        with source.open("rb") as data, atomic_writer(path) as out:
            while chunk := data.read(CHUNK_BYTES):
                out.write(chunk)

    def get_bytes(self, uri: str) -> bytes | None:
        try:
            return _path(uri).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None

    def list(self, prefix: str) -> list[str]:
        if not prefix.endswith("/"):
            raise ValueError(f"a prefix ends with '/': {prefix!r}")
        folder = _path(prefix)
        escape = quote if prefix.startswith(FILE_SCHEME) else str
        return sorted(
            prefix + escape((Path(parent) / name).relative_to(folder).as_posix())
            for parent, _, names in os.walk(folder)
            for name in names
            if not TEMPORARY.match(name)
        )

    def delete(self, uri: str) -> None:
        _path(uri).unlink(missing_ok=True)


def _path(uri: str) -> Path:
    path = local_path(uri)
    if path is None:
        raise ConfigError(f"{uri!r} is neither a file URI nor an absolute path")
    return path


@contextmanager
def _writing(uri: str) -> Iterator[None]:
    """Turns what a user can mend about a storage folder into one clear error."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise ConfigError(f"cannot write {uri}: {error.strerror}") from error
        raise
