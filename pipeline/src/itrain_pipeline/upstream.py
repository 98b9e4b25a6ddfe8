"""The results of earlier stages, believed only when they prove themselves."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import ValidationError

from itrain_contract.layout import RESULT_FILE
from itrain_contract.stageio import ArtifactRef, StageResult, UpstreamResult, canonical_json
from itrain_contract.stages import StageKind
from itrain_pipeline.errors import DataError
from itrain_pipeline.files import sha256_file
from itrain_pipeline.ports import Store
from itrain_pipeline.store import local_path
from itrain_pipeline.workarea import check_name

READERS = 8


class StoreUpstream:
    """`Upstream` over a store, with a content-addressed cache that several processes may share.

    Files of a local storage folder are used where they lie (and hard-linked into folders); others are downloaded once
    into `cache`. Each file's sha256 is checked once per process, cached ones too.
    """

    def __init__(self, store: Store, upstream: Iterable[UpstreamResult], *, cache: Path) -> None:
        self._store = store
        self._upstream = tuple(upstream)
        self._cache = cache
        self._results: dict[UpstreamResult, tuple[StageResult, ...]] = {}
        self._verified: set[tuple[int, int, str]] = set()

    def results(self, kind: StageKind, iteration: int | None = None) -> tuple[StageResult, ...]:
        found = [u for u in self._upstream if u.kind == kind and iteration in (None, u.iteration)]
        if not found:
            return ()
        newest = max(found, key=lambda u: u.iteration)
        if newest not in self._results:
            with ThreadPoolExecutor(READERS) as readers:
                read = readers.map(lambda prefix: self._read(newest, prefix), newest.result_prefixes())
                self._results[newest] = tuple(result for result in read if result is not None)
        return self._results[newest]

    def iterations(self, kind: StageKind) -> tuple[int, ...]:
        return tuple(sorted({u.iteration for u in self._upstream if u.kind == kind}))

    def fetch(self, ref: ArtifactRef) -> Path:
        stored = local_path(ref.uri)
        path = stored or self._cache / "sha256" / ref.sha256[:2] / ref.sha256
        if stored is None and not path.is_file():
            self._store.get_file(ref.uri, path)
        elif stored is not None and not path.is_file():
            raise DataError(f"{ref.uri} does not exist, although a finished stage names it")
        try:
            self._verify(path, ref)
        except DataError:
            if stored is None:
                path.unlink()  # the next attempt downloads it again
            raise
        return path

    def fetch_folder(self, result: StageResult, prefix: str) -> Path:
        files = {name.removeprefix(prefix): ref for name, ref in result.files_below(prefix).items()}
        if not files:
            raise DataError(f"{result.kind} of iteration {result.iteration} has no outputs below {prefix!r}")
        key = hashlib.sha256(canonical_json({name: ref.sha256 for name, ref in files.items()})).hexdigest()
        folder = self._cache / "folders" / key[:32]
        if not folder.is_dir():
            self._assemble(files, folder)
        for name, ref in files.items():
            if not (folder / name).is_file():
                raise DataError(f"{folder / name} was removed from the cache; delete {folder} and start again")
            self._verify(folder / name, ref)
        return folder

    def _assemble(self, files: dict[str, ArtifactRef], folder: Path) -> None:
        """The folder appears whole, by a rename; whoever comes second keeps the first one's."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".", ignore_cleanup_errors=True) as temp:
            building = Path(temp) / "folder"
            for name, ref in files.items():
                target = building / check_name(name)
                target.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(self.fetch(ref), target)
            try:
                building.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise

    def _verify(self, path: Path, ref: ArtifactRef) -> None:
        """A file and the hard links to it are hashed once."""
        status = path.stat()
        seen = (status.st_dev, status.st_ino, ref.sha256)
        if seen in self._verified:
            return
        found = sha256_file(path)
        if found != ref.sha256:
            raise DataError(f"{ref.uri} has sha256 {found} ({status.st_size} bytes), expected {ref.sha256}")
        self._verified.add(seen)

    def _read(self, upstream: UpstreamResult, prefix: str) -> StageResult | None:
        """The result at a prefix; None where a lenient list names a shard that has none."""
        uri = prefix + RESULT_FILE
        data = self._store.get_bytes(uri)
        if data is None and upstream.lenient:
            return None
        if data is None:
            raise DataError(f"{uri} does not exist, although {upstream.ref} is reported as finished")
        result = parse_result(data, uri)
        if not result.digest.startswith(upstream.digest):
            raise DataError(f"{uri} belongs to the input {result.digest[:16]}, expected {upstream.digest[:16]}")
        if (result.kind, result.iteration, result.outcome) != (upstream.kind, upstream.iteration, "succeeded"):
            raise DataError(f"{uri} is {result.outcome} {result.kind} of iteration {result.iteration}")
        return result


def parse_result(data: bytes, uri: str) -> StageResult:
    """A `result.json`; `DataError` when it is not one."""
    try:
        result = StageResult.model_validate_json(data)
        for name in result.outputs:
            check_name(name)
    except ValidationError as error:
        raise DataError(f"{uri} is not a stage result: {error.errors()[0]['msg']}") from error
    except ValueError as error:
        raise DataError(f"{uri} is not a stage result: {error}") from error
    return result


ATTEMPT_RESULT = re.compile(r"^i(\d+)/([a-z]+)/a(\d+)/(?:shard-(\d+)/)?" + re.escape(RESULT_FILE) + "$")


def run_results(store: Store, root: str) -> tuple[StageResult, ...]:
    """Every stage's results below a run's root (which ends with `/`): the newest attempt of each shard that has one.

    In the order of iteration, stage kind and shard, by which a report can rely on equal input giving equal text.
    """
    newest: dict[tuple[str, str, str], tuple[int, str]] = {}
    for uri in store.list(root):
        found = ATTEMPT_RESULT.match(uri.removeprefix(root))
        if found:
            iteration, kind, attempt, shard = found.groups()
            key = (iteration, kind, shard or "0")
            newest[key] = max(newest.get(key, (0, "")), (int(attempt), uri))
    ordered = sorted(newest, key=lambda key: (int(key[0]), key[1], int(key[2])))
    uris = [newest[key][1] for key in ordered]
    with ThreadPoolExecutor(READERS) as readers:
        read = readers.map(lambda uri: (store.get_bytes(uri), uri), uris)
        return tuple(parse_result(data, uri) for data, uri in read if data is not None)


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link where the file system allows one, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
