"""The adapter that a run takes over from another one (`resumeFrom`), instead of a warm-up."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from itrain_contract.layout import ADAPTER_DIR, RESULT_FILE, WORK_DIR
from itrain_contract.spec import ResumeFrom
from itrain_contract.stageio import ArtifactRef, StageResult
from itrain_contract.stages import StageKind
from itrain_pipeline.errors import DataError
from itrain_pipeline.evals.collect import INFO_BEST
from itrain_pipeline.files import sha256_file
from itrain_pipeline.loraconfig import CONFIG_FILE as CONFIG
from itrain_pipeline.loraconfig import WEIGHTS_FILE as WEIGHTS
from itrain_pipeline.loraconfig import check_foreign_adapter
from itrain_pipeline.ports import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenAdapter:
    folder: Path
    origin: str
    """Where it lay."""


def find_adapter(origin: ResumeFrom, storage: str, revision: str, store: Store, scratch: Path) -> TakenAdapter:
    """The best adapter of a run of the same storage (`runName`) or below a URI, on this machine, hashes checked.

    A URI is the folder of an adapter (with `adapter_config.json`) or of a run. Of several runs of one name the newest
    counts. Raises `DataError` when there is no adapter, or its base model was of another `revision`.
    """
    if origin.uri is not None:
        prefix = origin.uri if origin.uri.endswith("/") else f"{origin.uri}/"
        listed = store.list(prefix)
        if prefix + CONFIG in listed:
            return _checked(_take_files({name: prefix + name for name in (CONFIG, WEIGHTS)}, prefix, store, scratch))
    else:
        root = f"{storage.rstrip('/')}/"
        start = f"{root}{origin.run_name}-"
        # `<run>-<uid8>/`: a longer run name would have a dash more.
        listed = [uri for uri in store.list(root) if uri.startswith(start) and "-" not in _first(uri, start)]
    results = _results((uri for uri in listed if uri.endswith(f"/{RESULT_FILE}") and f"/{WORK_DIR}" not in uri), store)
    told = f"resumeFrom.{'uri' if origin.uri else 'runName'} {origin.uri or origin.run_name!r}"
    if not results:
        raise DataError(f"{told}: no results of a run are there")
    runs = sorted({_run_of(uri) for uri, _ in results}, key=lambda run: _newest(results, run))
    chosen = [result for uri, result in results if _run_of(uri) == runs[-1]]
    _check_base(chosen, revision, told)
    result = choose_adapter(chosen)
    if result is None:
        raise DataError(f"{told}: the run {runs[-1]} has no adapter (no warm-up or train stage finished)")
    return _take_result(result, store, scratch)


def choose_adapter(results: Sequence[StageResult]) -> StageResult | None:
    """The one that the run's export published; without an export the newest trained one, then the warm-up's, then
    the one that its own prepare took over."""
    made = [result for result in results if result.has_adapter]
    exports = [result for result in results if result.kind == StageKind.EXPORT]
    point = max(exports, key=lambda result: result.started).info.get(INFO_BEST, "") if exports else ""
    number = point.partition("iteration-")[2]
    trained = [r for r in made if r.kind == StageKind.TRAIN and (not number.isdecimal() or r.iteration == int(number))]
    if point in ("warmup", "resumed") or not trained:
        trained = []
    for kinds in (trained, *([r for r in made if r.kind == k] for k in (StageKind.WARMUP, StageKind.PREPARE))):
        if kinds:
            return max(kinds, key=lambda result: (result.iteration, result.attempt))
    return None


def _results(uris: Iterable[str], store: Store) -> list[tuple[str, StageResult]]:
    found = []
    for uri in uris:
        try:
            result = StageResult.model_validate_json(store.get_bytes(uri) or b"")
        except ValidationError as error:
            log.warning("%s is no stage result and is ignored: %s", uri, error.errors()[0]["msg"])
            continue
        if result.outcome == "succeeded":
            found.append((uri, result))
    return found


def _first(uri: str, start: str) -> str:
    return uri.removeprefix(start).partition("/")[0]


def _run_of(uri: str) -> str:
    """`…/<run>-<uid8>` of `…/<run>-<uid8>/i<n>/<stage>/a<n>/[shard-N/]result.json`."""
    parts = uri.split("/")
    depth = 6 if parts[-2].startswith("shard-") else 5
    return "/".join(parts[: 1 - depth])


def _newest(results: Sequence[tuple[str, StageResult]], run: str) -> float:
    return max(result.started for uri, result in results if _run_of(uri) == run)


def _check_base(results: Sequence[StageResult], revision: str, told: str) -> None:
    for result in results:
        made_on = result.info.get("model_revision") if result.kind == StageKind.PREPARE else None
        if made_on is not None and made_on != revision:
            raise DataError(
                f"{told}: its adapter was made for model revision {made_on}, this run has {revision}; give the same "
                "model (and model.revision)"
            )


def _take_result(result: StageResult, store: Store, scratch: Path) -> TakenAdapter:
    files = {name.removeprefix(ADAPTER_DIR): ref for name, ref in result.files_below(ADAPTER_DIR).items()}
    if not {CONFIG, WEIGHTS} <= files.keys():
        raise DataError(
            f"the {result.kind} of iteration {result.iteration} has an adapter without {CONFIG} or {WEIGHTS}"
        )
    # These two and no other: the names are written by whoever wrote the other storage.
    files = {name: files[name] for name in (CONFIG, WEIGHTS)}
    taken = _take_files({name: ref.uri for name, ref in files.items()}, files[CONFIG].uri, store, scratch)
    _check_hashes(files, taken.folder)
    return _checked(taken)


def _check_hashes(files: dict[str, ArtifactRef], folder: Path) -> None:
    for name, ref in files.items():
        if sha256_file(folder / name) != ref.sha256:
            raise DataError(f"{ref.uri} is not the file that its stage wrote (sha256 differs)")


def _take_files(uris: dict[str, str], origin: str, store: Store, scratch: Path) -> TakenAdapter:
    folder = scratch / "adapter"
    for name, uri in uris.items():
        store.get_file(uri, folder / name)
    return TakenAdapter(folder=folder, origin=origin)


def _checked(taken: TakenAdapter) -> TakenAdapter:
    try:
        check_foreign_adapter(taken.folder)
    except DataError as error:
        raise DataError(f"{taken.origin}: {error}") from error
    return taken
