"""OCI image archives written by hand: one layer, no builder and no registry needed."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MEDIA = "application/vnd.oci.image"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Everything world-readable: `files` by path (mode 0755), `links` by path, empty `folders`."""

    files: Mapping[str, bytes] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    folders: tuple[str, ...] = ()


def write_archive(path: Path, *, name: str, layer: Layer, config: Mapping[str, Any]) -> Path:
    """An OCI layout in a tar, as `ctr images import` takes it; `config` is the image's (Env, User, Entrypoint)."""
    content = _layer(layer)
    image = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()],
        "os": "linux",
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": [_digest(content)]},
    }
    blobs = [content, json.dumps(image).encode()]
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{MEDIA}.manifest.v1+json",
        "config": _descriptor(blobs[1], "config.v1+json"),
        "layers": [_descriptor(content, "layer.v1.tar")],
    }
    blobs.append(json.dumps(manifest).encode())
    named = {**_descriptor(blobs[2], "manifest.v1+json"), "annotations": {"io.containerd.image.name": name}}
    with tarfile.open(path, "w") as archive:
        _add(archive, "oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}).encode())
        _add(archive, "index.json", json.dumps({"schemaVersion": 2, "manifests": [named]}).encode())
        for blob in blobs:
            _add(archive, f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}", blob)
    return path


def _layer(layer: Layer) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for folder in layer.folders:
            entry = tarfile.TarInfo(folder.strip("/"))
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for link, target in layer.links.items():
            entry = tarfile.TarInfo(link.strip("/"))
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
        for name, data in layer.files.items():
            _add(tar, name.strip("/"), data, mode=0o755)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    tar.addfile(entry, io.BytesIO(data))


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _descriptor(data: bytes, kind: str) -> dict[str, Any]:
    return {"mediaType": f"{MEDIA}.{kind}", "digest": _digest(data), "size": len(data)}
