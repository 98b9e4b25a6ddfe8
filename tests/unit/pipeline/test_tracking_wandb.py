"""Weights & Biases with its own library, offline: what stands in the file that `wandb sync` would send."""

from __future__ import annotations

import functools
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from wandb.proto.wandb_internal_pb2 import Record

from itrain_contract.stageio import RunIdentity
from itrain_contract.stages import StageKind
from itrain_contract.tracking import Tracking, WandB
from itrain_pipeline.store import open_store
from itrain_pipeline.tracking.publish import publish, read_points, talk_to
from itrain_testing.stageports import fetch
from itrain_testing.trackedruns import tracked_results

BLOCK = 32768


def records(path: Path) -> Iterator[Record]:
    """A file in LevelDB's log format behind seven bytes of W&B's own."""
    data, at, begun = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        left = BLOCK - at % BLOCK
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        begun += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(begun)
            begun = b""


def test_an_offline_run_holds_every_point_once_with_its_axis(tmp_path: Path) -> None:
    storage = f"file://{tmp_path}/storage"
    run = RunIdentity(name="quick", namespace="team", uid="12345678-aaaa-bbbb", storage=storage)
    results = tracked_results(tmp_path / "results")
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "WANDB_API_KEY": "planted-key"}
    found = publish(
        Tracking(wandb=WandB(project="tool-calls", entity="team", mode="offline")),
        run=run,
        kind=StageKind.EXPORT,
        results=lambda: results,
        fetch=fetch,
        store=open_store(storage),
        environ=environ,
        talk=functools.partial(talk_to, timeout_s=300.0),  # a busy machine starts it slowly
    )
    assert found.info == {"tracking": "wandb"}
    (file,) = (tmp_path / "storage").rglob("*.wandb")
    assert file.relative_to(tmp_path / "storage").parts[:2] == ("quick-12345678", "wandb")
    held = list(records(file))
    (made,) = [record.run for record in held if record.HasField("run")]
    assert (made.run_id, made.display_name, made.project, made.entity) == (run.uid, "quick", "tool-calls", "team")
    points = read_points(results, fetch)
    logged = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in held
        if record.HasField("history")
    ]
    ours = [{name: value for name, value in row.items() if not name.startswith("_")} for row in logged]
    assert ours == [pytest.approx({**point.figures, point.axis: point.step}) for point in points]
    assert [record.history.step.num for record in held if record.HasField("history")] == list(range(len(points)))
    axes = {record.metric.name: record.metric.step_metric for record in held if record.HasField("metric")}
    assert (axes["train/loss"], axes["dev/call_accuracy"], axes["train/seconds"]) == (
        "train/step",
        "iteration",
        "iteration",
    )
    assert not any(b"planted-key" in path.read_bytes() for path in (tmp_path / "storage").rglob("*") if path.is_file())
