"""Whole runs as a user makes them: `kubectl apply`, the real pipeline in real pods on a real node, artifacts in S3."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from itrain_testing.cluster.node import Node
from itrain_testing.nodesite import NodeSite, running_site
from itrain_testing.s3server import SECRET_KEY
from itrain_testing.watchrun import WatchedRun

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(2400)]
WHOLE_RUN_S = 1500.0
JOBS = [
    f"{{run}}-{stage}"
    for stage in (
        "i0-prepare-a1",
        "i0-warmup-a1",
        "i0-evaluate-a1",
        "i1-score-a1",
        "i1-rollout-a1",
        "i1-train-a1",
        "i1-evaluate-a1",
        "i0-export-a1",
    )
]
MADE = ("i1/rollout/{a}/shard-0/pairs.jsonl", "i1/rollout/{a}/shard-1/pairs.jsonl")
"""What must not depend on what happened to the pods meanwhile (fixed-batch mode)."""


@pytest.fixture(scope="module")
def site(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeSite]:
    with running_site(node, tmp_path_factory.mktemp("site")) as installed:
        yield installed


@pytest.fixture(scope="module")
def quiet(site: NodeSite) -> WatchedRun:
    """A run that nobody disturbs, to its end. Its training meets on two nodes, as two pods of one Job."""
    run = site.apply("tiny.yaml", "quiet", nodes=2)
    run.wait(WHOLE_RUN_S, phase=lambda phase: phase in ("Succeeded", "Failed"))
    return run


def test_a_run_goes_from_apply_to_succeeded_in_real_pods(site: NodeSite, quiet: WatchedRun, tmp_path: Path) -> None:
    status = quiet.status()
    assert (status["phase"], status["reason"]) == ("Succeeded", "RunCompleted")
    assert quiet.job_names() == [name.format(run="quiet") for name in JOBS]
    assert status.get("retries", 0) == status.get("preemptions", 0) == 0
    assert {metric["name"] for metric in status["metrics"]} >= {"dev/call_accuracy", "bfcl/accuracy"}
    assert status["history"][-1]["pairs"] > 0
    done = site.itrain("report", "quiet", "--out", str(tmp_path / "report.html"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


def test_no_pod_has_a_token_and_no_object_a_secret(site: NodeSite, quiet: WatchedRun) -> None:
    pods = site.access.get("pods", "--selector=itrain.dev/run=quiet", namespace=site.namespace)["items"]
    assert len(pods) == len(JOBS) + 3  # two shards each of score and rollout, two nodes of train
    for pod in pods:
        mounts = [mount["mountPath"] for c in pod["spec"]["containers"] for mount in c["volumeMounts"]]
        assert not [path for path in mounts if "serviceaccount" in path], pod["metadata"]["name"]
    logs = [site.access.kubectl("logs", pod["metadata"]["name"], namespace=site.namespace) for pod in pods]
    said = [site.access.kubectl("get", "itr,jobs,configmaps,pods,events", "-o", "yaml", namespace=site.namespace)]
    assert not [text for text in (*logs, *said, site.operator.said()) if SECRET_KEY in text]


def test_killed_drained_and_unattended_a_run_ends_with_the_same_pairs_and_adapter(
    site: NodeSite, quiet: WatchedRun
) -> None:
    run = site.apply("tiny.yaml", "rough", nodes=2)
    run.wait_for_running("prepare")
    site.operator.kill()
    site.operator.start()
    run.wait_for_running("warmup", WHOLE_RUN_S)
    site.kill_process("warmup")
    run.wait(WHOLE_RUN_S, stage="rollout")
    site.kill_process("rollout")
    site.operator.kill()
    site.operator.start()
    run.wait_for_running("train", WHOLE_RUN_S)
    pods = [p for p in site.pods("rough", "train") if p["status"]["phase"] == "Running"]
    site.evict(pods[-1]["metadata"]["name"])  # one node of the training goes, and the training with it
    status = run.wait(WHOLE_RUN_S, phase=lambda phase: phase in ("Succeeded", "Failed"))
    assert status["phase"] == "Succeeded", status
    assert (status["retries"], status["preemptions"]) == (1, 1)
    made = [f"rough-{stage}" for stage in ("i0-warmup-a2", "i1-train-a2")]
    left = [name for name in run.job_names() if name.startswith("rough-")]
    assert sorted(left) == sorted(
        {*(n.format(run="rough") for n in JOBS), *made} - {"rough-i0-warmup-a1", "rough-i1-train-a1"}
    )
    for key in MADE:
        assert site.read("rough", key.format(a="a1")) == site.read("quiet", key.format(a="a1"))
    weights = "adapter/adapter_model.safetensors"
    assert site.read("rough", f"i1/train/a2/{weights}") == site.read("quiet", f"i1/train/a1/{weights}")
