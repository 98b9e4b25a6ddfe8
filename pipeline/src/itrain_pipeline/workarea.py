"""Durable scratch in the run's storage, shared by the attempts of one stage input."""

from __future__ import annotations

import re
from pathlib import Path

from itrain_contract.layout import LEASE_FILE, RESULT_FILE
from itrain_pipeline.lease import Lease
from itrain_pipeline.ports import Store
from itrain_pipeline.store import local_path

NAME = re.compile(r"^[A-Za-z0-9_=+,@-][A-Za-z0-9._=+,@ -]*$")
RESERVED = frozenset({LEASE_FILE, RESULT_FILE})


def check_name(name: str) -> str:
    """`name` if it is a relative POSIX path of plain segments that stays below its prefix; else `ValueError`.

    No segment starts with a dot, so neither `..` nor a file under way can be named; no `%`, so that a name reads the
    same in a file URI and in an S3 key.
    """
    if not all(NAME.match(segment) for segment in name.split("/")):
        raise ValueError(f"{name!r} is not a relative path of segments of letters, digits and ._=+,@- (no leading dot)")
    return name


class StoreWorkArea:
    """`WorkArea` below a prefix of a store. On a local folder `get` gives the stored file itself: read it only."""

    def __init__(self, store: Store, prefix: str, *, local: Path, lease: Lease) -> None:
        self._store = store
        self._prefix = prefix
        self._local = local
        self._lease = lease

    @property
    def local(self) -> Path:
        self._local.mkdir(parents=True, exist_ok=True)
        return self._local

    def put(self, name: str, path: Path) -> None:
        uri = self._uri(name)
        self._lease.check()
        self._store.put_file(path, uri)

    def get(self, name: str) -> Path | None:
        uri = self._uri(name)
        stored = local_path(uri)
        if stored is not None:
            return stored if stored.is_file() else None
        if uri not in self._store.list(uri.rpartition("/")[0] + "/"):
            return None
        copy = self._local.with_name(f"{self._local.name}-stored") / name
        self._store.get_file(uri, copy)
        return copy

    def names(self, prefix: str = "") -> list[str]:
        found = (uri.removeprefix(self._prefix) for uri in self._store.list(self._prefix))
        return [name for name in found if name.startswith(prefix) and name not in RESERVED]

    def delete(self, name: str) -> None:
        uri = self._uri(name)
        self._lease.check()
        self._store.delete(uri)

    def _uri(self, name: str) -> str:
        if name in RESERVED:
            raise ValueError(f"{name!r} in a work area belongs to the runtime")
        return self._prefix + check_name(name)
