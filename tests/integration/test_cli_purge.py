"""`itrain report` and `purge` of a run in the cluster whose artifacts lie in S3: real API server, real S3 server."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from itrain_contract.layout import RunLayout
from itrain_contract.stageio import ArtifactRef, StageResult
from itrain_contract.stages import StageKind
from itrain_testing.cluster.access import Access
from itrain_testing.clusterruns import run_manifest
from itrain_testing.s3server import BUCKET, S3Server, admin, running_server

REPORT = b"<!doctype html><title>a report</title>"


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3Server]:
    with running_server(tmp_path / "s3") as server:
        server.create_bucket()
        yield server


def itrain(cluster: Access, namespace: str, s3: S3Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from itrain_operator.cli import main; main()"
    where = ["-n", namespace, "--kubeconfig", str(cluster.kubeconfig)]
    environ = {**os.environ, **s3.environ}
    command = [sys.executable, "-c", code, *arguments, *where]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


def keys(s3: S3Server) -> list[str]:
    listed = admin(s3.environ).list_objects_v2(Bucket=BUCKET, Prefix="runs/")
    return [item["Key"] for item in listed.get("Contents", [])]


def put(s3: S3Server, uri: str, body: bytes) -> None:
    admin(s3.environ).put_object(Bucket=BUCKET, Key=uri.removeprefix(f"s3://{BUCKET}/"), Body=body)


def result_of_export(root: str) -> bytes:
    """The proof that the report is whole: it is checked before the report is believed."""
    uri = f"{root}i0/export/a1/report.html"
    report = ArtifactRef(uri=uri, sha256=hashlib.sha256(REPORT).hexdigest(), size_bytes=len(REPORT))
    done = StageResult(kind=StageKind.EXPORT, iteration=0, attempt=1, digest="0" * 64, outputs={"report.html": report})
    return done.model_dump_json(by_alias=True).encode()


def write_status(cluster: Access, namespace: str, name: str, status: dict[str, Any]) -> None:
    patch = json.dumps([{"op": "add", "path": "/status", "value": status}])
    where = ["--type=json", "--subresource=status", "-p", patch]
    cluster.kubectl("patch", "itr", name, *where, namespace=namespace)


def test_the_report_comes_from_s3_and_purge_deletes_the_run_s_artifacts_and_no_others(
    cluster: Access, namespace: str, s3: S3Server, tmp_path: Path
) -> None:
    storage = f"s3://{BUCKET}/runs"
    cluster.apply(*(run_manifest(name, namespace, storage={"uri": storage}) for name in ("old", "older")))
    roots = {}
    for name in ("old", "older"):
        uid = cluster.get("itr", name, namespace=namespace)["metadata"]["uid"]
        roots[name] = RunLayout(storage=storage, name=name, uid=uid).root
        put(s3, f"{roots[name]}i0/export/a1/report.html", REPORT)
        put(s3, f"{roots[name]}i0/export/a1/result.json", result_of_export(roots[name]))
        put(s3, f"{roots[name]}i1/train/work/abc/checkpoint", b"weights")
    ended = {
        "phase": "Succeeded",
        "reason": "RunCompleted",
        "observedGeneration": 1,
        "reportURI": f"{roots['old']}i0/export/a1/report.html",
    }
    write_status(cluster, namespace, "old", ended)

    done = itrain(cluster, namespace, s3, "report", "old", "--out", str(tmp_path / "report.html"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").read_bytes() == REPORT

    busy = itrain(cluster, namespace, s3, "purge", "older", "--yes")
    assert (busy.returncode, "`itrain suspend older` first" in busy.stderr) == (64, True)
    assert len(keys(s3)) == 6

    purged = itrain(cluster, namespace, s3, "purge", "old", "--yes")
    assert purged.returncode == 0, purged.stderr
    assert roots["old"] in purged.stdout
    assert len(keys(s3)) == 3
    assert {key.split("/")[1] for key in keys(s3)} == {roots["older"].rstrip("/").rpartition("/")[2]}
    assert cluster.get("itr", "old", namespace=namespace)["status"]["phase"] == "Succeeded"
