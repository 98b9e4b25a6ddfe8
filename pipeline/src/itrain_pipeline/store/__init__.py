"""Objects by URI: folders (`file:///…` or an absolute path) and S3 (`s3://bucket/key`).

A store opened for a root writes and deletes only below that root, and reads from every scheme it knows: a stage reads
data and earlier runs from elsewhere, but can never write there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from itrain_contract.stageio import ArtifactRef
from itrain_pipeline.errors import ConfigError
from itrain_pipeline.ports import Store
from itrain_pipeline.store.local import LocalStore, local_path

__all__ = ["ScopedStore", "local_path", "open_source_store", "open_store", "purge"]

S3_SCHEME = "s3://"
KEY_PAIR = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def open_store(root: str, environ: Mapping[str, str] | None = None) -> Store:
    """The store for a storage root; credentials and endpoint come from the AWS names in `environ`.

    Raises `ConfigError` for a scheme that is not known, a malformed URI, or an AWS setting that cannot be.
    """
    store = ScopedStore(root, os.environ if environ is None else environ)
    store.for_scheme(root)
    return store


def open_source_store(root: str, values: Mapping[str, str], secret: str) -> Store:
    """A store that reads S3 by the values of one Secret and nothing else; `root` fences writes as ever.

    An S3 source raises `ConfigError` when the Secret lacks a key pair: the process's own would go to another server.
    """
    return ScopedStore(root, values, secret=secret)


class ScopedStore:
    """Dispatches by scheme and fences writes to one root. S3 is imported and set up at its first use.

    `secret` names the Secret that `environ` is the whole of; by default it is the process's environment.
    """

    def __init__(self, root: str, environ: Mapping[str, str], *, secret: str | None = None) -> None:
        self._root = root if root.endswith("/") else f"{root}/"
        self._environ = environ
        self._secret = secret
        self._local = LocalStore()
        self._s3: Store | None = None

    def put_file(self, path: Path, uri: str) -> ArtifactRef:
        return self._writable(uri).put_file(path, uri)

    def put_bytes(self, data: bytes, uri: str) -> ArtifactRef:
        return self._writable(uri).put_bytes(data, uri)

    def delete(self, uri: str) -> None:
        self._writable(uri).delete(uri)

    def get_file(self, uri: str, path: Path) -> None:
        self.for_scheme(uri).get_file(uri, path)

    def get_bytes(self, uri: str) -> bytes | None:
        return self.for_scheme(uri).get_bytes(uri)

    def list(self, prefix: str) -> list[str]:
        return self.for_scheme(prefix).list(prefix)

    def _writable(self, uri: str) -> Store:
        if not uri.startswith(self._root) or uri == self._root:
            raise ConfigError(f"{uri!r} lies outside of the storage {self._root!r}; stages write only below it")
        return self.for_scheme(uri)

    def for_scheme(self, uri: str) -> Store:
        """The store behind a URI, writes not fenced; `ConfigError` when there is none."""
        if uri.startswith(S3_SCHEME):
            if self._s3 is None:
                from itrain_pipeline.store.s3 import S3Store  # boto3 only where S3 is used

                self._check_key_pair()
                self._s3 = S3Store(self._environ, alone=self._secret is not None)
            return self._s3
        if local_path(uri) is not None:
            return self._local
        raise ConfigError(f"storage URI {uri!r}: allowed are s3://bucket/prefix, file:///folder and absolute paths")

    def _check_key_pair(self) -> None:
        missing = [name for name in KEY_PAIR if not self._environ.get(name)]
        if self._secret is not None and missing:
            raise ConfigError(f"the Secret {self._secret!r} has no {' and no '.join(missing)}, which S3 sources need")


def purge(root: str, environ: Mapping[str, str] | None = None) -> int:
    """Delete every object below a root (which ends with `/`), the folders of a local one too; returns their number."""
    store = open_store(root, environ)
    found = store.list(root)
    for uri in found:
        store.delete(uri)
    folder = local_path(root)
    if folder is not None and folder.is_dir():
        shutil.rmtree(folder)
    return len(found)
