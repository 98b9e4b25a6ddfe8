"""Runs for a comparison: as values, and as state folders whose artifacts the pipeline can read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from itrain_contract.layout import RunLayout
from itrain_contract.loading import validate_run
from itrain_contract.stageio import StageResult
from itrain_contract.stages import StageKind
from itrain_operator.localspec import storage_root
from itrain_operator.localstate import StateFolder, new_run
from itrain_pipeline.evals.comparison_data import ComparedRun
from itrain_pipeline.evals.report_data import PointResult, ReportData, StageCost
from itrain_pipeline.records import Prediction, write_jsonl
from itrain_testing.localruns import run_document
from itrain_testing.reports import report_data
from itrain_testing.stageports import stage_result

MARK = "5a5a"


def answers(right: Iterable[bool], *, point: str = "base", category: str = "call") -> tuple[Prediction, ...]:
    """Judged answers to the items `0`, `1`, … of the dev set."""
    return tuple(
        Prediction(
            benchmark="dev",
            category=category,
            id=f"{category}_{at}",
            point=point,
            output="",
            correct=correct,
            error_class=None if correct else "parameter_value",
        )
        for at, correct in enumerate(right)
    )


def one_point(label: str, right: Iterable[bool], **fields: Any) -> ComparedRun:
    """A run with one evaluated point, on items that all such runs share."""
    rows = answers(right)
    return ComparedRun(
        label=label,
        metric="dev/call_accuracy",
        best=None,
        points=(PointResult(point="base", iteration=0, predictions=rows),),
        **{"items": {("dev", row.id): MARK for row in rows}, **fields},
    )


def compared(label: str, data: ReportData, **fields: Any) -> ComparedRun:
    """A run of the report's made-up data; the items of all of them are the same."""
    ids = {(row.benchmark, row.id) for point in data.points for row in point.predictions if row.benchmark == "dev"}
    run = ComparedRun(
        label=label,
        metric=data.metric,
        best=data.best,
        points=data.points,
        costs=data.costs,
        settings={"seed": 1, "stages": {"train": {"epochs": 1.0, "beta": 2.5}}, "storage": {"uri": f"s3://b/{label}"}},
        facts={"Torch": "2.13.0", "Training rows": "64, sha256 0a0a0a0a0a0a…"},
        items={**dict.fromkeys(ids, MARK), ("bfcl", ""): "bfcl_eval=2026.3.23"},
    )
    return dataclasses.replace(run, **fields)


def three_runs() -> list[ComparedRun]:
    """A plain run, one with other settings that is no better, one that is far better and cost more."""
    better = report_data((0.45, 0.70, 0.88), seed=3)
    return [
        compared("plain", report_data((0.45, 0.56, 0.61, 0.64), seed=1)),
        compared(
            "two-epochs",
            report_data((0.45, 0.56, 0.63), seed=2),
            settings={"seed": 1, "stages": {"train": {"epochs": 2.0, "beta": 2.5}}},
        ),
        compared(
            "a-run-with-a-name-of-forty-letters-and-more",
            better,
            settings={"seed": 1, "stages": {"train": {"epochs": 1.0, "beta": 2.5}, "warmup": {"enabled": False}}},
            facts={"Torch": "2.12.1", "Training rows": "128, sha256 0b0b0b0b0b0b…"},
            costs=(*better.costs, StageCost(stage="i1/train", shards=1, seconds=7200.0, counters={"requests": 9.0})),
        ),
    ]


def write_run(
    folder: Path, data: ReportData, *, dev: Mapping[str, str] | None = None, evaluated: bool = True, **spec: Any
) -> StateFolder:
    """A state folder with prepare's and evaluate's results of `data`. `dev` are the questions by id where they are not
    those that the other runs have."""
    document = run_document()
    document["spec"] |= spec
    document["spec"]["storage"] = {"uri": str(folder / "artifacts")}
    run = validate_run(document)
    state = StateFolder(folder)
    stored = new_run(
        name=run.metadata.name,
        uid=f"{folder.name:0<8}",
        spec=run.spec,
        source="run.yaml",
        now=datetime(2026, 11, 26, tzinfo=UTC),
    )
    state.save_run(stored)
    root = RunLayout(storage=storage_root(stored.spec, folder), name=stored.name, uid=stored.uid).root
    base = Path(root.removeprefix("file://"))
    ids = dict.fromkeys(row.id for row in data.points[0].predictions if row.benchmark == "dev")
    rows = [
        {"id": name, "messages": [{"role": "user", "content": (dev or {}).get(name, name)}], "tools": [], "answer": "f"}
        for name in ids
    ]
    prepare = base / "i0/prepare/a1"
    _write(prepare / "dev.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    _write(prepare / "train.jsonl", "{}\n")
    files = {name: prepare / name for name in ("dev.jsonl", "train.jsonl")}
    _finish(prepare, stage_result(StageKind.PREPARE, files=files, counters={"dev": len(rows), "train": 1}))
    for point in data.points if evaluated else ():
        place = base / f"i{data.points.index(point)}/evaluate/a1"
        name = f"predictions-{point.point}.jsonl"
        place.mkdir(parents=True, exist_ok=True)
        write_jsonl(place / name, point.predictions)
        result = stage_result(
            StageKind.EVALUATE,
            data.points.index(point),
            {name: place / name},
            seconds=3.0,
            counters={"requests": 10.0},
            info={"bfcl_eval": "2026.3.23"},
        )
        _finish(place, result)
    return state


def _finish(place: Path, result: StageResult) -> None:
    _write(place / "result.json", result.model_dump_json(by_alias=True))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
