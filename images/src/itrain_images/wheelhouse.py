"""An image's packages as wheels in a folder, so that the build itself needs no package index.

What is downloaded is verified against the lock by pip, which uses this machine's own index settings; none of them can
reach the image. Sources (deepspeed, our packages) become wheels here. The folder then has one requirement file for each
layer, with the hash of the very file that is installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from itrain_images.files import sha256, tree_sha256
from itrain_images.locks import Layer, Pin, read_lock
from itrain_images.sets import BUILD, ROOT, ImageSet

PYTHON_VERSION = "3.11"
"""Of Debian 12, the base of every image; the locks are resolved for it."""
GLIBC_MINOR = 31
"""The locks are resolved for glibc 2.31; Debian 12 has 2.36."""
SOURCES_ONLY = frozenset({"deepspeed"})
"""Packages that the index has as source only. Anything else without a wheel is an error."""
POOL = BUILD / "pool"
NOT_SOURCE = ("build", "*.egg-info", "__pycache__")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    path: Path
    sha256: str
    layer: Layer

    @property
    def name(self) -> str:
        return self.path.name.split("-")[0].lower().replace("_", "-").replace(".", "-")

    @property
    def version(self) -> str:
        return self.path.name.split("-")[1]


def make_wheelhouse(image: ImageSet, *, epoch: int) -> list[Wheel]:
    """Fill `image.folder`; its wheels, sorted by name. Raises CalledProcessError when pip cannot."""
    POOL.mkdir(parents=True, exist_ok=True)
    pins = image.pins
    files = _files_by_hash(POOL)
    if missing := [pin for pin in pins if not pin.hashes & files.keys()]:
        _download(missing)
        files = _files_by_hash(POOL)
    wheels = [_wheel(pin, files, epoch=epoch) for pin in pins]
    wheels += [_hashed(_build(ROOT / package, epoch=epoch), Layer.CODE) for package in image.packages]
    wheels.sort(key=lambda wheel: wheel.name)
    _fill(image.folder, wheels)
    _add_installer(image, _bootstrap(files))
    return wheels


def _wheel(pin: Pin, files: dict[str, Path], *, epoch: int) -> Wheel:
    digest = min(pin.hashes & files.keys(), key=lambda found: (files[found].suffix != ".whl", found))
    if files[digest].suffix == ".whl":
        return Wheel(path=files[digest], sha256=digest, layer=pin.layer)
    return _hashed(_build(files[digest], epoch=epoch), pin.layer)


def _bootstrap(files: dict[str, Path]) -> Path:
    """The wheel of uv."""
    (pin,) = read_lock(ROOT / "requirements/bootstrap.txt")
    if not pin.hashes & files.keys():
        _download([pin])
        files = _files_by_hash(POOL)
    return _wheel(pin, files, epoch=0).path


def _download(pins: list[Pin]) -> None:
    """The files of these pins into the pool, hashes verified by pip."""
    sources = [pin for pin in pins if pin.name in SOURCES_ONLY]
    common = ["--no-deps", "--require-hashes", "--dest", str(POOL)]
    with tempfile.TemporaryDirectory() as temp:
        if others := [pin for pin in pins if pin not in sources]:
            wheels = _requirements(Path(temp) / "wheels.txt", others)
            target = ["--python-version", PYTHON_VERSION, "--implementation", "cp", "--only-binary", ":all:"]
            _pip("download", *common, *target, *_platforms(), "--requirement", wheels)
        if sources:
            listed = _requirements(Path(temp) / "sources.txt", sources)
            _pip("download", *common, "--no-binary", ":all:", "--no-build-isolation", "--requirement", listed)


def _platforms() -> list[str]:
    """pip takes the platforms of a target literally: each older glibc has to be named."""
    names = [f"manylinux_2_{minor}_x86_64" for minor in range(GLIBC_MINOR, 4, -1)]
    aliases = ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]
    return [word for name in (*names, *aliases) for word in ("--platform", name)]


def _requirements(path: Path, pins: list[Pin]) -> str:
    lines = [
        " ".join([f"{pin.name}=={pin.version}", *(f"--hash=sha256:{digest}" for digest in sorted(pin.hashes))])
        for pin in pins
    ]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def _build(source: Path, *, epoch: int) -> Path:
    """The wheel of a source archive or of one of our packages, the same bytes whenever it is built."""
    content = sha256(source) if source.is_file() else tree_sha256(source, NOT_SOURCE)
    made = BUILD / "built" / str(epoch) / f"{source.name}-{content[:16]}"
    if found := list(made.glob("*.whl")):
        return found[0]
    shutil.rmtree(made, ignore_errors=True)
    environ = {"SOURCE_DATE_EPOCH": str(epoch), "DS_BUILD_OPS": "0", "PYTHONHASHSEED": "0"}
    with tempfile.TemporaryDirectory() as temp:
        if source.is_dir():
            clean = Path(temp) / source.name
            shutil.copytree(source, clean, ignore=shutil.ignore_patterns(*NOT_SOURCE))
            for path in (clean, *clean.rglob("*")):
                path.chmod(0o755 if path.is_dir() else 0o644)
            source = clean
        _pip(
            "wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(made), str(source), **environ
        )
    return next(made.glob("*.whl"))


def _pip(*arguments: str, **environ: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", arguments[0], "--quiet", *arguments[1:]]
    subprocess.run(command, check=True, env={**os.environ, **environ}, umask=0o022)


def _fill(folder: Path, wheels: list[Wheel]) -> None:
    """Replace the folder by links to the wheels and the layers' requirement files."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for wheel in wheels:
        (folder / wheel.path.name).hardlink_to(wheel.path)
    for layer in Layer:
        lines = [f"{w.name}=={w.version} --hash=sha256:{w.sha256}\n" for w in wheels if w.layer is layer]
        (folder / f"{layer.value}.txt").write_text("".join(lines))


def _add_installer(image: ImageSet, uv: Path) -> None:
    """The build mounts these and keeps none. A stage of its own would do, but buildah 1.28 mounts a stage that it
    takes from its cache as an empty folder."""
    folder = image.folder
    for program in image.programs:
        shutil.copy(ROOT / "images" / program, folder / program)
    with zipfile.ZipFile(uv) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".data/scripts/uv"))
        (folder / "uv").write_bytes(archive.read(name))
    for program in (*image.programs, "uv"):
        (folder / program).chmod(0o755)


def _files_by_hash(folder: Path) -> dict[str, Path]:
    return {sha256(path): path for path in sorted(folder.iterdir()) if path.is_file()}


def _hashed(path: Path, layer: Layer) -> Wheel:
    return Wheel(path=path, sha256=sha256(path), layer=layer)
