"""Ports of a stage on plain folders, and the results of stages that never ran."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from itrain_contract.spec import ITrainRunSpec
from itrain_contract.stageio import ArtifactRef, RunIdentity, StageInput, StageResult, UpstreamResult, build_stage_input
from itrain_contract.stages import StageKind, StageRef
from itrain_pipeline.ports import Ports, Store

DIGEST = "0" * 64


def stage_result(
    kind: StageKind, iteration: int = 0, files: Mapping[str, Path] | None = None, **fields: Any
) -> StageResult:
    """A finished stage whose outputs are these local files."""
    outputs = {name: artifact(path) for name, path in (files or {}).items()}
    return StageResult(kind=kind, iteration=iteration, attempt=1, digest=DIGEST, outputs=outputs, **fields)


def artifact(path: Path) -> ArtifactRef:
    data = path.read_bytes()
    return ArtifactRef(uri=path.as_uri(), sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def fetch(ref: ArtifactRef) -> Path:
    return Path(ref.uri.removeprefix("file://"))


def folder_files(folder: Path, prefix: str) -> dict[str, Path]:
    return {prefix + path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


class FolderUpstream:
    def __init__(self, results: Iterable[StageResult], scratch: Path) -> None:
        self._results = tuple(results)
        self._scratch = scratch

    def results(self, kind: StageKind, iteration: int | None = None) -> tuple[StageResult, ...]:
        found = [r for r in self._results if r.kind == kind and iteration in (None, r.iteration)]
        newest = max((r.iteration for r in found), default=0)
        return tuple(sorted((r for r in found if r.iteration == newest), key=lambda r: r.shard or 0))

    def iterations(self, kind: StageKind) -> tuple[int, ...]:
        return tuple(sorted({r.iteration for r in self._results if r.kind == kind}))

    def fetch(self, ref: ArtifactRef) -> Path:
        return fetch(ref)

    def fetch_folder(self, result: StageResult, prefix: str) -> Path:
        folder = self._scratch / f"{result.kind}-{result.iteration}" / prefix
        for name, ref in result.files_below(prefix).items():
            path = folder / name.removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(fetch(ref).read_bytes())
        return folder


class FolderWork:
    """A work area in one folder; `puts` counts what was stored."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.local = folder / "local"
        self.stored = folder / "stored"
        self.stored.mkdir(parents=True, exist_ok=True)
        self.puts = 0

    def put(self, name: str, path: Path) -> None:
        target = self.stored / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
        self.puts += 1

    def get(self, name: str) -> Path | None:
        path = self.stored / name
        return path if path.is_file() else None

    def names(self, prefix: str = "") -> list[str]:
        found = (path.relative_to(self.stored).as_posix() for path in self.stored.rglob("*") if path.is_file())
        return sorted(name for name in found if name.startswith(prefix))

    def delete(self, name: str) -> None:
        (self.stored / name).unlink(missing_ok=True)


class Silent:
    """Progress that is only remembered, and a stop signal that is set from the look after `stop_after` looks on."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.updates: list[tuple[int, int, str]] = []
        self._stop_after = stop_after
        self._looks = 0

    def update(self, done: int, total: int, text: str = "") -> None:
        self.updates.append((done, total, text))

    def is_set(self) -> bool:
        self._looks += 1
        return self._stop_after is not None and self._looks > self._stop_after


def folder_ports(
    folder: Path,
    results: Iterable[StageResult],
    *,
    work: FolderWork | None = None,
    silent: Silent | None = None,
    clock: Callable[[], float] = lambda: 1_795_464_000.0,
) -> Ports:
    """Ports for a stage that touches no store."""
    silent = silent or Silent()
    scratch = folder / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    return Ports(
        store=cast("Store", None),
        upstream=FolderUpstream(results, folder / "upstream"),
        work=work or FolderWork(folder / "work"),
        progress=silent,
        stop=silent,
        clock=clock,
        scratch=scratch,
    )


def stage_input(
    kind: StageKind, iteration: int = 0, *, best_iteration: int | None = None, stages: Mapping[str, Any] | None = None
) -> StageInput:
    """The input of one stage of a small run; `stages` are spec blocks in camelCase."""
    spec = ITrainRunSpec.model_validate(
        {
            "model": {"uri": "builtin://toolworld"},
            "data": {"uri": "builtin://toolworld"},
            "storage": {"uri": "/storage"},
            "stages": dict(stages or {}),
        }
    )
    upstream: tuple[UpstreamResult, ...] = ()
    return build_stage_input(
        run=RunIdentity(name="small", uid="12345678", storage="file:///storage"),
        spec=spec,
        ref=StageRef(kind=kind, iteration=iteration),
        attempt=1,
        shards=None,
        upstream=upstream,
        best_iteration=best_iteration,
    )
