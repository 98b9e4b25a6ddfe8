"""The bill of materials: every wheel and Debian package once, and the same bytes each time."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

from itrain_images.files import sha256
from itrain_images.locks import Layer
from itrain_images.sbom import DPKG_STATUS, build_sbom
from itrain_images.wheelhouse import Wheel

EPOCH = 1_700_000_000
STATUS = """Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9+deb12u1
Description: a library
 of several lines

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1.0
"""


def wheel(folder: Path, name: str, *lines: str) -> Wheel:
    path = folder / f"{name}-1.0-py3-none-any.whl"
    metadata = [f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0", *lines]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}-1.0.dist-info/METADATA", "\n".join(metadata) + "\n\nA description.\n")
    return Wheel(path=path, sha256=sha256(path), layer=Layer.REST)


def base(folder: Path) -> Path:
    path = folder / "base.tar"
    with tarfile.open(path, "w") as archive:
        entry = tarfile.TarInfo(DPKG_STATUS)
        entry.size = len(STATUS)
        archive.addfile(entry, io.BytesIO(STATUS.encode()))
    return path


def made(folder: Path, *, epoch: int = EPOCH) -> str:
    wheels = [
        wheel(folder, "upper", "License-Expression: MIT", "Requires-Dist: lower_one>=1", "Requires-Dist: absent"),
        wheel(folder, "lower_one", "Classifier: License :: OSI Approved :: BSD License"),
        wheel(folder, "optional", "Requires-Dist: upper; extra == 'more'", "License: " + "text " * 40),
    ]
    return build_sbom("operator", "0.1.0", wheels, base(folder), epoch=epoch)


def by_name(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {component["name"]: component for component in document["components"]}


def test_wheels_and_installed_debian_packages_are_listed_with_hash_and_license(tmp_path: Path) -> None:
    document = json.loads(made(tmp_path))
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    found = by_name(document)
    assert {name: component["purl"] for name, component in found.items()} == {
        "libc6": "pkg:deb/debian/libc6@2.36-9%2Bdeb12u1?arch=amd64&distro=debian-12",
        "lower-one": "pkg:pypi/lower-one@1.0",
        "optional": "pkg:pypi/optional@1.0",
        "upper": "pkg:pypi/upper@1.0",
    }
    assert found["upper"]["hashes"] == [
        {"alg": "SHA-256", "content": sha256(tmp_path / "upper-1.0-py3-none-any.whl")},
    ]
    assert found["upper"]["licenses"] == [{"license": {"id": "MIT"}}]
    assert found["lower-one"]["licenses"] == [{"license": {"name": "BSD License"}}]
    assert "licenses" not in found["optional"]


def test_dependencies_are_those_within_the_image(tmp_path: Path) -> None:
    graph = {d["ref"]: d.get("dependsOn", []) for d in json.loads(made(tmp_path))["dependencies"]}
    assert graph["pkg:pypi/upper@1.0"] == ["pkg:pypi/lower-one@1.0"]
    assert graph["pkg:pypi/optional@1.0"] == []
    assert len(graph["itrain/operator"]) == 4


def test_the_same_packages_give_the_same_bytes_and_others_another_serial_number(tmp_path: Path) -> None:
    first = made(tmp_path)
    assert made(tmp_path) == first
    other = json.loads(build_sbom("operator", "0.1.0", [wheel(tmp_path, "upper")], None, epoch=EPOCH))
    assert other["serialNumber"] != json.loads(first)["serialNumber"]
    assert json.loads(first)["metadata"]["timestamp"] == "2023-11-14T22:13:20+00:00"
