"""The product as its users see it, on a real node: the images of `make images`, the chart by Helm, runs by kubectl.

One installation: two runs side by side in two namespaces (one on S3, one on a volume claim), the release upgraded and
rolled back while stages run, GPU pools on nodes that pretend their GPUs, and the removal of everything. What all that
asked of the API server and where the storage's credentials went is looked at in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from itrain_testing.builtimages import PIPELINE, reference
from itrain_testing.chart import NAMESPACE
from itrain_testing.claims import apply_on_claim, make_claim
from itrain_testing.cluster import sessions
from itrain_testing.cluster.access import Access, eventually
from itrain_testing.cluster.node import NAME as NODE
from itrain_testing.cluster.node import Node
from itrain_testing.gpunodes import A100, V100, gpu_nodes, pools_run, train_fails_once
from itrain_testing.nodesite import SECRET, TeamSite, team_site
from itrain_testing.planted import (
    CommandLines,
    tells,
    told_by_files,
    told_by_logs,
    told_by_objects,
    watched_command_lines,
)
from itrain_testing.podsecurity import violations
from itrain_testing.release import BUILT_SETTINGS, CRD, GPU_IMAGES, Release, asked, new_release
from itrain_testing.rights import RIGHTS, Rights
from itrain_testing.s3server import BUCKET, SECRET_KEY
from itrain_testing.watchrun import WatchedRun

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3600), pytest.mark.usefixtures("chart_tools")]
WHOLE_RUN_S = 1500.0
PLANTED = (SECRET_KEY,)
STORAGE = {"uri": f"s3://{BUCKET}/runs", "secretRef": {"name": SECRET}}
ENDED = ("Succeeded", "Failed")
UNUSED: Rights = {}
"""Granted and never asked for in what happens here."""


@dataclass(slots=True, kw_only=True)
class Story:
    """What was installed and what ran to its end."""

    node: Node
    release: Release
    s3: TeamSite
    """Where `stored` runs."""
    claimed: TeamSite
    """Where `beside` runs."""
    claim: Path
    stored: WatchedRun
    beside: WatchedRun
    command_lines: CommandLines
    operator_logs: list[str] = field(default_factory=list)
    """Of replicas that are gone, at the level debug too."""

    @property
    def access(self) -> Access:
        return self.node.access


@pytest.fixture(scope="module")
def audited_before(node: Node) -> int:
    """Requests of the tests before these; their operators had the same account."""
    return len(node.control_plane.audit_events())


@pytest.fixture(scope="module")
def release(
    node: Node,
    audited_before: int,
    operator_archive: Path,
    pipeline_archive: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Release]:
    node.containerd.load_image(operator_archive)
    node.containerd.load_image(pipeline_archive)
    with new_release(node.access, tmp_path_factory.mktemp("release"), BUILT_SETTINGS) as made:
        yield made


@pytest.fixture(scope="module")
def story(node: Node, release: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("teams")
    with team_site(node, folder / "a") as s3, team_site(node, folder / "b") as claimed:
        claim = node.folder / "beside"
        make_claim(claimed, claim)
        with watched_command_lines() as command_lines:
            told = Story(
                node=node,
                release=release,
                s3=s3,
                claimed=claimed,
                claim=claim,
                stored=s3.apply("tiny.yaml", "stored", iterations=2),
                beside=apply_on_claim(claimed, "beside"),
                command_lines=command_lines,
            )
            under_way(told, lambda: release.upgrade(logLevel="debug"))
            under_way(told, release.rollback)
            for run in (told.stored, told.beside):
                run.wait(WHOLE_RUN_S, phase=lambda phase: phase in ENDED)
        yield told


def under_way(story: Story, change: Any) -> None:
    """Change the release while a stage runs: another process leads afterwards, and the Job is the same one."""
    release, run = story.release, story.stored
    status = run.wait(600, phase=lambda phase: phase in ("Running", *ENDED), current=bool)
    assert status["phase"] == "Running", "the run ended before the release could be changed"
    current = status["current"]
    story.operator_logs += release.logs()
    before = {pod["metadata"]["uid"] for pod in release.pods()}
    change()
    release.wait()
    eventually(
        lambda: before.isdisjoint(pod["metadata"]["uid"] for pod in release.pods()), what="the old replicas are gone"
    )
    eventually(lambda: release.leader() in [pod["metadata"]["name"] for pod in release.pods()], what="a new one leads")
    job = run.cluster.get("job", current["jobName"], namespace=run.namespace)
    assert job["metadata"]["uid"] == current["uid"]


def report_of(site: TeamSite, run: str, folder: Path) -> str:
    done = site.itrain("report", run, "--out", str(folder / "report.html"))
    assert done.returncode == 0, done.stderr
    return (folder / "report.html").read_text().lower()


def test_the_replicas_run_as_the_restricted_standard_wants_and_one_leads(story: Story) -> None:
    pods = story.release.pods()
    assert len(pods) == 2
    assert story.release.leader() in [pod["metadata"]["name"] for pod in pods]
    assert [problem for pod in pods for problem in violations(pod["spec"])] == []
    for pod in pods:
        assert pod["spec"]["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True
        assert pod["spec"]["securityContext"]["runAsUser"] == 10001


def test_a_run_on_s3_goes_from_apply_through_an_upgrade_and_a_rollback_to_its_report(
    story: Story, tmp_path: Path
) -> None:
    status = story.stored.status()
    assert (status["phase"], status["reason"], status["iterationText"]) == ("Succeeded", "RunCompleted", "2/2"), status
    assert (status.get("retries", 0), status.get("preemptions", 0)) == (0, 0)
    assert [entry["iteration"] for entry in status["history"]] == [0, 1, 2]
    assert all(entry["pairs"] > 0 for entry in status["history"][1:])
    assert [revision["status"] for revision in story.release.history()] == ["superseded", "superseded", "deployed"]
    assert "iteration 2" in report_of(story.s3, "stored", tmp_path)


def test_a_run_beside_it_on_a_volume_claim_ends_with_its_own_report(story: Story, tmp_path: Path) -> None:
    status, other = story.beside.status(), story.stored.status()
    assert (status["phase"], status.get("retries", 0)) == ("Succeeded", 0), status
    assert status["startTime"] < other["completionTime"]
    assert other["startTime"] < status["completionTime"]
    assert report_of(story.claimed, "beside", tmp_path).startswith("<!doctype html>")
    assert sorted(path.name.partition("-")[0] for path in story.claim.iterdir()) == ["beside"]
    assert story.claimed.objects("") == {}  # its own S3 server has none of them
    assert {key for key in story.s3.objects("stored-") if key.endswith("report.html")}


def test_every_stage_ran_in_the_image_that_was_built_and_nothing_else(story: Story) -> None:
    for run in (story.stored, story.beside):
        pods = story.access.get("pods", f"--selector=itrain.dev/run={run.name}", namespace=run.namespace)["items"]
        assert {pod["metadata"]["labels"]["itrain.dev/stage"] for pod in pods} >= {"prepare", "train", "export"}
        for pod in pods:
            (container,) = pod["spec"]["containers"]
            (ran,) = pod["status"]["containerStatuses"]
            assert container["image"] == ran["image"] == reference(PIPELINE)
            assert pod["spec"]["runtimeClassName"] == "plain"  # not this machine's Python
            assert violations(pod["spec"]) == []


def test_nothing_tells_the_storages_credentials(story: Story) -> None:
    assert story.command_lines.stages() >= {"prepare", "warmup", "score", "rollout", "train", "evaluate", "export"}
    assert [line for line in story.command_lines.seen if tells(line, PLANTED)] == []
    story.operator_logs += story.release.logs()
    assert any(" DEBUG " in log for log in story.operator_logs)
    assert [log for log in story.operator_logs if tells(log.encode(), PLANTED)] == []
    for namespace in (story.s3.namespace, story.claimed.namespace):
        assert told_by_logs(story.access, namespace, PLANTED) == []
    for namespace in (story.s3.namespace, story.claimed.namespace, NAMESPACE):
        assert told_by_objects(story.access, namespace, PLANTED) == []
    assert told_by_files(story.s3.s3.data / BUCKET, PLANTED) == []
    assert told_by_files(story.claim, PLANTED) == []


def test_stages_land_on_the_nodes_of_their_pool_with_its_images(story: Story, tmp_path: Path) -> None:
    run = WatchedRun(cluster=story.access, namespace=story.s3.namespace, name="pools")
    with gpu_nodes(story.access, tmp_path, script=train_fails_once):
        story.access.kubectl("cordon", A100)
        story.access.apply(pools_run("pools", run.namespace, STORAGE))
        # V100s are free, and not for it.
        run.wait(180, stage="train", reason="WaitingForNodes", message=lambda said: "unschedulable" in (said or ""))
        story.access.kubectl("uncordon", A100)
        done = run.wait(180, phase=lambda phase: phase in ENDED)
        assert (done["phase"], done["retries"]) == ("Succeeded", 1), done
        pods = story.access.get("pods", "--selector=itrain.dev/run=pools", namespace=run.namespace)["items"]
        volta, current = GPU_IMAGES["volta"], GPU_IMAGES["current"]
        assert {where(pod) for pod in pods} == {
            ("prepare", NODE, reference(PIPELINE), ""),
            ("warmup", V100, volta["trainer"], "2"),
            ("score", V100, volta["trainer"], "1"),
            ("rollout", V100, volta["rollout"], "1"),
            ("train", A100, current["trainer"], "4"),
            ("evaluate", V100, volta["rollout"], "1"),
            ("export", V100, volta["trainer"], "1"),
        }


def where(pod: dict[str, Any]) -> tuple[str, str, str, str]:
    """Stage, node, image and GPUs."""
    (container,) = pod["spec"]["containers"]
    gpus = container["resources"].get("limits", {}).get("nvidia.com/gpu", "")
    return pod["metadata"]["labels"]["itrain.dev/stage"], pod["spec"]["nodeName"], container["image"], gpus


def test_every_right_of_the_operator_is_used_and_nothing_is_refused(story: Story, audited_before: int) -> None:
    """By the API server's audit log, after a training that was tried again and, here, a namespace with a bad day."""
    with sessions.fresh_namespace(story.access) as namespace:
        bad_day(story.access, namespace)
    used, refused = asked(story.node.control_plane.audit_events()[audited_before:])
    assert refused == []
    unused = {name: verbs - used.get(name, set()) for name, verbs in RIGHTS.items()}
    assert {name: verbs for name, verbs in unused.items() if verbs} == UNUSED


