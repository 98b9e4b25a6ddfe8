"""The quickstart on a real node: what a user sees from `kubectl apply` to the report, watched as a user watches it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from itrain_testing.cluster.access import ROOT
from itrain_testing.cluster.node import Node
from itrain_testing.nodesite import NodeSite, running_site

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3600)]
WHOLE_RUN_S = 3000.0
RECORDING = ROOT / "build/quickstart-watch.txt"


@pytest.fixture
def site(node: Node, tmp_path: Path) -> Iterator[NodeSite]:
    with running_site(node, tmp_path) as installed:
        yield installed


def test_the_quickstart_goes_from_kubectl_apply_to_a_report(site: NodeSite, tmp_path: Path) -> None:
    with recorded_watch(site, RECORDING):
        run = site.apply("quickstart.yaml", "quickstart")
        run.wait(WHOLE_RUN_S, phase=lambda phase: phase in ("Succeeded", "Failed"))
        site.access.kubectl("wait", "--for=condition=Succeeded", "itr/quickstart", namespace=site.namespace)
    status = run.status()
    assert (status["phase"], status["iterationText"]) == ("Succeeded", "2/2"), status
    assert [entry["iteration"] for entry in status["history"]] == [0, 1, 2]
    assert all(entry["pairs"] > 0 for entry in status["history"][1:])

    done = site.itrain("report", "quickstart", "--out", str(tmp_path / "report.html"))
    assert done.returncode == 0, done.stderr
    report = (tmp_path / "report.html").read_text()
    assert "iteration 2" in report.lower()

    lines = RECORDING.read_text().splitlines()
    assert lines[0].split() == ["NAME", "PHASE", "ITER", "STAGE", "PROGRESS", "BEST", "AGE"]
    told = [line.split() for line in lines[1:]]
    stages = ["prepare", "warmup", "evaluate", "score", "rollout", "train", "export"]
    assert [stage for stage in stages if not any(stage in words for words in told)] == []
    assert "Succeeded" in told[-1]


@contextmanager
def recorded_watch(site: NodeSite, path: Path) -> Iterator[None]:
    """`kubectl get itr -w`, its output in a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    environ = {**os.environ, "KUBECONFIG": str(site.access.kubeconfig)}
    command = [str(site.access.kubectl_binary), "get", "itr", "-w", "-n", site.namespace]
    with path.open("w") as out, subprocess.Popen(command, env=environ, stdout=out) as watch:
        try:
            yield
        finally:
            watch.terminate()
