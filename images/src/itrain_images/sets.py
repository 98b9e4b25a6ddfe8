"""Which images there are, and the requirement files that each is made of."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from itrain_images.locks import Layer, Pin, read_locks

ROOT = Path(__file__).resolve().parents[3]
BUILD = ROOT / "build/images"
HARDWARE = ("volta", "current", "cpu")
EVALUATION = "bfcl"
"""The lock of the BFCL checkers, which prepare and evaluate need in either image; installed without dependencies."""
CUDA_RUNTIME = frozenset({"nvidia-cuda-runtime"})
"""What torch asks whether there is a GPU, where there is none too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSet:
    """One image to build: a Containerfile with the packages for one kind of hardware."""

    image: str
    """Folder of the Containerfile and last part of the repository's name."""
    hardware: str = ""
    """One of HARDWARE; empty for the operator."""
    packages: tuple[str, ...]
    """Our own packages in it, as folders of the repository."""
    base: str
    """The base that `base.py` makes for it."""

    @property
    def name(self) -> str:
        return f"{self.image}-{self.hardware}" if self.hardware else self.image

    @property
    def locks(self) -> tuple[Path, ...]:
        files = (self.name,) if self.image == "operator" else (self.name, EVALUATION)
        return tuple(ROOT / "requirements" / f"{file}.txt" for file in files)

    @property
    def pins(self) -> list[Pin]:
        """What is installed. On a CPU nothing calls CUDA or Triton: `images/standins` has what torch is linked to."""
        found = read_locks(self.locks)
        if self.hardware != "cpu":
            return found
        return [pin for pin in found if pin.name in CUDA_RUNTIME or not self._is_of_gpus(pin)]

    @staticmethod
    def _is_of_gpus(pin: Pin) -> bool:
        return pin.layer is Layer.CUDA or pin.name == "triton"

    @property
    def programs(self) -> tuple[str, ...]:
        """Of the folder images/, run inside the build."""
        return ("install", "standins") if self.hardware == "cpu" else ("install",)

    @property
    def containerfile(self) -> Path:
        return ROOT / "images" / self.image / "Containerfile"

    @property
    def folder(self) -> Path:
        """The build's second context: wheels, the parts of the lock, the SBOM."""
        return BUILD / self.name

    def reference(self, prefix: str) -> str:
        """`<prefix>/trainer:0.1.0-volta`."""
        tag = f"{version()}-{self.hardware}" if self.hardware else version()
        return f"{prefix}/{self.image}:{tag}"


def version() -> str:
    """Of the operator's package, which the chart's default tag follows."""
    found: str = tomllib.loads((ROOT / "operator/pyproject.toml").read_text())["project"]["version"]
    return found


IMAGES = (
    ImageSet(image="operator", packages=("crds", "operator"), base="python"),
    *(
        ImageSet(image=image, hardware=hardware, packages=("crds", "pipeline"), base="compiler")
        for image in ("trainer", "rollout")
        for hardware in HARDWARE
    ),
)
BY_NAME = {each.name: each for each in IMAGES}
