"""Faults that only a real node can show, in one run on a volume claim: a drain of the node, and a zombie pod."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from itrain_testing.claims import apply_on_claim, make_claim
from itrain_testing.cluster.access import eventually
from itrain_testing.cluster.node import NAME, Node
from itrain_testing.nodesite import NodeSite, running_site, stage_processes
from itrain_testing.watchrun import WatchedRun

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]
STAGE_S = 600.0
OWNERSHIP = ("batch.kubernetes.io/controller-uid", "controller-uid", "batch.kubernetes.io/job-name", "job-name")
"""The labels by which a Job knows its pods."""


@pytest.fixture
def site(node: Node, tmp_path: Path) -> Iterator[NodeSite]:
    with running_site(node, tmp_path) as installed:
        yield installed


def test_drained_and_haunted_a_run_on_a_volume_claim_ends_with_its_report(
    site: NodeSite, node: Node, tmp_path: Path
) -> None:
    folder = node.folder / "claim"
    make_claim(site, folder)
    run = apply_on_claim(site, "claim")
    run.wait_for_running("warmup", STAGE_S)
    drain(site, run)
    run.wait_for_running("train", STAGE_S)
    haunt(site, folder)
    status = run.wait(STAGE_S, phase=lambda phase: phase in ("Succeeded", "Failed"))
    assert (status["phase"], status["preemptions"], status["retries"]) == ("Succeeded", 1, 0), status

    done = site.itrain("report", "claim", "--out", str(tmp_path / "report.html"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "report.html").read_bytes() == next(folder.glob("claim-*/i0/export/a1/report.html")).read_bytes()

    asked = site.itrain("purge", "claim")
    assert (asked.returncode, "add --yes" in asked.stderr) == (64, True)
    assert list(folder.glob("claim-*/i1/train/a1/result.json"))
    purged = site.itrain("purge", "claim", "--yes")
    assert purged.returncode == 0, purged.stderr
    assert [path for path in folder.rglob("*") if path.is_file()] == []
    assert run.status()["phase"] == "Succeeded"


def drain(site: NodeSite, run: WatchedRun) -> None:
    """Before and after maintenance of the node: no pod stays, and the run says what it waits for."""
    site.access.kubectl("drain", NAME, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=120s")
    try:
        waiting = run.wait(STAGE_S, reason="WaitingForNodes", message=lambda said: "unschedulable" in (said or ""))
        assert (waiting["attempt"], waiting["preemptions"], waiting["retries"]) == (2, 1, 0)
        assert stage_processes("warmup") == []
    finally:
        site.access.kubectl("uncordon", NAME)
    assert run.wait_for_running("warmup", STAGE_S)["attempt"] == 2


def haunt(site: NodeSite, folder: Path) -> None:
    """A pod that the cluster has given up and that still writes: frozen, replaced, and thawed beside its successor.

    Without its labels the pod is the Job's no more, which makes another one; the kubelet runs both.
    """
    (zombie,) = [p for p in site.pods("claim", "train") if p["status"]["phase"] == "Running"]
    name = zombie["metadata"]["name"]
    first = eventually(lambda: lease(folder), timeout_s=STAGE_S, what="the training took its lease")
    frozen = stage_processes("train")
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    frozen_at = time.time()
    site.access.kubectl("label", "pod", name, *(f"{label}-" for label in OWNERSHIP), namespace=site.namespace)
    eventually(lambda: lease(folder) not in ({}, first), timeout_s=STAGE_S, what="the successor took the lease")
    successor = lease(folder)
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)

    ended = eventually(lambda: terminated(site, name), timeout_s=STAGE_S, what="the zombie ended")
    assert ended["exitCode"] == 75, ended
    assert "took over this work" in ended["message"], ended
    result_file = eventually(lambda: next(folder.glob("claim-*/i1/train/a1/result.json"), None), timeout_s=STAGE_S)
    result = json.loads(result_file.read_text())
    assert result["started"] > frozen_at
    assert lease(folder) == successor
    for output in result["outputs"].values():
        data = Path(str(folder) + output["uri"].partition("/claim-")[2].join(["/claim-", ""])).read_bytes()
        assert hashlib.sha256(data).hexdigest() == output["sha256"]


def lease(folder: Path) -> dict[str, Any]:
    """The training's; empty before there is one."""
    found = list(folder.glob("claim-*/i1/train/work/*/lease.json"))
    held: dict[str, Any] = json.loads(found[0].read_text()) if found else {}
    return held


def terminated(site: NodeSite, pod: str) -> dict[str, Any] | None:
    statuses = site.access.get("pod", pod, namespace=site.namespace)["status"].get("containerStatuses", [])
    return next((c["state"]["terminated"] for c in statuses if "terminated" in c["state"]), None)
