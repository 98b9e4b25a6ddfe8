"""MLflow: one run for ours, found again by its tag.

Two more tags say how many points are there, and how many are on their way. Where a process died on the way, the server
is asked which of those steps it has: it would keep a step twice.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

from itrain_contract.tracking import MLflow
from itrain_pipeline.tracking.points import Point

UID, SENT, SENDING = "itrain.uid", "itrain.sent", "itrain.sending"
BATCH: Final = 1000
"""Metrics that the server takes in one request."""
DEFAULTS: Final = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Unless the environment says otherwise."""


def send(settings: MLflow, run: Mapping[str, str], points: Sequence[Point], *, finished: bool) -> int:
    """Log what is missing; the number of values that were sent. Raises what MLflow raises."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=settings.uri)
    found = find_run(client, settings.experiment, run, points[0].time)
    number = found.info.run_id
    sent, sending = (int(found.data.tags.get(tag, 0)) for tag in (SENT, SENDING))
    doubtful = {name for point in points[sent:sending] for name in point.figures} & set(found.data.metrics)
    known = {name: {metric.step for metric in client.get_metric_history(number, name)} for name in doubtful}
    missing = [
        Metric(key=name, value=value, timestamp=round(1000 * point.time), step=point.step)
        for at, point in enumerate(points[sent:], sent)
        for name, value in point.figures.items()
        if at >= sending or point.step not in known.get(name, ())
    ]
    if len(points) > sent:
        client.set_tag(number, SENDING, len(points))
        for begin in range(0, len(missing), BATCH):
            client.log_batch(number, metrics=missing[begin : begin + BATCH])
        client.set_tag(number, SENT, len(points))
    if finished:
        client.set_terminated(number)
    return len(missing)


def find_run(client: Any, experiment: str, run: Mapping[str, str], started: float) -> Any:
    """The run whose tag is our uid, made where there is none."""
    known = client.get_experiment_by_name(experiment)
    number = client.create_experiment(experiment) if known is None else known.experiment_id
    found = client.search_runs([number], filter_string=f"tags.`{UID}` = '{run['uid']}'", max_results=1)
    if found:
        return found[0]
    tags = {f"itrain.{name}": value for name, value in run.items() if value}
    return client.create_run(number, start_time=round(1000 * started), tags=tags, run_name=run["name"])
