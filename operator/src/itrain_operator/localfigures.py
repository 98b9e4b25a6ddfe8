"""Figures of a run's finished stages, read from the state folder and, where results lie in a folder, from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pydantic import ValidationError

from itrain_contract.layout import RESULT_FILE, RunLayout, job_name, shard_prefix
from itrain_contract.stageio import StageInput, StageResult, add_counters
from itrain_contract.stages import StageKind, StageRef
from itrain_contract.status import ITrainRunStatus, StageRecord
from itrain_operator.localstate import JobFolder, StateFolder
from itrain_operator.points import StageFigures


def finished_figures(
    folder: StateFolder, run_name: str, status: ITrainRunStatus, known: dict[StageRef, StageFigures]
) -> dict[StageRef, StageFigures]:
    """Figures by stage; `known` ones are not read again. A stage whose files are gone has its seconds only."""
    found = dict(known)
    for record in status.completed:
        if record.ref not in found:
            found[record.ref] = _figures(folder.find_job(job_name(run_name, record.ref, record.attempt)), record)
    return found


def _figures(job: JobFolder, record: StageRecord) -> StageFigures:
    metrics: dict[str, float] = {}
    parts: list[Mapping[str, float]] = []
    if job.input_file.exists():
        stage_input = job.stage_input()
        for shard in range(stage_input.shards or 1):
            shard_metrics, shard_counters = _of_shard(job, stage_input, shard)
            metrics.update(shard_metrics)
            parts.append(shard_counters)
    return StageFigures(ref=record.ref, seconds=record.seconds, metrics=metrics, counters=add_counters(parts))


def _of_shard(job: JobFolder, stage_input: StageInput, shard: int) -> tuple[dict[str, float], dict[str, float]]:
    """The result's own figures; the termination message, which is cut to 4 KiB, only where storage is no folder."""
    result = local_result(stage_input, None if stage_input.shards is None else shard)
    if result is not None:
        return result.metrics, result.counters
    summary = job.termination(shard)
    return (summary.metrics, summary.counters) if summary is not None else ({}, {})


def local_result(stage_input: StageInput, shard: int | None) -> StageResult | None:
    """result.json of one shard; None where it is not in a folder of this machine or not of this input."""
    path = local_path(shard_prefix(stage_input.output_prefix, shard) + RESULT_FILE)
    if path is None or not path.exists():
        return None
    try:
        result = StageResult.model_validate_json(path.read_bytes())
    except ValidationError:
        return None
    return result if result.digest == stage_input.digest else None


def local_path(uri: str) -> Path | None:
    """The path of a `file://` URI or an absolute path; None for other schemes."""
    if uri.startswith("/"):
        return Path(uri)
    return Path(unquote(urlsplit(uri).path)) if uri.startswith("file:///") else None


def export_prefix(layout: RunLayout, status: ITrainRunStatus) -> str | None:
    """Where export's results lie; None before it has succeeded."""
    done = [record for record in status.completed if record.kind == StageKind.EXPORT]
    return layout.attempt(done[-1].ref, done[-1].attempt) if done else None
