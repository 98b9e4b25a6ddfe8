"""The operator's image as `make images` builds it, for tests that look into it or run it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from itrain_images.sets import BUILD, BY_NAME
from itrain_testing.apt import install_programs
from itrain_testing.cluster.access import ROOT
from itrain_testing.gotools import exclusively

OPERATOR = BY_NAME["operator"]
REFERENCE = OPERATOR.reference("localhost/itrain")
REPOSITORY = REFERENCE.rpartition(":")[0]


class BuildFailedError(Exception):
    """`make images` ended with an error: its last words."""


def build_operator_image() -> Path:
    """An OCI archive with the image REFERENCE (a minute; three where nothing is at hand).

    Raises ToolMissingError where nothing can build images.
    """
    install_programs(buildah="buildah", mmdebstrap="mmdebstrap")
    with exclusively("images"):
        command = ["make", "images", f"ONLY={OPERATOR.name}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildFailedError(f"{done.stdout[-1000:]}\n{done.stderr[-2000:]}")
    return BUILD / f"{OPERATOR.name}.tar"
