"""A volume claim on the test's node: a folder of this machine, so that a test sees what pods wrote there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from itrain_contract.loading import load_run
from itrain_testing.cluster.access import ROOT
from itrain_testing.nodesite import TeamSite
from itrain_testing.watchrun import WatchedRun

CLAIM = "artifacts"


def make_claim(site: TeamSite, folder: Path) -> None:
    """A volume that is `folder`, bound to the claim `artifacts` of the site's namespace.

    A hostPath volume knows no fsGroup: the folder is open to everybody instead.
    """
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    name = f"artifacts-{site.namespace}"
    shared: dict[str, Any] = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            **shared,
            "capacity": {"storage": "10Gi"},
            "hostPath": {"path": str(folder), "type": "Directory"},
            "claimRef": {"namespace": site.namespace, "name": CLAIM},
        },
    }
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": CLAIM, "namespace": site.namespace},
        "spec": {**shared, "volumeName": name, "resources": {"requests": {"storage": "10Gi"}}},
    }
    site.access.apply(volume, claim)


def apply_on_claim(site: TeamSite, name: str) -> WatchedRun:
    """A tiny run without its evaluations, its artifacts on the claim."""
    document = load_run(ROOT / "crds/examples/tiny.yaml").model_dump(mode="json", by_alias=True, exclude_unset=True)
    document["metadata"] = {"name": name, "namespace": site.namespace}
    document["spec"]["storage"] = {"pvc": {"claimName": CLAIM}}
    for stage in document["spec"]["stages"].values():
        stage["retry"] = {"limit": 3, "backoffSeconds": 1}
    document["spec"]["stages"]["evaluate"]["enabled"] = False
    site.access.apply(document)
    return WatchedRun(cluster=site.access, namespace=site.namespace, name=name)
