"""`itrain submit`: files checked first, then applied by the server, each refusal told field by field."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from itrain_contract.immutability import changes_refused
from itrain_contract.loading import ITrainRun, SpecError, SpecProblem, parse_documents, parse_run, read_text, with_lines
from itrain_contract.names import Phase
from itrain_operator.clusteraccess import Access, ClusterError, explain, field_problems
from itrain_operator.clusterruns import ClusterRun, read_run
from itrain_operator.kubeapi import RUNS, ApiError, ConflictError, NotFoundError, Raw, RefusedError
from itrain_operator.manifests import ManifestError, storage_uri

MANAGER = "itrain"
"""Owns the fields that `submit` sets; other managers' fields stay theirs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFile:
    """A file that holds one valid run."""

    path: Path
    text: str
    manifest: Raw
    """As it was written: defaults are the server's."""
    run: ITrainRun


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    path: Path
    action: str
    """created, configured or unchanged."""
    run: ClusterRun


def read_files(paths: list[Path]) -> list[RunFile]:
    """Every file, checked as `itrain validate` does and for what only a cluster needs.

    Raises SpecError with the problems of all files.
    """
    files, problems = [], []
    for path in paths:
        try:
            files.append(_read_file(path))
        except SpecError as error:
            problems.append(error)
    if problems:
        raise FilesError(problems)
    return files


class FilesError(SpecError):
    """The problems of several files."""

    def __init__(self, errors: list[SpecError]) -> None:
        super().__init__(errors[0].source, [problem for error in errors for problem in error.problems])
        self.args = ("\n".join(str(error) for error in errors),)


def _read_file(path: Path) -> RunFile:
    text = read_text(path)
    run = parse_run(text, source=str(path))
    try:
        storage_uri(run.spec)
    except ManifestError as error:
        found = repr(run.spec.storage.uri)
        problem = SpecProblem(
            field="spec.storage.uri",
            got=found,
            allowed="s3://…, or spec.storage.pvc: pods cannot write to this machine",
            remedy="to run it on this machine: itrain run FILE --local",
        )
        raise SpecError(str(path), with_lines([problem], text)) from error
    (manifest,) = parse_documents(text, source=str(path))
    return RunFile(path=path, text=text, manifest=manifest, run=run)


async def submit(access: Access, file: RunFile, *, force: bool, dry_run: bool) -> Submitted:
    """Server-side apply. Raises SpecError for fields that the server refuses, ClusterError for anything else."""
    name = file.run.metadata.name
    written = file.run.metadata.namespace
    if written not in ("", access.namespace):
        raise ClusterError(f"{file.path} names the namespace {written}, not {access.namespace}: give -n {written}")
    manifest = {**file.manifest, "metadata": {**file.manifest["metadata"], "namespace": access.namespace}}
    manifest.pop("status", None)
    with refusals(access, file):
        before = await _stored(access, name)
        check_edit(before, file)
        raw = await access.cluster.apply(
            RUNS, access.namespace, name, manifest, manager=MANAGER, force=force, dry_run=dry_run
        )
    version = raw["metadata"].get("resourceVersion")
    same = before is not None and version == before.raw["metadata"]["resourceVersion"]
    action = "created" if before is None else "unchanged" if same else "configured"
    return Submitted(path=file.path, action=action, run=read_run(raw))


async def _stored(access: Access, name: str) -> ClusterRun | None:
    try:
        return read_run(await access.cluster.get(RUNS, access.namespace, name))
    except NotFoundError:
        return None


def check_edit(before: ClusterRun | None, file: RunFile) -> None:
    """Raises SpecError for an edit that the server refuses too, in better words: its rules name the whole spec."""
    if before is None or before.spec is None:
        return
    problems = changes_refused(before.spec, file.run.spec, before.status.phase)
    if problems:
        raise SpecError(str(file.path), with_lines(problems, file.text))


@contextmanager
def refusals(access: Access, file: RunFile) -> Iterator[None]:
    try:
        yield
    except ApiError as error:
        problems = field_problems(error) if isinstance(error, (RefusedError, ConflictError)) else []
        if problems:
            raise SpecError(str(file.path), with_lines(problems, file.text)) from error
        raise explain(error, access, file.run.metadata.name) from error


def next_step(done: Submitted, access: Access) -> str:
    """What a person would do next."""
    phase, name = done.run.status.phase, done.run.name
    if phase.terminal:
        word = "succeeded" if phase == Phase.SUCCEEDED else "failed"
        return f"it has {word} already: another metadata.name starts another run"
    return f"follow it: itrain watch {name}{access.options()}"
