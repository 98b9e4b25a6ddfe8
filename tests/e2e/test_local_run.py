"""The tiny example through the real pipeline: it ends with a curve and a report, killed anywhere with the same bits."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from itrain_testing.mlflowserver import PASSWORD, USER, MLflowServer, running_mlflow

pytestmark = pytest.mark.e2e

TINY = Path(__file__).parents[2] / "crds/examples/tiny.yaml"
MOMENTS = (
    ("tiny-i0-prepare-a1", 0),
    ("tiny-i0-warmup-a1", 0),
    ("tiny-i0-warmup-a1", 3),
    ("tiny-i0-evaluate-a1", 8),
    ("tiny-i1-score-a1", 0),
    ("tiny-i1-rollout-a1", 1),
    ("tiny-i1-rollout-a1", 4),
    ("tiny-i1-train-a1", 1),
    ("tiny-i1-evaluate-a1", 4),
    ("tiny-i0-export-a1", 0),
)
"""Jobs and the progress at which `itrain` is killed in them; 0 is as soon as a process of the job has begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRun:
    """One run of the tiny example in its own folder."""

    path: Path
    fields: tuple[str, ...] = ()
    """Of the spec, as `--set` takes them."""
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def state(self) -> Path:
        return self.path / "state"

    def start(self) -> subprocess.Popen[str]:
        code = "from itrain_operator.cli import main; main()"
        options = ["--set", f"storage.uri={self.path / 'artifacts'}", "--summary", str(self.path / "summary.json")]
        options += [part for text in self.fields for part in ("--set", text)]
        return subprocess.Popen(
            [sys.executable, "-c", code, "run", str(TINY), "--local", "--dir", str(self.state), *options],
            env={**os.environ, **self.environ},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def processes(self) -> list[int]:
        """Stage processes of this run that are alive, found by the folder that their environment names."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue  # it ended meanwhile, or is not ours to read
            if f"ITRAIN_STAGE_INPUT={self.state}".encode() in environment and int(entry.name) != os.getpid():
                found.append(int(entry.name))
        return found

    def reached(self, job: str, done: int) -> bool:
        """Whether a process of the job has begun and come this far."""
        folder = self.state / "jobs" / job
        if done == 0:
            return any(folder.glob("shard-*.log"))
        for path in folder.glob("shard-*.progress.json"):
            try:
                if json.loads(path.read_text())["done"] >= done:
                    return True
            except FileNotFoundError:
                continue  # a new execution has just begun
        return False

    def finished(self, job: str) -> bool:
        return any((self.state / "jobs" / job).glob("shard-*.exit.json"))

    def result(self, job: str, shard: int | None = None) -> dict[str, Any]:
        prefix = json.loads((self.state / "jobs" / job / "input.json").read_text())["outputPrefix"]
        below = Path(prefix.removeprefix("file://")) / ("" if shard is None else f"shard-{shard}")
        found: dict[str, Any] = json.loads((below / "result.json").read_text())
        return found

    def hashes(self) -> dict[str, str]:
        """What must not depend on being killed: the pairs of every shard and both adapters."""
        found = {f"pairs {shard}": self.result("tiny-i1-rollout-a1", shard) for shard in (0, 1)}
        hashes = {name: result["outputs"]["pairs.jsonl"]["sha256"] for name, result in found.items()}
        for job in ("tiny-i0-warmup-a1", "tiny-i1-train-a1"):
            hashes[job] = self.result(job)["outputs"]["adapter/adapter_model.safetensors"]["sha256"]
        return hashes


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    with running_mlflow(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, mlflow: MLflowServer) -> LocalRun:
    """With every tracker; the runs that are killed have none, and must make the same."""
    trackers = ["tensorboard=true", f"mlflow.uri={mlflow.uri}", "wandb.project=tools", "wandb.mode=offline"]
    run = LocalRun(
        path=tmp_path_factory.mktemp("undisturbed"),
        fields=tuple(f"tracking.{text}" for text in trackers),
        environ={"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": PASSWORD},
    )
    process = run.start()
    said, told = process.communicate()
    assert process.returncode == 0, told[-4000:]
    (run.path / "said.txt").write_text(said)
    return run


def test_the_run_ends_with_its_curve_its_report_and_its_figures(undisturbed: LocalRun) -> None:
    said = (undisturbed.path / "said.txt").read_text()
    for point in ("base", "warm-up", "iteration 1"):
        assert point in said
    page = (undisturbed.state / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    figures = json.loads((undisturbed.path / "summary.json").read_text())
    for point in ("base", "warmup", "iteration_1"):
        assert 0 <= figures[f"dev_call_accuracy_{point}"] <= 1
    assert figures["pairs_iteration_1"] > 0
    assert figures["failed_trees"] == 0


def test_every_output_of_every_stage_has_the_bytes_that_its_result_promises(undisturbed: LocalRun) -> None:
    results = list((undisturbed.path / "artifacts").rglob("a1/**/result.json"))
    assert len(results) == 10  # eight stages, two of them with two shards
    for path in results:
        for ref in json.loads(path.read_text())["outputs"].values():
            data = Path(ref["uri"].removeprefix("file://")).read_bytes()
            assert hashlib.sha256(data).hexdigest() == ref["sha256"], ref["uri"]


def test_every_tracker_has_the_figures_of_the_whole_run(undisturbed: LocalRun, mlflow: MLflowServer) -> None:
    (export,) = (undisturbed.path / "artifacts").rglob("i0/export/a1/metrics.jsonl")
    rows = [json.loads(line) for line in export.read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row and "step" in row]
    assert losses
    (folder,) = (undisturbed.path / "artifacts").rglob("tensorboard")
    board = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    board.Reload()
    assert [event.value for event in board.Scalars("train/loss")] == pytest.approx(losses)
    assert [event.step for event in board.Scalars("dev/call_accuracy")] == [0, 1]
    experiment = mlflow.store.get_experiment_by_name("itrain")
    (held,) = mlflow.store.search_runs([experiment.experiment_id], "", 1, 100)
    assert (held.info.run_name, held.info.status) == ("tiny", "FINISHED")
    history = mlflow.store.get_metric_history(held.info.run_id, "train/loss")
    assert [metric.value for metric in history] == pytest.approx(losses)
    assert any((undisturbed.path / "artifacts").rglob("wandb/**/*.wandb"))
    assert "Tracking</dt><dd>tensorboard, mlflow</dd>" in (undisturbed.state / "report.html").read_text()


@pytest.mark.timeout(3600)
def test_killed_ten_times_the_run_ends_with_the_same_pairs_and_adapters(undisturbed: LocalRun, tmp_path: Path) -> None:
    run = LocalRun(path=tmp_path)
    inside = []
    for job, done in MOMENTS:
        process = run.start()
        while process.poll() is None and not run.reached(job, done):
            time.sleep(0.01)
        if not run.finished(job):
            inside.append(job)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        while run.processes():
            time.sleep(0.01)
    process = run.start()
    _, told = process.communicate()
    assert process.returncode == 0, told[-4000:]
    stages = {job.split("-")[2] for job in inside}
    assert {"warmup", "score", "rollout", "train"} <= stages, inside
    assert run.hashes() == undisturbed.hashes()
    status = json.loads((run.state / "status.json").read_text())
    assert status["retries"] == 0


def test_a_finished_run_is_not_run_again(undisturbed: LocalRun) -> None:
    logs = {path: path.stat().st_size for path in undisturbed.state.rglob("*.log")}
    process = undisturbed.start()
    said, _ = process.communicate()
    assert process.returncode == 0
    assert said == (undisturbed.path / "said.txt").read_text()
    assert {path: path.stat().st_size for path in undisturbed.state.rglob("*.log")} == logs
