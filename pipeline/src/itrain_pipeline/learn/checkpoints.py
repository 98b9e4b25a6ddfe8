"""Training checkpoints in the durable work area: a set of files, believed only through a marker that is put last.

    checkpoint-<step>/<file> …   then   checkpoint-<step>/COMPLETE.json {"step", "files": {name: sha256}}

The newest whole checkpoint wins; one whose files are missing or damaged is passed over, with a warning.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from itrain_pipeline.files import sha256_file, write_atomic
from itrain_pipeline.ports import WorkArea

log = logging.getLogger(__name__)

MARKER = "COMPLETE.json"
KEPT = re.compile(
    r"^(adapter_model\.safetensors|adapter_config\.json|trainer_state\.json|(optimizer|scheduler|scaler)\.pt"
    r"|rng_state(_\d+)?\.pth|latest|global_step\d+/.+\.pt)$"
)
"""The files that a resumption reads. Left out are pickled arguments, cards and tokenizers."""
MARKED = re.compile(rf"^checkpoint-(\d+)/{re.escape(MARKER)}$")


def folder_name(step: int) -> str:
    return f"checkpoint-{step}"


def checkpoint_files(folder: Path) -> list[str]:
    """Names of the files of a local checkpoint that belong into the work area, sorted."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if KEPT.match(name))


def upload_checkpoint(work: WorkArea, folder: Path, step: int) -> None:
    """Put a local checkpoint, its marker last; then delete the older ones, each marker first."""
    mark_checkpoint(work, step, put_checkpoint(work, folder, step))


def put_checkpoint(work: WorkArea, folder: Path, step: int) -> dict[str, str]:
    """Put the files of a local checkpoint without a marker, and give their sha256 by name."""
    files = {}
    for name in checkpoint_files(folder):
        work.put(f"{folder_name(step)}/{name}", folder / name)
        files[name] = sha256_file(folder / name)
    return files


def mark_checkpoint(work: WorkArea, step: int, files: Mapping[str, str]) -> None:
    """Put the marker that makes a checkpoint of these files believed; then delete the older ones."""
    prefix = folder_name(step)
    marker = work.local / f"{prefix}.json"
    write_atomic(marker, json.dumps({"step": step, "files": dict(files)}, sort_keys=True).encode())
    work.put(f"{prefix}/{MARKER}", marker)
    for older in whole_checkpoints(work):
        if older < step:
            delete_checkpoint(work, older)


def whole_checkpoints(work: WorkArea) -> list[int]:
    """Steps whose marker is there, newest first."""
    found = (MARKED.match(name) for name in work.names("checkpoint-"))
    return sorted((int(match.group(1)) for match in found if match), reverse=True)


def delete_checkpoint(work: WorkArea, step: int) -> None:
    prefix = folder_name(step)
    work.delete(f"{prefix}/{MARKER}")
    for name in work.names(f"{prefix}/"):
        work.delete(name)


def restore_checkpoint(work: WorkArea, folder: Path) -> Path | None:
    """The newest whole checkpoint as a local folder below `folder`; None when there is none to believe."""
    for step in whole_checkpoints(work):
        target = restore_step(work, folder, step)
        if target is not None:
            return target
    return None


def restore_step(work: WorkArea, folder: Path, step: int) -> Path | None:
    """One checkpoint as a local folder below `folder`; None when it is not to be believed."""
    target = folder / folder_name(step)
    problem = _restore(work, step, target)
    if problem is None:
        log.info("resuming from step %d", step)
        return target
    log.warning("the checkpoint of step %d is passed over: %s", step, problem)
    shutil.rmtree(target, ignore_errors=True)
    return None


def step_of(folder: Path) -> int:
    """The step of a local checkpoint folder."""
    return int(folder.name.removeprefix(folder_name(0)[:-1]))


def _restore(work: WorkArea, step: int, target: Path) -> str | None:
    """Copy one checkpoint; what is wrong with it, or None."""
    prefix = folder_name(step)
    marker = work.get(f"{prefix}/{MARKER}")
    if marker is None:
        return "its marker is gone"
    for name, sha256 in json.loads(marker.read_text(encoding="utf-8"))["files"].items():
        if not KEPT.match(name):
            return f"its marker names {name!r}, which no resumption reads"
        stored = work.get(f"{prefix}/{name}")
        if stored is None:
            return f"{name} is missing"
        if sha256_file(stored) != sha256:
            return f"{name} is not what its marker promises"
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(stored, copy)
    return None
