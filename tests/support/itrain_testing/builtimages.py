"""Images as `make images` builds them, for tests that look into them or run them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from itrain_images.sets import BUILD, BY_NAME
from itrain_testing.apt import install_programs
from itrain_testing.cluster.access import ROOT
from itrain_testing.gotools import exclusively

OPERATOR, PIPELINE = "operator", "trainer-cpu"
"""The second runs every stage on machines without a GPU, with the transformers engine."""
PREFIX = "localhost/itrain"


class BuildFailedError(Exception):
    """`make images` ended with an error: its last words."""


def reference(image: str) -> str:
    return BY_NAME[image].reference(PREFIX)


def build_image(image: str) -> Path:
    """An OCI archive with the image `reference(image)`, at once where nothing has changed since it was built.

    Raises ToolMissingError where nothing can build images.
    """
    install_programs(buildah="buildah", mmdebstrap="mmdebstrap")
    with exclusively("images"):
        command = ["make", "images", f"ONLY={image}", f"UNCOMPRESSED={'1' if image == PIPELINE else ''}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildFailedError(f"{done.stdout[-1000:]}\n{done.stderr[-2000:]}")
    return BUILD / f"{image}.tar"