def bad_day(access: Access, namespace: str) -> None:
    """A quota that lets no pod in, a Job of somebody else, and a user who cannot decide."""
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "no-pods"}}
    access.create({**quota, "spec": {"hard": {"pods": "0"}}}, namespace=namespace)
    eventually(
        lambda: access.get("resourcequota", "no-pods", namespace=namespace).get("status", {}).get("hard"),
        what="the quota is in force",
    )
    container = {"name": "main", "image": "example.org/other"}
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "taken-i0-prepare-a1"}}
    access.create({**job, "spec": {"suspend": True, "template": template}}, namespace=namespace)
    taken, refused = (WatchedRun(cluster=access, namespace=namespace, name=name) for name in ("taken", "refused"))
    for run in (taken, refused):
        access.apply(pools_run(run.name, namespace, STORAGE))
    taken.wait(60, phase="Failed", reason="ForeignObject")
    refused.wait(60, reason="WaitingForNodes", message=lambda said: "exceeded quota: no-pods" in (said or ""))
    for _ in range(2):
        refused.patch({"suspend": True})
        refused.wait(60, phase="Suspended")
        refused.patch({"suspend": False})
        refused.wait(60, phase=lambda phase: phase in ("Pending", "Running"))


def test_uninstalled_it_leaves_runs_and_artifacts_and_holds_on_to_nothing(story: Story) -> None:
    kept, on_claim = story.s3.objects("stored-"), sorted(story.claim.rglob("*"))
    story.release.uninstall()
    eventually(lambda: not story.release.pods(), timeout_s=60, what="the operator's pods are gone")
    for run in (story.stored, story.beside):
        assert run.status()["phase"] == "Succeeded"
        assert not run.raw()["metadata"].get("finalizers")
        run.delete("itr", run.name, "--wait", "--timeout=30s")
        eventually(lambda run=run: not jobs_of(run), what="its Jobs go with it")
    assert story.s3.objects("stored-") == kept
    assert [key for key in kept if key.endswith("report.html")]
    assert sorted(story.claim.rglob("*")) == on_claim
    assert story.access.get(CRD)["metadata"]["name"] == CRD.partition("/")[2]


def jobs_of(run: WatchedRun) -> list[dict[str, Any]]:
    return list(run.cluster.get("jobs", f"--selector=itrain.dev/run={run.name}", namespace=run.namespace)["items"])
