"""The operator's image, built here and installed by the chart on a real node; what it must not tell of this machine."""

from __future__ import annotations

import gzip
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from itrain_images.build import inspect
from itrain_images.sets import version
from itrain_testing.builtimages import OPERATOR, reference
from itrain_testing.chart import NAMESPACE, render
from itrain_testing.cluster import sessions
from itrain_testing.cluster.access import ROOT, Access, eventually
from itrain_testing.cluster.hostpython import IMAGE, USER
from itrain_testing.cluster.node import Node

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

PUBLIC = ("debian.org", "pypi" + ".org", "python" + "hosted.org")
"""Hosts that packages themselves mention."""
CHUNK = 1 << 20
REFERENCE = reference(OPERATOR)
REPOSITORY = REFERENCE.rpartition(":")[0]
LARGEST_OPERATOR = 150 << 20
"""Bytes, compressed."""


@pytest.fixture
def watched(node: Node, operator_archive: Path, chart_tools: None) -> Iterator[str]:
    """A namespace for runs, the chart's operator watching it; all of it is gone afterwards."""
    access = node.access
    node.containerd.load_image(operator_archive)
    with sessions.fresh_namespace(access) as runs:
        objects = operator_objects(runs)
        access.create_namespace(NAMESPACE)
        try:
            for name in (NAMESPACE, runs):
                access.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
            access.apply(*objects)
            yield runs
        finally:
            access.kubectl("delete", "namespace", NAMESPACE, "--wait=true", "--timeout=120s")


def operator_objects(runs: str) -> list[dict[str, Any]]:
    """The chart's objects; pods get their image and nothing else (`plain`), not this machine's Python."""
    values = {
        "image": {"repository": REPOSITORY, "pullPolicy": "Never"},
        "runtimeClassName": "plain",
        "replicas": 1,
        "resources": {"requests": {"cpu": "50m"}},
        "settings": {
            "namespaces": [runs],
            "defaultPool": "cpu",
            "images": {"cpu": {"pipeline": IMAGE}},
            "imagePullPolicy": "Never",
        },
        "crds": {"enabled": False},
        "rbac": {"userRoles": False},
    }
    return render(extra=values)


def test_the_chart_runs_the_image_and_its_operator_starts_a_runs_first_stage(node: Node, watched: str) -> None:
    access = node.access
    wait_until_available(access)
    run = {
        "apiVersion": "itrain.dev/v1alpha1",
        "kind": "ITrainRun",
        "metadata": {"name": "first", "namespace": watched},
        "spec": {
            "model": {"uri": "builtin://toolworld"},
            "data": {"uri": "builtin://toolworld?split=train&rows=8&seed=1"},
            "storage": {"uri": "s3://bucket/runs"},
        },
    }
    access.apply(run)
    jobs = eventually(lambda: access.get("jobs", namespace=watched)["items"], timeout_s=60, what="the first Job")
    (container,) = jobs[0]["spec"]["template"]["spec"]["containers"]
    assert (container["image"], container["command"][-1]) == (IMAGE, "prepare")
    assert access.get("itr", "first", namespace=watched)["status"]["stage"] == "prepare"


def wait_until_available(access: Access) -> None:
    """Probes answer, so the operator has seen the cluster."""
    done = access.try_kubectl("rollout", "status", "deployment/itrain", "--timeout=120s", namespace=NAMESPACE)
    if done.returncode:
        said = access.try_kubectl("describe", "pods", namespace=NAMESPACE).stdout[-3000:]
        logs = access.try_kubectl("logs", "deployment/itrain", namespace=NAMESPACE)
        raise AssertionError(f"{done.stderr}\n{said}\n{logs.stdout}{logs.stderr}")


def test_the_operators_image_is_small(operator_archive: Path) -> None:
    assert inspect(operator_archive).compressed_bytes <= LARGEST_OPERATOR


def test_the_itrain_command_runs_as_nobody_in_particular_on_a_read_only_root(
    node: Node, operator_archive: Path
) -> None:
    node.containerd.load_image(operator_archive)
    with sessions.fresh_namespace(node.access) as namespace:
        node.access.create(
            pod("itrain version && id -u && ! touch /opt/itrain/x 2> /dev/null && ! command -v gcc"),
            namespace=namespace,
        )
        eventually(lambda: phase(node.access, namespace) in ("Succeeded", "Failed"), timeout_s=90, what="the pod ended")
        said = node.access.kubectl("logs", "command", namespace=namespace).splitlines()
        assert phase(node.access, namespace) == "Succeeded", said
        assert said[0] == f"itrain {version()}"
        assert said[1] == str(USER + 1)


def pod(script: str) -> dict[str, Any]:
    """Another user than the image's own, as OpenShift chooses one."""
    restricted = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    container = {
        "name": "command",
        "image": REFERENCE,
        "imagePullPolicy": "Never",
        "command": ["sh", "-c", script],
        "securityContext": restricted,
    }
    user = {"runAsNonRoot": True, "runAsUser": USER + 1, "runAsGroup": USER + 1}
    spec = {
        "restartPolicy": "Never",
        "runtimeClassName": "plain",
        "securityContext": {**user, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "command"}, "spec": spec}


def phase(access: Access, namespace: str) -> str:
    found: str = access.get("pod", "command", namespace=namespace)["status"].get("phase", "")
    return found


def test_no_layer_and_no_history_tells_where_packages_came_from_or_where_it_was_built(operator_archive: Path) -> None:
    words = sorted(traces())
    assert str(ROOT).encode() in words
    found: set[bytes] = set()
    with tarfile.open(operator_archive) as tar:
        for member in filter(tarfile.TarInfo.isfile, tar):
            file = tar.extractfile(member)
            assert file is not None, member.name
            compressed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            before = b""
            with gzip.GzipFile(fileobj=file) if compressed else file as blob:
                while chunk := blob.read(CHUNK):
                    found |= {word for word in words if word in before + chunk}
                    before = chunk[-256:]
    assert found == set()


def traces() -> set[bytes]:
    """This checkout's path, and every host that pip, uv or apt of this machine are told of, public ones left out."""
    settings = subprocess.run(["pip", "config", "list"], capture_output=True, text=True, check=False).stdout
    sources = [p.read_text() for p in Path("/etc/apt").rglob("*") if p.suffix in (".list", ".sources", ".conf")]
    environ = [v for k, v in os.environ.items() if k.upper().startswith(("PIP_", "UV_")) or k.upper().endswith("PROXY")]
    words = " ".join([settings, *sources, *environ]).replace("'", " ").replace('"', " ").split()
    hosts = {urlsplit(word.strip(";")).hostname or "" for word in words if "://" in word}
    own = {host for host in hosts if host and not host.endswith(PUBLIC)}
    return {str(ROOT).encode(), *(host.encode() for host in own)}
