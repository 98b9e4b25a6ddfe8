"""A whole tiny run whose artifacts lie on a real S3 server that crashes and comes back meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from itrain_testing.s3server import SECRET_KEY, S3Server, admin, running_server

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]
TINY = Path(__file__).parents[2] / "crds/examples/tiny.yaml"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with running_server(tmp_path_factory.mktemp("s3")) as started:
        started.create_bucket()
        yield started


def command(state: Path) -> list[str]:
    code = "from itrain_operator.cli import main; main()"
    storage = ["--set", "storage.uri=s3://itrain/experiments"]
    return [sys.executable, "-c", code, "run", str(TINY), "--local", "--plain", "--dir", str(state), *storage]


def test_a_run_on_s3_survives_a_crash_of_the_server(server: S3Server, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(tmp_path),
        env={**os.environ, **server.environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while process.poll() is None and not any((tmp_path / "jobs/tiny-i1-rollout-a1").glob("shard-*.log")):
        time.sleep(0.05)
    server.kill()
    time.sleep(3)
    server.start()
    said, _ = process.communicate()
    assert process.returncode == 0, said[-4000:]
    keys = [o["Key"] for o in admin(server.environ).list_objects_v2(Bucket="itrain")["Contents"]]
    for stage in ("i0/prepare", "i0/warmup", "i0/evaluate", "i1/score", "i1/rollout", "i1/train", "i0/export"):
        assert any(f"/{stage}/a" in key and key.endswith("result.json") for key in keys), stage
    assert any(key.endswith("/i0/export/a1/report.html") for key in keys)
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


def test_a_wrong_secret_is_one_clear_error_that_does_not_tell_it(server: S3Server, tmp_path: Path) -> None:
    wrong = "planted-wrong-secret"
    done = subprocess.run(
        command(tmp_path),
        env={**os.environ, **server.environ, "AWS_SECRET_ACCESS_KEY": wrong},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 64
    assert "itrain" in done.stdout
    assert server.endpoint in done.stdout
    texts = [p.read_text(errors="replace") for p in tmp_path.rglob("*") if p.is_file()]
    assert not [t for t in [done.stdout, *texts] if wrong in t or SECRET_KEY in t]
    assert json.loads((tmp_path / "status.json").read_text())["phase"] == "Failed"
