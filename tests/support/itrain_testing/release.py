"""The chart as a platform engineer installs it: by Helm, on the test's node, with the image of `make images`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from itrain_testing import charttools, nodesite
from itrain_testing.builtimages import OPERATOR, PIPELINE, reference
from itrain_testing.chart import CHART, NAMESPACE, RELEASE
from itrain_testing.cluster.access import Access
from itrain_testing.rights import Rights

ACCOUNT = f"system:serviceaccount:{NAMESPACE}:{RELEASE}"
CRD = "crd/itrainruns.itrain.dev"
DEPLOYMENT = f"deployment/{RELEASE}"
GPU_IMAGES = {
    pool: {kind: f"registry.example/itrain/{kind}:0.1.0-{pool}" for kind in ("trainer", "rollout")}
    for pool in ("volta", "current")
}
"""Of nodes that pull nothing."""
BUILT_SETTINGS: dict[str, Any] = {
    **nodesite.SETTINGS,
    "images": {"cpu": {"pipeline": reference(PIPELINE)}, **GPU_IMAGES},
    "pools": {
        "cpu": {"runtimeClassName": "plain"},
        "volta": {
            "tolerations": [
                {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
                {"key": "dedicated", "operator": "Equal", "value": "v100", "effect": "NoSchedule"},
            ]
        },
    },
}
"""Images that were built here and nothing of this machine beside them; pools as a platform engineer names them."""


class HelmError(Exception):
    """Helm refused: its words."""


class Release:
    """`helm` on one release in one namespace. `folder` is for values and charts, `settings` are the operator's."""

    def __init__(self, access: Access, folder: Path, settings: dict[str, Any] = nodesite.SETTINGS) -> None:
        self._access = access
        self._folder = folder
        repository, _, tag = reference(OPERATOR).rpartition(":")
        self.values: dict[str, Any] = {
            "image": {"repository": repository, "tag": tag, "pullPolicy": "Never"},
            "runtimeClassName": "plain",
            "settings": settings,
        }

    def install(self, chart: Path = CHART) -> str:
        """What Helm says in the end; raises HelmError."""
        return self._helm("install", RELEASE, str(chart), "--create-namespace", *self._given())

    def upgrade(self, chart: Path = CHART, **values: Any) -> None:
        self._helm("upgrade", RELEASE, str(chart), *self._given(**values))

    def rollback(self) -> None:
        self._helm("rollback", RELEASE)

    def uninstall(self) -> None:
        self._helm("uninstall", RELEASE, "--wait")

    def history(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self._helm("history", RELEASE, "--output", "json"))
        return found

    def wait(self, timeout_s: int = 120) -> None:
        """Until every replica of the newest revision is ready."""
        self._access.kubectl("rollout", "status", DEPLOYMENT, f"--timeout={timeout_s}s", namespace=NAMESPACE)

    def pods(self) -> list[dict[str, Any]]:
        return list(self._access.get("pods", namespace=NAMESPACE)["items"])

    def logs(self) -> list[str]:
        """Of every replica that is there."""
        names = [pod["metadata"]["name"] for pod in self.pods()]
        return [self._access.try_kubectl("logs", name, namespace=NAMESPACE).stdout for name in names]

    def leader(self) -> str:
        """The pod that holds the Lease."""
        lease = self._access.get("lease", RELEASE, namespace=NAMESPACE)
        return str(lease["spec"].get("holderIdentity") or "").partition("_")[0]

    def _given(self, **values: Any) -> tuple[str, str]:
        file = self._folder / "values.json"
        file.write_text(json.dumps({**self.values, **values}))
        return "--values", str(file)

    def _helm(self, *arguments: str) -> str:
        command = [str(charttools.helm()), *arguments, "--namespace", NAMESPACE]
        environ = {
            **os.environ,
            "KUBECONFIG": str(self._access.kubeconfig),
            **{f"HELM_{kind}_HOME": str(self._folder / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")},
        }
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        if done.returncode:
            raise HelmError(done.stderr.strip())
        return done.stdout


def chart_of_version(version: str, folder: Path) -> Path:
    """The chart as another release of it would be."""
    copied = folder / f"itrain-{version}"
    shutil.copytree(CHART, copied)
    lines = (copied / "Chart.yaml").read_text().splitlines()
    (copied / "Chart.yaml").write_text(
        "\n".join(f"version: {version}" if line.startswith("version:") else line for line in lines) + "\n"
    )
    return copied


def asked(events: list[dict[str, Any]], user: str = ACCOUNT) -> tuple[Rights, list[str]]:
    """From an audit log: what a user asked for, and the requests that RBAC forbade."""
    rights: Rights = defaultdict(set)
    refused = []
    for event in events:
        if event["user"]["username"] != user or "objectRef" not in event:
            continue
        reference = event["objectRef"]
        resource = "/".join(filter(None, (reference["resource"], reference.get("subresource"))))
        rights[reference.get("apiGroup", ""), resource].add(event["verb"])
        if event.get("annotations", {}).get("authorization.k8s.io/decision") == "forbid":
            refused.append(f"{event['verb']} {event['requestURI']}")
    return dict(rights), refused


@contextmanager
def new_release(access: Access, folder: Path, settings: dict[str, Any] = nodesite.SETTINGS) -> Iterator[Release]:
    """The release before the current one, in a cluster new to iTrain; afterwards the resource is there again."""
    access.kubectl("delete", CRD, "--ignore-not-found", "--wait")
    made = Release(access, folder, settings)
    try:
        said = made.install(chart_of_version("0.0.1", folder))
        assert "kubectl apply -f run.yaml" in said  # the next command
        made.wait()
        yield made
    finally:
        access.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait", "--timeout=120s")
        access.kubectl("delete", CRD, "--ignore-not-found", "--wait")
        access.apply_crd()
