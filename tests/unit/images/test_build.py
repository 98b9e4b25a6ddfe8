"""What a builder is asked for, and what is read back from an archive."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from itrain_images import base
from itrain_images.build import (
    BuildError,
    Engine,
    Order,
    build_image,
    built_before,
    commands,
    find_engine,
    inspect,
    keep_receipt,
)
from itrain_images.locks import Layer
from itrain_images.sets import BY_NAME, ROOT


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    for layer in Layer:
        (tmp_path / f"{layer.value}.txt").write_text(f"{layer.value}==1\n")
    (tmp_path / "install").write_text("#!/usr/bin/env python3\n")
    return tmp_path


def order(wheels: Path, *, offline: bool = True, fresh: bool = False) -> Order:
    return Order(
        image=BY_NAME["trainer-volta"],
        wheels=wheels,
        base="base@sha256:1",
        reference="r.example/itrain/trainer:1-volta",
        archive=Path("/out/trainer-volta.tar"),
        epoch=1_700_000_000,
        revision="abc",
        offline=offline,
        fresh=fresh,
    )


def test_buildah_keeps_layers_sets_every_time_and_gets_no_network(wheels: Path) -> None:
    build, push = commands(order(wheels), Engine.BUILDAH)
    assert build[:2] == ["buildah", "build"]
    assert build[-1] == str(ROOT / "images")
    text = " ".join(build)
    assert "--layers --timestamp 1700000000" in text
    assert "--network none" in text
    assert f"--build-context wheels={wheels}" in text
    assert "--no-cache" not in text
    assert push[-2:] == [order(wheels).reference, "oci-archive:/out/trainer-volta.tar:r.example/itrain/trainer:1-volta"]


def test_an_archive_for_this_machine_is_hardly_compressed(wheels: Path) -> None:
    plain = replace(order(wheels), compress=False)
    assert "--compression-level 1 " in " ".join(commands(plain, Engine.BUILDAH)[1])
    assert "--uncompressed" in commands(plain, Engine.PODMAN)[1]
    assert any(word.endswith(",compression=uncompressed") for word in commands(plain, Engine.DOCKER)[0])
    for engine in Engine:
        assert "compress" not in " ".join(commands(order(wheels), engine)[-1])


def test_a_base_from_a_registry_needs_the_network_and_a_second_build_no_cache(wheels: Path) -> None:
    build = commands(order(wheels, offline=False, fresh=True), Engine.PODMAN)[0]
    assert "--network" not in build
    assert "--no-cache" in build


def test_docker_writes_the_archive_itself_with_times_rewritten(wheels: Path) -> None:
    (build,) = commands(order(wheels), Engine.DOCKER)
    assert build[:3] == ["docker", "buildx", "build"]
    assert "type=oci,dest=/out/trainer-volta.tar,rewrite-timestamp=true" in build
    assert "SOURCE_DATE_EPOCH=1700000000" in build
    assert "--provenance=false" in build


def test_a_layers_argument_changes_with_its_packages_alone(wheels: Path) -> None:
    before = order(wheels).arguments
    (wheels / "torch.txt").write_text("torch==2\n")
    after = order(wheels).arguments
    assert {name for name in before if before[name] != after[name]} == {"TORCH_SHA256"}
    (wheels / "install").write_text("changed\n")
    every = order(wheels).arguments
    assert {name for name in before if after[name] != every[name]} == {f"{layer.name}_SHA256" for layer in Layer}
    assert (before["HARDWARE"], before["CREATED"]) == ("volta", "2023-11-14T22:13:20Z")


def test_builders_without_a_daemon_come_first_and_none_is_said_plainly() -> None:
    assert find_engine({"buildah": "/b", "podman": "/p"}.get) is Engine.BUILDAH
    assert find_engine({"podman": "/p"}.get) is Engine.PODMAN
    with pytest.raises(BuildError, match="install buildah or podman"):
        find_engine({}.get)


def write_archive(path: Path) -> str:
    """An archive of two layers; its manifest's digest."""
    layers = [{"digest": "sha256:1", "size": 70}, {"digest": "sha256:2", "size": 20}]
    manifest = json.dumps({"config": {"size": 5}, "layers": layers}).encode()
    digest = hashlib.sha256(manifest).hexdigest()
    files = {
        "index.json": json.dumps({"manifests": [{"digest": f"sha256:{digest}"}]}).encode(),
        f"blobs/sha256/{digest}": manifest,
    }
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return f"sha256:{digest}"


def test_digest_and_size_are_the_manifests(tmp_path: Path) -> None:
    digest = write_archive(tmp_path / "x.tar")
    found = inspect(tmp_path / "x.tar")
    assert (found.digest, found.compressed_bytes, found.layers) == (digest, 95, 2)


@pytest.fixture
def finished(wheels: Path) -> Order:
    """An order whose archive is there, with its receipt."""
    for name in ("LICENSE", "sbom.cdx.json"):
        (wheels / name).write_text(name)
    made = replace(order(wheels), archive=wheels / "trainer-volta.tar")
    write_archive(made.archive)
    keep_receipt(made, Engine.BUILDAH)
    return made


def test_what_was_built_of_the_same_order_is_not_built_again(finished: Order) -> None:
    found = built_before(finished, Engine.BUILDAH)
    assert found is not None
    assert (found.archive, found.layers) == (finished.archive, 2)
    assert built_before(replace(finished, fresh=True), Engine.BUILDAH) == found


@pytest.mark.parametrize("file", ["torch.txt", "install", "LICENSE", "sbom.cdx.json"])
def test_a_changed_file_is_another_order(finished: Order, file: str) -> None:
    (finished.wheels / file).write_text("changed")
    assert built_before(finished, Engine.BUILDAH) is None


def test_another_base_revision_or_builder_is_another_order(finished: Order) -> None:
    assert built_before(finished, Engine.PODMAN) is None
    assert built_before(replace(finished, base="base@sha256:2"), Engine.BUILDAH) is None
    assert built_before(replace(finished, revision="def"), Engine.BUILDAH) is None


def test_an_archive_that_is_gone_or_was_not_finished_is_built(finished: Order, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises((BuildError, OSError)):
        build_image(finished, Engine.BUILDAH)
    assert built_before(finished, Engine.BUILDAH) is None


def test_packages_come_from_what_is_named_then_from_the_same_debian_then_from_its_mirror(tmp_path: Path) -> None:
    own = tmp_path / "debian.sources"
    own.write_text("Types: deb\nSuites: bookworm bookworm-updates\n")
    assert base.debian_sources({base.ENV_SOURCES: "http://mirror.example"}.get, own) == "http://mirror.example"
    assert base.debian_sources({}.get, own) == str(own)
    own.write_text("Types: deb\nSuites: trixie\n")
    assert base.debian_sources({}.get, own) == ""
    assert base.debian_sources({}.get, tmp_path / "absent") == ""


def test_a_base_leaves_out_this_machines_names_and_sources() -> None:
    command = base.build_command("python", Path("base.tar"), sources="http://mirror.example")
    assert command[-3:] == ["bookworm", "base.tar", "http://mirror.example"]
    removing = next(word for word in command if word.startswith("--customize-hook=rm"))
    for path in ("etc/apt/sources.list", "etc/resolv.conf", "etc/hostname", "var/log/*"):
        assert f'"$1"/{path}' in removing
