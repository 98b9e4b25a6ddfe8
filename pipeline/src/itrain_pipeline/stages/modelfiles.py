"""The base model's files: found, resolved to a revision, and staged in storage once for all later pods."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from pydantic import ValidationError

from itrain_contract.layout import MODEL_DIR
from itrain_contract.spec import ModelSpec
from itrain_contract.stageio import ArtifactRef, canonical_json
from itrain_pipeline.data.hub import fetch_snapshot, parse_address
from itrain_pipeline.data.sources import FetchSnapshot
from itrain_pipeline.errors import ConfigError
from itrain_pipeline.files import leads_outside, sha256_file
from itrain_pipeline.loraconfig import tensor_shapes
from itrain_pipeline.ports import Store
from itrain_pipeline.quickstart import model_path
from itrain_pipeline.workarea import check_name

log = logging.getLogger(__name__)

WEIGHTS: Final = ".safetensors"
SUFFIXES: Final = (WEIGHTS, ".json", ".model", ".txt", ".jinja", ".tiktoken")
"""What a model folder needs; code (`.py`) only where the spec trusts it, pickled weights never."""
PICKLED: Final = (".bin", ".pt", ".pth", ".ckpt")
STAGED_FILE: Final = "staged.json"
"""Written last into the staged folder: name → reference. Without it the folder is not believed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The files of one revision on this machine, by name; `revision` is a commit, or a hash of the content."""

    revision: str
    folder: Path
    files: dict[str, Path]


def find_model(spec: ModelSpec, store: Store, scratch: Path, *, fetch: FetchSnapshot = fetch_snapshot) -> Model:
    """The model of the spec as local files at one revision.

    Raises `ConfigError` with the remedy for a model that is not there, has no safetensors, or needs code that the
    spec does not trust.
    """
    suffixes = (*SUFFIXES, ".py") if spec.trust_remote_code else SUFFIXES
    scheme = spec.uri.partition("://")[0] if "://" in spec.uri else "file"
    commit = None
    if scheme == "builtin":
        if spec.uri != "builtin://toolworld":
            raise ConfigError(f"model.uri: got {spec.uri!r}, the only built-in model is builtin://toolworld")
        folder = model_path()
    elif scheme == "hf":
        address = parse_address(spec.uri)
        # Top level only: `original/` and the like hold the same weights in other forms.
        patterns = [f"*{suffix}" for suffix in suffixes]
        found = fetch(address.repo, "model", spec.revision or address.revision, patterns)
        folder, commit = found.folder, found.commit
    elif scheme == "s3":
        folder = _download(spec.uri, store, scratch / "model", (*suffixes, *PICKLED))
    else:
        folder = Path(unquote(urlsplit(spec.uri).path) if scheme == "file" and "://" in spec.uri else spec.uri)
    files = check_files(folder, spec, suffixes)
    return Model(revision=commit or content_hash(files), folder=folder, files=files)


def _download(uri: str, store: Store, folder: Path, suffixes: tuple[str, ...]) -> Path:
    prefix = uri if uri.endswith("/") else f"{uri}/"
    for found in store.list(prefix):
        name = found.removeprefix(prefix)
        if "/" not in name and name.endswith(suffixes):
            if name.endswith(PICKLED):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).touch()  # only named in the error; never read
            else:
                store.get_file(found, folder / name)
    return folder


def check_files(folder: Path, spec: ModelSpec, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """The files that are staged, by name; raises `ConfigError` where they are no usable model."""
    if not folder.is_dir():
        raise ConfigError(f"model.uri {spec.uri!r}: there is no such folder")
    present = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
    files = {name: path for name, path in present.items() if name.endswith(suffixes) and _is_stageable(name)}
    for name, path in files.items():
        if leads_outside(path, folder):
            raise ConfigError(f"model.uri {spec.uri!r}: {name} is a link out of the folder; copy the file into it")
    if "config.json" not in files:
        raise ConfigError(f"model.uri {spec.uri!r}: no config.json; expected a model in Hugging Face layout")
    if not any(name.endswith(WEIGHTS) for name in files):
        pickled = [name for name in present if name.endswith(PICKLED)]
        seen = f"its weights are pickled ({pickled[0]}), which can run code" if pickled else "there are no weights"
        raise ConfigError(
            f"model.uri {spec.uri!r}: {seen}; convert it with save_pretrained(…, safe_serialization=True) and give "
            "the folder, or a revision that holds safetensors"
        )
    if not any(name.startswith("tokenizer") for name in files):
        raise ConfigError(f"model.uri {spec.uri!r}: no tokenizer files (tokenizer.json or tokenizer.model)")
    if not spec.trust_remote_code and "auto_map" in _read_config(files["config.json"], spec):
        log.warning("%s brings code of its own, which is not run (model.trustRemoteCode is false)", spec.uri)
    return files


def _is_stageable(name: str) -> bool:
    """What no model needs is left out: hidden files, names that are no plain ones, and that of our own list."""
    try:
        return check_name(name) != STAGED_FILE
    except ValueError:
        log.warning("the model's file %r is left out: its name is no plain one", name)
        return False


def _read_config(path: Path, spec: ModelSpec) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"model.uri {spec.uri!r}: config.json is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"model.uri {spec.uri!r}: config.json is a {type(config).__name__}, expected an object")
    return config


def check_weights(model: Model) -> None:
    """DataError for a weights file whose header and bytes do not agree, before a GPU is asked for."""
    for name, path in model.files.items():
        if name.endswith(WEIGHTS):
            tensor_shapes(path)


def content_hash(files: Mapping[str, Path]) -> str:
    """Equal for equal names and bytes, wherever they lie."""
    return hashlib.sha256(canonical_json({name: sha256_file(path) for name, path in files.items()})).hexdigest()


def stage_model(model: Model, prefix: str, store: Store) -> dict[str, ArtifactRef]:
    """The references of the staged files as outputs (`model/<file>`); uploads only what is not there yet."""
    known = _staged(store, prefix, model)
    if known is None:
        known = {name: store.put_file(path, prefix + name) for name, path in sorted(model.files.items())}
        listing = {name: ref.model_dump(mode="json", by_alias=True) for name, ref in known.items()}
        store.put_bytes(json.dumps(listing, indent=1).encode(), prefix + STAGED_FILE)
    return {MODEL_DIR + name: ref for name, ref in known.items()}


def _staged(store: Store, prefix: str, model: Model) -> dict[str, ArtifactRef] | None:
    data = store.get_bytes(prefix + STAGED_FILE)
    if data is None:
        return None
    try:
        known = {name: ArtifactRef.model_validate(ref) for name, ref in json.loads(data).items()}
    except (ValueError, ValidationError, AttributeError) as error:
        log.warning("%s is not readable and the model is staged again: %s", prefix + STAGED_FILE, error)
        return None
    there = set(store.list(prefix))
    return known if known.keys() == model.files.keys() and all(ref.uri in there for ref in known.values()) else None
