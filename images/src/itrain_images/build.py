"""One image from its contexts, as an OCI archive: by buildah, podman or docker, whichever is here."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from itrain_images.files import sha256
from itrain_images.locks import Layer
from itrain_images.sets import BUILD, ROOT, ImageSet, version


class BuildError(RuntimeError):
    """An image cannot be built here; the message says in one line why."""


class Engine(StrEnum):
    BUILDAH = "buildah"
    PODMAN = "podman"
    DOCKER = "docker"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is asked of a builder. The same order gives the same bytes."""

    image: ImageSet
    wheels: Path
    """The second context, as `wheelhouse.py` fills it."""
    base: str
    """Reference of the base image, with a digest where it comes from a registry."""
    reference: str
    archive: Path
    epoch: int
    revision: str
    compress: bool = True
    """Not, or hardly, for an archive that stays on this machine."""
    fresh: bool = False
    """Take no layer from an earlier build."""
    offline: bool = True
    """The base has everything: the build gets no network."""

    @property
    def arguments(self) -> dict[str, str]:
        """Build arguments of the Containerfile."""
        layers = [layer for layer in Layer if self.image.hardware or layer in (Layer.REST, Layer.CODE)]
        created = datetime.fromtimestamp(self.epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "BASE_IMAGE": self.base,
            **{f"{layer.name}_SHA256": self._hash(f"{layer.value}.txt") for layer in layers},
            **({"HARDWARE": self.image.hardware} if self.image.hardware else {}),
            "VERSION": version(),
            "REVISION": self.revision,
            "CREATED": created,
        }

    def _hash(self, requirements: str) -> str:
        """Of everything that a layer is made from."""
        made_from = (self.wheels / name for name in (requirements, *self.image.programs))
        return hashlib.sha256(b"".join(path.read_bytes() for path in made_from)).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    archive: Path
    digest: str
    """Of the manifest: what a registry calls the image."""
    compressed_bytes: int
    layers: int


def find_engine(which: Callable[[str], str | None] = shutil.which) -> Engine:
    """buildah and podman need no daemon; docker counts only when its daemon answers. Raises BuildError."""
    for engine in (Engine.BUILDAH, Engine.PODMAN):
        if which(engine):
            return engine
    if which("docker") and _run(["docker", "info"]).returncode == 0:
        return Engine.DOCKER
    raise BuildError("no builder: install buildah or podman, or start a docker daemon")


def build_image(order: Order, engine: Engine) -> Built:
    """Build, write the archive, and read back what it is. Raises BuildError."""
    order.archive.parent.mkdir(parents=True, exist_ok=True)
    order.archive.unlink(missing_ok=True)
    _receipt(order).unlink(missing_ok=True)
    for command in commands(order, engine):
        _checked(command)
    return inspect(order.archive)


def built_before(order: Order, engine: Engine) -> Built | None:
    """What is at hand of the same order to the same builder."""
    try:
        if _receipt(order).read_text() == _order_sha256(order, engine):
            return inspect(order.archive)
    except FileNotFoundError:
        pass
    return None


def keep_receipt(order: Order, engine: Engine) -> None:
    """Of a finished build, for `built_before`."""
    _receipt(order).write_text(_order_sha256(order, engine))


def _receipt(order: Order) -> Path:
    return order.archive.with_suffix(".order")


def _order_sha256(order: Order, engine: Engine) -> str:
    """Of all that an image is made from: the builder's words, which hold the layers' hashes, and files they name."""
    files = (order.image.containerfile, order.wheels / "LICENSE", order.wheels / "sbom.cdx.json")
    words = json.dumps([commands(replace(order, fresh=False), engine), *(sha256(path) for path in files)])
    return hashlib.sha256(words.encode()).hexdigest()


def base_reference(archive: Path) -> str:
    """What `build_base` calls a root file system; it says what is in it."""
    return f"localhost/itrain/base:{sha256(archive)[:32]}"


def build_base(archive: Path, engine: Engine, *, epoch: int) -> None:
    """The root file system as an image in the builder's own store."""
    reference = base_reference(archive)
    containerfile = ROOT / "images/base/Containerfile"
    arguments = ["--build-arg", f"ROOTFS={archive.name}", "--file", str(containerfile), "--tag", reference]
    folder = BUILD / "base"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / archive.name).unlink(missing_ok=True)
    (folder / archive.name).hardlink_to(archive)
    if engine is Engine.DOCKER:
        _checked(["docker", "build", *arguments, "--build-arg", f"SOURCE_DATE_EPOCH={epoch}", str(folder)])
    else:
        _checked([*_builder(engine), *arguments, "--timestamp", str(epoch), str(folder)])


def commands(order: Order, engine: Engine) -> list[list[str]]:
    """The builder's command lines. Pure but for the digests of the layers' requirement files."""
    common = [
        *(word for name, value in order.arguments.items() for word in ("--build-arg", f"{name}={value}")),
        *("--build-context", f"wheels={order.wheels}"),
        *("--file", str(order.image.containerfile)),
        *("--tag", order.reference),
        *(["--no-cache"] if order.fresh else []),
    ]
    context = str(ROOT / "images")
    if engine is Engine.DOCKER:
        output = f"type=oci,dest={order.archive},rewrite-timestamp=true"
        output += "" if order.compress else ",compression=uncompressed"
        epoch = ["--build-arg", f"SOURCE_DATE_EPOCH={order.epoch}"]
        network = ["--network", "none"] if order.offline else []
        provenance = ["--provenance=false", "--output", output]  # a provenance names the machine and the moment
        return [["docker", "buildx", "build", *common, *epoch, *network, *provenance, context]]
    network = ["--network", "none"] if order.offline else []
    build = [*_builder(engine), *network, "--layers", "--timestamp", str(order.epoch), *common, context]
    target = f"oci-archive:{order.archive}:{order.reference}"
    if engine is Engine.PODMAN:
        plain = [] if order.compress else ["--uncompressed"]
        save = ["podman", "save", "--format", "oci-archive", *plain, "--output", str(order.archive)]
        return [build, [*save, order.reference]]
    # Its --disable-compression does nothing for an OCI archive.
    plain = [] if order.compress else ["--compression-level", "1"]
    return [build, ["buildah", "push", "--quiet", "--format", "oci", *plain, order.reference, target]]


def _builder(engine: Engine) -> list[str]:
    return [engine.value, "build", "--format", "oci", "--identity-label=false"]


def inspect(archive: Path) -> Built:
    """Digest and size of the one image in an OCI archive."""
    with tarfile.open(archive) as tar:
        index = _json(tar, "index.json")
        digest: str = index["manifests"][0]["digest"]
        manifest = _json(tar, f"blobs/{digest.replace(':', '/')}")
    layers = manifest["layers"]
    size = sum(int(blob["size"]) for blob in [manifest["config"], *layers])
    return Built(archive=archive, digest=digest, compressed_bytes=size, layers=len(layers))


def _json(tar: tarfile.TarFile, name: str) -> dict[str, Any]:
    file = tar.extractfile(name)
    if file is None:
        raise BuildError(f"the archive has no file {name}")
    found: dict[str, Any] = json.load(file)
    return found


def _checked(command: Sequence[str]) -> None:
    done = _run(command)
    if done.returncode:
        raise BuildError(f"{' '.join(command[:2])} failed:\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}")


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    environ = {"BUILDAH_ISOLATION": "chroot", **os.environ}  # needs neither a runtime nor the right to make namespaces
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
