"""Where the programs of a cluster come from: KUBEBUILDER_ASSETS, PATH, then Go modules and Debian packages.

Installed Kubernetes programs are taken when their version is the pinned one or one minor version newer: kubectl and the
controllers may be one apart from the API server, no more.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path

from itrain_testing.cluster.debian import unpacked
from itrain_testing.gotools import MODULES, ToolMissingError, go_tool

CONTROL_PLANE = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
NODE = ("kubelet", "kube-proxy")
COLD_BUILD = {"kube-apiserver": "about five minutes on two cores", "kubelet": "about three minutes on two cores"}


@functools.cache
def kubernetes_version() -> str:
    """`1.34.4`: what tests/support/tools/kubernetes pins."""
    found = re.search(r"^require k8s.io/kubernetes v(\S+)$", (MODULES / "kubernetes/go.mod").read_text(), re.MULTILINE)
    if not found:
        raise ValueError("tests/support/tools/kubernetes/go.mod requires no k8s.io/kubernetes")
    return found[1]


@functools.cache
def kubernetes(name: str) -> Path:
    """One of Kubernetes' own programs; raises ToolMissingError."""
    found = installed(name)
    if found and _fits(found, name):
        return found
    return go_tool(
        "kubernetes",
        f"k8s.io/kubernetes/cmd/{name}",
        linked=_version_stamp(),
        takes=COLD_BUILD.get(name, "a minute or two"),
    )


@functools.cache
def etcd() -> Path:
    return installed("etcd") or unpacked("etcd-server") / "usr/bin/etcd"


@functools.cache
def coredns() -> Path:
    return installed("coredns") or go_tool("coredns", "itrain.dev/tools/coredns", takes="a minute or two")


def installed(name: str) -> Path | None:
    """The program in KUBEBUILDER_ASSETS or on PATH."""
    folders = [os.environ.get("KUBEBUILDER_ASSETS", ""), os.environ.get("PATH", "")]
    found = shutil.which(name, path=os.pathsep.join(folder for folder in folders if folder))
    return Path(found) if found else None


def missing(names: tuple[str, ...] = CONTROL_PLANE) -> str:
    """Why these programs cannot be had, in one line; empty when they can. Builds what is not built yet."""
    try:
        if names is CONTROL_PLANE:
            etcd()
        for name in names:
            kubernetes(name)
    except ToolMissingError as error:
        return str(error)
    return "" if shutil.which("openssl") else "openssl is not installed: it makes the cluster's certificates"


def _fits(binary: Path, name: str) -> bool:
    arguments = ["version", "--client"] if name == "kubectl" else ["--version"]
    said = subprocess.run([str(binary), *arguments], capture_output=True, text=True, check=False).stdout
    found = re.search(r"v1\.(\d+)\.", said)
    pinned = int(kubernetes_version().split(".")[1])
    return found is not None and int(found[1]) in (pinned, pinned + 1)


def _version_stamp() -> str:
    """Linker flags: without them the programs say v0.0.0, which charts and clients refuse."""
    version = kubernetes_version()
    major, minor, _ = version.split(".")
    package = "k8s.io/component-base/version"
    return f"-X {package}.gitVersion=v{version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"
