"""The quickstart as a user and a platform engineer see it, on a real node with artifacts in S3.

The chart by Helm with the operator's image, `kubectl apply`, upgrade and rollback while stages run, the report, and the
removal of everything.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from itrain_testing.cluster.access import ROOT, eventually
from itrain_testing.cluster.node import Node
from itrain_testing.nodesite import TeamSite, team_site
from itrain_testing.release import Release, asked, new_release
from itrain_testing.rights import RIGHTS, Rights
from itrain_testing.watchrun import WatchedRun

pytestmark = [pytest.mark.recording, pytest.mark.timeout(3600), pytest.mark.usefixtures("chart_tools")]
WHOLE_RUN_S = 3000.0
RECORDING = ROOT / "build/quickstart-watch.txt"
UNUSED: Rights = {
    ("batch", "jobs"): {"delete", "get"},
    ("", "configmaps"): {"get", "delete"},
    ("", "services"): {"get", "create", "delete"},
    ("", "events"): {"get", "list", "patch"},
}
"""Granted and not used where nothing goes wrong, nothing is suspended and a training has one node."""


@pytest.fixture
def release(node: Node, operator_archive: Path, tmp_path: Path) -> Iterator[Release]:
    node.containerd.load_image(operator_archive)
    with new_release(node.access, tmp_path) as made:
        yield made


@pytest.fixture
def site(node: Node, tmp_path: Path, release: Release) -> Iterator[TeamSite]:
    with team_site(node, tmp_path) as installed:
        yield installed


def test_installed_by_helm_the_quickstart_goes_from_kubectl_apply_to_a_report(
    node: Node, release: Release, site: TeamSite, tmp_path: Path
) -> None:
    restricted(release)
    with recorded_watch(site, RECORDING):
        run = site.apply("quickstart.yaml", "quickstart")
        under_way(run, "warmup", lambda: release.upgrade(logLevel="debug"), release)
        under_way(run, "rollout", release.rollback, release)
        run.wait(WHOLE_RUN_S, phase=lambda phase: phase in ("Succeeded", "Failed"))
        site.access.kubectl("wait", "--for=condition=Succeeded", "itr/quickstart", namespace=site.namespace)
    status = run.status()
    assert (status["phase"], status["iterationText"]) == ("Succeeded", "2/2"), status
    assert (status.get("retries", 0), status.get("preemptions", 0)) == (0, 0)
    assert [entry["iteration"] for entry in status["history"]] == [0, 1, 2]
    assert all(entry["pairs"] > 0 for entry in status["history"][1:])
    assert [revision["status"] for revision in release.history()] == ["superseded", "superseded", "deployed"]

    report_is_there(site, tmp_path)
    recording_tells_every_stage()
    rights_are_used(node)
    uninstalled(release, site, run)


def restricted(release: Release) -> None:
    """Two replicas, one of which leads, as the restricted standard wants pods."""
    pods = release.pods()
    assert len(pods) == 2
    eventually(lambda: release.leader() in [pod["metadata"]["name"] for pod in pods], what="a replica leads")
    for pod in pods:
        (container,) = pod["spec"]["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert pod["spec"]["securityContext"]["runAsUser"] == 10001


def under_way(run: WatchedRun, stage: str, change: Any, release: Release) -> None:
    """Change the release while a stage runs: another process leads afterwards, and the Job is the same one."""
    current = run.wait_for_running(stage, timeout_s=1200)["current"]
    before = {pod["metadata"]["uid"] for pod in release.pods()}
    change()
    release.wait()
    eventually(
        lambda: before.isdisjoint(pod["metadata"]["uid"] for pod in release.pods()), what="the old replicas are gone"
    )
    eventually(lambda: release.leader() in [pod["metadata"]["name"] for pod in release.pods()], what="a new one leads")
    job = run.cluster.get("job", current["jobName"], namespace=run.namespace)
    assert job["metadata"]["uid"] == current["uid"]


def report_is_there(site: TeamSite, folder: Path) -> None:
    done = site.itrain("report", "quickstart", "--out", str(folder / "report.html"))
    assert done.returncode == 0, done.stderr
    assert "iteration 2" in (folder / "report.html").read_text().lower()


def recording_tells_every_stage() -> None:
    lines = RECORDING.read_text().splitlines()
    assert lines[0].split() == ["NAME", "PHASE", "ITER", "STAGE", "PROGRESS", "BEST", "AGE"]
    told = [line.split() for line in lines[1:]]
    stages = ["prepare", "warmup", "evaluate", "score", "rollout", "train", "export"]
    assert [stage for stage in stages if not any(stage in words for words in told)] == []
    assert "Succeeded" in told[-1]


def rights_are_used(node: Node) -> None:
    """By the API server's audit log: nothing was refused, and what the chart grants is used or kept for bad days."""
    used, refused = asked(node.control_plane.audit_events())
    assert refused == []
    unused = {name: verbs - used.get(name, set()) for name, verbs in RIGHTS.items()}
    assert {name: verbs for name, verbs in unused.items() if verbs} == UNUSED


def uninstalled(release: Release, site: TeamSite, run: WatchedRun) -> None:
    """Runs and artifacts outlive the release, and nothing holds on to a run that is deleted after it."""
    kept = site.objects("quickstart-")
    release.uninstall()
    eventually(lambda: not release.pods(), timeout_s=60, what="the operator's pods are gone")
    assert run.status()["phase"] == "Succeeded"
    assert not run.raw()["metadata"].get("finalizers")
    run.delete("itr", "quickstart", "--wait", "--timeout=30s")
    eventually(lambda: not site.access.get("jobs", namespace=site.namespace)["items"], what="its Jobs go with it")
    assert site.objects("quickstart-") == kept
    assert [key for key in kept if key.endswith("report.html")]


@contextmanager
def recorded_watch(site: TeamSite, path: Path) -> Iterator[None]:
    """`kubectl get itr -w`, its output in a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    environ = {**os.environ, "KUBECONFIG": str(site.access.kubeconfig)}
    command = [str(site.access.kubectl_binary), "get", "itr", "-w", "-n", site.namespace]
    with path.open("w") as out, subprocess.Popen(command, env=environ, stdout=out) as watch:
        try:
            yield
        finally:
            watch.terminate()
