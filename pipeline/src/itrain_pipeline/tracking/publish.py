"""Sends what a run has measured so far to its trackers: by whichever stage has just ended, all that they lack.

What one stage could not send the next one sends. Nothing here fails a stage: a tracker that is away, refuses or hangs
is one warning, and stands in the stage's result. MLflow and W&B are talked to by a process of their own.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from itrain_contract.names import ENV_SECRETS_DIR
from itrain_contract.stageio import RunIdentity, StageResult, printable
from itrain_contract.stages import StageKind
from itrain_contract.tracking import MLflow, Tracking, WandB
from itrain_pipeline.errors import ConfigError
from itrain_pipeline.evals.collect import Fetch
from itrain_pipeline.evals.metricslog import metric_rows
from itrain_pipeline.ports import Store
from itrain_pipeline.secretfiles import read_secret
from itrain_pipeline.tracking import board, wandblog
from itrain_pipeline.tracking.points import Point, to_json, tracked_points

log = logging.getLogger(__name__)

TIMEOUT_S: Final = 40.0
"""Of one tracker; then its process is killed."""
PACKAGES: Final = {"tensorboard": "tensorboard", "mlflow": "mlflow-skinny", "wandb": "wandb"}
"""By the module that is imported."""
KEYS: Final = {
    "mlflow": (("MLFLOW_TRACKING_TOKEN",), ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")),
    "wandb": (("WANDB_API_KEY",),),
}
"""What a Secret has to hold: all names of one of these."""
INFO: Final = "tracking"
FAILURES: Final = "tracking_failures"

Talk = Callable[[str, Path, Mapping[str, str]], int]
"""Runs the process of a tracker with a job's file and an environment; the number of values that were sent.

Raises TrackerError.
"""


class TrackerError(Exception):
    """A tracker did not take the figures; the text says why and holds no credential."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What goes into the stage's result."""

    info: Mapping[str, str] = field(default_factory=dict)
    counters: Mapping[str, float] = field(default_factory=dict)


def check_trackers(tracking: Tracking, environ: Mapping[str, str]) -> None:
    """Raise ConfigError for a package that this image lacks or a credential that is not there, before any GPU is asked
    for."""
    for tracker, settings in chosen(tracking):
        if importlib.util.find_spec(tracker) is None:
            raise ConfigError(
                f"tracking.{tracker} needs the package {PACKAGES[tracker]}, which this image lacks: "
                "put it into the images of the stages (docs/report.md)"
            )
        if settings is not None:
            credentials(tracker, settings, environ)


def chosen(tracking: Tracking) -> list[tuple[str, MLflow | WandB | None]]:
    found: list[tuple[str, MLflow | WandB | None]] = [("tensorboard", None)] if tracking.tensorboard else []
    found += [("mlflow", tracking.mlflow)] if tracking.mlflow else []
    return found + ([("wandb", tracking.wandb)] if tracking.wandb else [])


