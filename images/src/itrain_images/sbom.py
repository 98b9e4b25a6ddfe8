"""A software bill of materials (CycloneDX 1.6, JSON): the wheels of an image and its base's Debian packages.

The same inputs give the same bytes: the time is SOURCE_DATE_EPOCH, the serial number follows from what is listed.
"""

from __future__ import annotations

import email.parser
import tarfile
import uuid
import zipfile
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from email.message import Message
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from itrain_images.wheelhouse import Wheel

NAMESPACE = uuid.UUID("6f1c2b1e-6c0b-5d0f-9a53-0d6f0c1f5b8a")
LONGEST_LICENSE = 80
"""Characters; a longer License field is the text itself."""
DPKG_STATUS = "./var/lib/dpkg/status"


def build_sbom(name: str, version: str, wheels: Iterable[Wheel], base: Path | None, *, epoch: int) -> str:
    """The document of the image `name`; `base` is the base's archive, None when the base is somebody else's."""
    image = Component(name=f"itrain/{name}", version=version, type=ComponentType.CONTAINER, bom_ref=f"itrain/{name}")
    metadata = {wheel.name: _metadata(wheel.path) for wheel in wheels}
    components = {wheel.name: _python(wheel, metadata[wheel.name]) for wheel in wheels}
    debian = [_debian(package) for package in (_installed(base) if base else ())]
    listed = [*components.values(), *debian]
    serial = uuid.uuid5(NAMESPACE, "\n".join([f"{name}=={version}", *sorted(_identity(c) for c in listed)]))
    bom = Bom(components=listed, serial_number=serial)
    bom.metadata.component = image
    bom.metadata.timestamp = datetime.fromtimestamp(epoch, UTC)
    bom.register_dependency(image, listed)
    for own, component in components.items():
        needed = {canonicalize_name(r.name) for r in _requirements(metadata[own])}
        bom.register_dependency(component, [components[n] for n in sorted(needed & components.keys())])
    return JsonV1Dot6(bom).output_as_string(indent=1) + "\n"


def _identity(component: Component) -> str:
    return " ".join([str(component.purl), *(h.content for h in component.hashes)])


def _python(wheel: Wheel, metadata: Message) -> Component:
    purl = PackageURL(type="pypi", name=wheel.name, version=wheel.version)
    found = _license(metadata)
    return Component(
        name=wheel.name,
        version=wheel.version,
        type=ComponentType.LIBRARY,
        purl=purl,
        bom_ref=purl.to_string(),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=wheel.sha256)],
        licenses=[LicenseFactory().make_from_string(found)] if found else [],
    )


def _license(metadata: Message) -> str:
    """What the package says of itself: an SPDX expression, a short name, or a classifier."""
    expression = metadata["License-Expression"] or metadata["License"] or ""
    if expression and len(expression) <= LONGEST_LICENSE and "\n" not in expression:
        return str(expression)
    names = [str(line) for line in metadata.get_all("Classifier", []) if str(line).startswith("License ::")]
    return names[0].rpartition(":: ")[2] if names else ""


def _requirements(metadata: Message) -> Iterator[Requirement]:
    for line in metadata.get_all("Requires-Dist", []):
        requirement = Requirement(str(line))
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement


def _metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        inner = next(n for n in archive.namelist() if n.count("/") == 1 and n.endswith(".dist-info/METADATA"))
        return email.parser.Parser().parsestr(archive.read(inner).decode())


def _debian(package: Message) -> Component:
    name, version = str(package["Package"]), str(package["Version"])
    qualifiers = {"arch": str(package["Architecture"]), "distro": "debian-12"}
    purl = PackageURL(type="deb", namespace="debian", name=name, version=version, qualifiers=qualifiers)
    return Component(name=name, version=version, type=ComponentType.LIBRARY, purl=purl, bom_ref=purl.to_string())


def _installed(base: Path) -> list[Message]:
    """The installed packages of a Debian root file system in a tar."""
    with tarfile.open(base) as archive:
        file = archive.extractfile(DPKG_STATUS)
        if file is None:
            raise ValueError(f"{base}: {DPKG_STATUS} is no file")
        status = file.read().decode()
    packages = [email.parser.Parser().parsestr(block) for block in status.strip().split("\n\n")]
    return [package for package in packages if str(package["Status"]) == "install ok installed"]
