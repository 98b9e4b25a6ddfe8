"""The programs and schemas by which the chart is tested: built or downloaded by Go from pinned modules."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from pathlib import Path

from itrain_testing.cluster.binaries import installed
from itrain_testing.gotools import MODULES, ToolMissingError, go_tool

HELM_MAJOR = "v4."


@functools.cache
def helm() -> Path:
    """The one on PATH when it is of the pinned major version, or a build (two or three minutes on two cores, once)."""
    found = installed("helm")
    if found is not None and _version(found).startswith(HELM_MAJOR):
        return found
    return go_tool("helm", "helm.sh/helm/v4/cmd/helm", takes="two or three minutes on two cores")


@functools.cache
def helm_unittest() -> Path:
    """helm-unittest as a program of its own: it needs no Helm and no plugin."""
    package = "github.com/helm-unittest/helm-unittest/cmd/helm-unittest"
    return go_tool("helm-unittest", package, takes="about four minutes on two cores")


@functools.cache
def kubernetes_openapi() -> Path:
    """swagger.json of the pinned Kubernetes."""
    return module_source("kubernetes", "k8s.io/kubernetes") / "api/openapi-spec/swagger.json"


@functools.cache
def prometheus_operator_crds() -> Path:
    """The folder with the Prometheus Operator's CRDs."""
    module = module_source("monitoring", "github.com/prometheus-operator/prometheus-operator")
    return module / "example/prometheus-operator-crd"


def missing() -> str:
    """Why the chart cannot be rendered and checked, in one line; empty when it can. Builds what is not built yet."""
    try:
        helm()
        kubernetes_openapi()
        prometheus_operator_crds()
    except ToolMissingError as error:
        return str(error)
    return ""


def module_source(folder: str, module: str) -> Path:
    """The unpacked source of a module that tests/support/tools/`folder` pins; go.sum proves it. Builds nothing."""
    if shutil.which("go") is None:
        raise ToolMissingError(f"go is not installed to download {module}")
    command = ["go", "mod", "download", "-json", module]
    done = subprocess.run(command, cwd=MODULES / folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolMissingError(f"{module} cannot be downloaded: {(done.stderr or done.stdout).strip()[-500:]}")
    return Path(json.loads(done.stdout)["Dir"])


def _version(binary: Path) -> str:
    command = [str(binary), "version", "--template", "{{.Version}}"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout
