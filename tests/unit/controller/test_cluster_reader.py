"""The pod that reads a volume claim: what it is made of, that it always goes, and that a file arrives whole or not."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from itrain_operator import clusterreader
from itrain_operator.clusteraccess import ClusterError
from itrain_operator.clusterreader import SEND, build_reader, fetch_file, parse_file, run_in_pod
from itrain_operator.clusterruns import ClusterRun, read_run
from itrain_operator.kubeapi import JOBS, PODS
from itrain_operator.manifests import build_children
from itrain_testing.builders import made, make_run, make_spec, step, with_status
from itrain_testing.clusterruns import SETTINGS
from itrain_testing.fakecluster import FakeServer
from itrain_testing.fakeuser import access, add_run

CLAIM = {"storage": {"pvc": {"claimName": "results", "subPath": "runs"}}}


def job_template() -> dict[str, Any]:
    """The pod template of a real Job of a run with a volume claim."""
    run = make_run(make_spec(**CLAIM))
    run, _ = step(run)
    _, planned = step(with_status(run, run.status))
    assert made(planned) == ["run-i0-prepare-a1"]
    (action,) = [a for a in planned.actions if type(a).__name__ == "EnsureJob"]
    job = build_children(run, action, SETTINGS).job  # type: ignore[arg-type]
    template: dict[str, Any] = job["spec"]["template"]
    return template


def world(ends: str = "Succeeded", log: str = "") -> tuple[FakeServer, ClusterRun]:
    """A run with one Job; a pod that is made ends at once."""
    server = FakeServer()
    raw = add_run(server, **CLAIM)
    labels = {"itrain.dev/run": "run", "itrain.dev/run-uid": raw["metadata"]["uid"]}
    job = {"metadata": {"name": "j", "namespace": "team", "labels": labels}, "spec": {"template": job_template()}}
    server.add(JOBS, job)

    def before(request: Any) -> None:
        if request.verb == "get" and request.resource == PODS:
            pod = server.find(PODS, "team", request.name)
            assert pod is not None
            pod["status"] = {"phase": ends}
            server.logs[request.name] = log

    server.before = before
    return server, read_run(raw)


def test_the_reader_is_the_run_s_own_pod_with_another_command_and_an_end() -> None:
    _, run = world()
    pod = build_reader(run, job_template(), ["report", "--run-root", "file:///itrain/storage/x/"], send=True)
    spec, (container,) = pod["spec"], pod["spec"]["containers"]
    assert container["image"] == "example.org/itrain:1"
    assert container["command"][:3] == ["python", "-c", SEND]
    assert container["command"][3:] == [
        "python",
        "-m",
        "itrain_pipeline",
        "report",
        "--run-root",
        "file:///itrain/storage/x/",
    ]
    assert {mount["name"] for mount in container["volumeMounts"]} == {"storage", "tmp", "home"}
    storage = next(mount for mount in container["volumeMounts"] if mount["name"] == "storage")
    assert (storage["readOnly"], storage["subPath"]) == (True, "runs")
    assert (spec["restartPolicy"], spec["activeDeadlineSeconds"]) == ("Never", 300)
    assert (spec["automountServiceAccountToken"], spec["securityContext"]["runAsNonRoot"]) == (False, True)
    assert "nvidia.com/gpu" not in str(container["resources"])
    assert pod["metadata"]["ownerReferences"][0]["uid"] == run.uid
    assert "itrain.dev/stage" not in pod["metadata"]["labels"]


def sent(tmp_path: Path, content: bytes) -> str:
    """What the script in the pod prints for a command that writes `content`."""
    source, out = tmp_path / "source", tmp_path / "fetched"
    source.write_bytes(content)
    script = SEND.replace(clusterreader.FILE, str(out))
    copy = [sys.executable, "-c", "import shutil, sys; shutil.copy(sys.argv[1], sys.argv[3])", str(source)]
    done = subprocess.run([sys.executable, "-c", script, *copy], capture_output=True, text=True, check=True)
    return f"a warning first\n{done.stdout}"


def test_a_file_comes_through_a_log_whole(tmp_path: Path) -> None:
    content = bytes(range(256)) * 300
    server, run = world(log=sent(tmp_path, content))
    assert asyncio.run(fetch_file(access(server), run, ["report"])) == content
    assert server.all(PODS) == []


@pytest.mark.parametrize("cut", [0, 20, 100, 3000])
def test_a_file_that_did_not_arrive_whole_is_none(tmp_path: Path, cut: int) -> None:
    log = sent(tmp_path, bytes(range(256)) * 300 + b"tail")
    at = log.index("itrain-file ") + 90
    with pytest.raises(ValueError):
        parse_file(log[:at] + log[at + 1 + cut :] if cut else log[:-20])


def test_a_command_that_fails_in_the_pod_is_told_and_the_pod_is_gone() -> None:
    server, run = world("Failed", "starting\nitrain: the attempt did not finish\n")
    with pytest.raises(ClusterError, match="the pod that reads the volume failed: the attempt did not finish"):
        asyncio.run(run_in_pod(access(server), run, ["fetch"]))
    assert server.all(PODS) == []


def test_a_pod_that_never_runs_is_given_up_and_gone() -> None:
    server, run = world("Pending")
    with pytest.raises(ClusterError, match=r"did not run within 0\.1 s"):
        asyncio.run(run_in_pod(access(server), run, ["fetch"], deadline_s=0.1))
    assert server.all(PODS) == []


def test_without_a_job_to_copy_it_says_where_the_artifacts_are() -> None:
    server = FakeServer()
    run = read_run(add_run(server, **CLAIM))
    with pytest.raises(ClusterError, match=f"volume claim results.* they are below run-{run.uid[:8]}/"):
        asyncio.run(run_in_pod(access(server), run, ["fetch"]))
