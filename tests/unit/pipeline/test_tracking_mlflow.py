"""MLflow with its own client and store: one run, every point once, whatever was cut off and sent again."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Metric, RunTag

from itrain_contract.stageio import RunIdentity, StageResult
from itrain_contract.stages import StageKind
from itrain_contract.tracking import MLflow, Tracking
from itrain_pipeline.store import open_store
from itrain_pipeline.tracking.mlflowlog import SENDING
from itrain_pipeline.tracking.publish import Published, publish, read_points, talk_to
from itrain_testing.mlflowserver import PASSWORD, USER, MLflowServer, running_mlflow
from itrain_testing.stageports import fetch
from itrain_testing.trackedruns import tracked_results

RUN = RunIdentity(name="quick", namespace="team", uid="12345678-aaaa", storage="file:///nowhere")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MLflowServer]:
    with running_mlflow(tmp_path / "mlruns") as running:
        yield running


def send(
    server: MLflowServer, folder: Path, results: list[StageResult], kind: StageKind, password: str = PASSWORD
) -> Published:
    return publish(
        Tracking(mlflow=MLflow(uri=server.uri, experiment="tool calls")),
        run=RUN,
        kind=kind,
        results=lambda: results,
        fetch=fetch,
        store=open_store(f"file://{folder}"),
        environ={
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": password,
        },
        talk=functools.partial(talk_to, timeout_s=300.0),  # a busy machine imports MLflow slowly
    )


def held(server: MLflowServer) -> tuple[Any, list[tuple[str, int, int, float]]]:
    """The one run, and every value that it has by name, step and time."""
    experiment = server.store.get_experiment_by_name("tool calls")
    (run,) = server.store.search_runs([experiment.experiment_id], "", 1, 100)
    values = [
        (name, metric.step, metric.timestamp, metric.value)
        for name in run.data.metrics
        for metric in server.store.get_metric_history(run.info.run_id, name)
    ]
    return run, sorted(values)


def expected(results: list[StageResult]) -> list[tuple[str, int, int, float]]:
    return sorted(
        (name, point.step, round(1000 * point.time), value)
        for point in read_points(results, fetch)
        for name, value in point.figures.items()
    )


def test_a_run_grows_with_its_stages_and_holds_every_value_once(server: MLflowServer, tmp_path: Path) -> None:
    """The third stage is killed while it sends, after some of its values: the next one sends the rest."""
    results = tracked_results(tmp_path / "results")
    done = Published(info={"tracking": "mlflow"})
    assert send(server, tmp_path, results[:3], StageKind.EVALUATE) == done
    run, values = held(server)
    assert values == expected(results[:3])
    assert (run.info.run_name, run.info.status, run.data.tags["itrain.uid"]) == ("quick", "RUNNING", RUN.uid)
    died = read_points(results[:6], fetch)
    server.store.set_tag(run.info.run_id, RunTag(SENDING, str(len(died))))
    some = [Metric(name, value, round(1000 * died[-1].time), died[-1].step) for name, value in died[-1].figures.items()]
    server.store.log_batch(run.info.run_id, some, [], [])
    assert send(server, tmp_path, results, StageKind.EXPORT) == done
    run, values = held(server)
    assert values == expected(results)
    assert run.info.status == "FINISHED"
    asked = len(server.requests)
    assert send(server, tmp_path, results, StageKind.EXPORT) == done
    assert held(server)[1] == values
    assert {"runs/log-batch", "metrics/get-history"}.isdisjoint(server.requests[asked:])


def test_a_server_that_refuses_or_is_broken_is_told_without_the_password(
    server: MLflowServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    results = tracked_results(tmp_path / "results")
    failed = Published(info={"tracking": "mlflow failed"}, counters={"tracking_failures": 1})
    assert send(server, tmp_path, results, StageKind.EXPORT, password="another-pw") == failed
    server.broken = True
    assert send(server, tmp_path, results, StageKind.EXPORT) == failed
    first, second = [record.getMessage() for record in caplog.records if "did not take" in record.getMessage()]
    assert "who are you?" in first
    assert "experiments/get-by-name failed" in second
    assert "another-pw" not in caplog.text
    assert PASSWORD not in caplog.text