def credentials(tracker: str, settings: MLflow | WandB, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment that a tracker's process is given beside the rest: its Secret's, or the process's own.

    Raises ConfigError for a Secret that is not there or lacks a name.
    """
    names = sorted({name for names in KEYS[tracker] for name in names})
    own = {name: environ[name] for name in names if environ.get(name)}
    if settings.secret_ref is None or (isinstance(settings, WandB) and settings.mode == "offline"):
        return own
    secret, folder = settings.secret_ref.name, environ.get(ENV_SECRETS_DIR)
    values = read_secret(Path(folder), secret, re.compile("|".join(names))) if folder else own
    if not any(all(values.get(name) for name in wanted) for wanted in KEYS[tracker]):
        wanted = ", or ".join(" and ".join(names) for names in KEYS[tracker])
        raise ConfigError(f"tracking.{tracker}: the Secret {secret!r} has no {wanted}")
    return values


def publish(
    tracking: Tracking,
    *,
    run: RunIdentity,
    kind: StageKind,
    results: Callable[[], Sequence[StageResult]],
    fetch: Fetch,
    store: Store,
    environ: Mapping[str, str],
    talk: Talk | None = None,
) -> Published:
    """Send what the results say to every tracker; never raises."""
    told, failures = [], 0
    points: list[Point] | None = None
    for tracker, settings in chosen(tracking):
        try:
            if points is None:
                points = read_points(results(), fetch)
            if settings is None:
                sent = write_board(points, store, run.layout.root)
            elif isinstance(settings, WandB) and settings.mode == "offline" and kind != StageKind.EXPORT:
                continue
            else:
                sent = _send(tracker, settings, run, points, kind, store, environ, talk or talk_to)
        except Exception as error:  # noqa: BLE001  (whatever it is, the run goes on)
            reason = printable(" ".join(str(error).split()))[:300] or type(error).__name__
            log.warning("%s did not take this run's figures, the run goes on: %s", tracker, reason)
            told.append(f"{tracker} failed")
            failures += 1
            continue
        log.info("%s: %d new values", tracker, sent)
        told.append(tracker)
    return Published(info={INFO: ", ".join(told)} if told else {}, counters={FAILURES: failures} if failures else {})


def read_points(results: Sequence[StageResult], fetch: Fetch) -> list[Point]:
    started: dict[str, float] = {}
    for result in results:
        stage = f"i{result.iteration}/{result.kind.value}"
        started[stage] = min(started.get(stage, result.started), result.started)
    return tracked_points(metric_rows(results, fetch), started)


def write_board(points: Sequence[Point], store: Store, root: str) -> int:
    """Put the event files that storage lacks, or has of other content; the number of their values."""
    sent = 0
    for name, data in board.event_files(points).items():
        uri = f"{root}{board.FOLDER}{name}"
        if store.get_bytes(uri) != data:
            store.put_bytes(data, uri)
            sent += sum(len(point.figures) for point in points if board.file_name(point.stage) == name)
    return sent


def _send(
    tracker: str,
    settings: MLflow | WandB,
    run: RunIdentity,
    points: Sequence[Point],
    kind: StageKind,
    store: Store,
    environ: Mapping[str, str],
    talk: Talk,
) -> int:
    offline = f"{run.layout.root}{wandblog.FOLDER}"
    if isinstance(settings, WandB) and settings.mode == "offline" and store.list(offline):
        return 0  # an earlier attempt of export has left it
    secrets = credentials(tracker, settings, environ)
    names = {name for names in KEYS[tracker] for name in names}
    given = {name: value for name, value in environ.items() if name not in names} | secrets
    with tempfile.TemporaryDirectory(prefix=f"itrain-{tracker}-", ignore_cleanup_errors=True) as temp:
        file = Path(temp) / "job.json"
        job = {
            "settings": settings.model_dump(mode="json"),
            "run": {"name": run.name, "namespace": run.namespace, "uid": run.uid},
            "points": to_json(points),
            "finished": kind == StageKind.EXPORT,
        }
        file.write_text(json.dumps(job, allow_nan=False), encoding="utf-8")
        try:
            sent = talk(tracker, file, given)
        except TrackerError as error:
            text = str(error)
            for value in secrets.values():
                text = text.replace(value, "***")
            raise TrackerError(text) from None
        written = Path(temp) / wandblog.FOLDER
        for path in sorted(path for path in written.rglob("*") if path.is_file() and not path.is_symlink()):
            store.put_file(path, f"{offline}{path.relative_to(written).as_posix()}")
    return sent


def talk_to(tracker: str, file: Path, environ: Mapping[str, str], timeout_s: float = TIMEOUT_S) -> int:
    """The answer of a tracker's process, which is killed once the time is up."""
    command = [sys.executable, "-P", "-m", "itrain_pipeline.tracking", tracker, str(file)]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(environ),
        cwd=file.parent,
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            raise TrackerError(f"no answer within {timeout_s:g} s") from None
    if process.returncode:
        lines = err.decode("utf-8", "replace").strip().splitlines()
        raise TrackerError(lines[-1] if lines else f"its process ended with {process.returncode}")
    try:
        return int(json.loads(out.decode("utf-8", "replace").strip().splitlines()[-1])["sent"])
    except (ValueError, LookupError, TypeError) as error:
        raise TrackerError("its process ended without an answer") from error
