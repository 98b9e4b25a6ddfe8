"""TensorBoard's event files: one for each finished stage, written once, so that nothing is in two of them.

TensorBoard reads the files of a folder in the order of their names and never goes back; names follow the run's order.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from itrain_contract.stages import EXPORT, StageKind
from itrain_pipeline.tracking.points import Point

FOLDER: Final = "tensorboard/"
VERSION: Final = "brain.Event:2"


def file_name(stage: str) -> str:
    """`i1/train` is `events.out.tfevents.0001-4.i1-train`; export's is the last."""
    iteration, _, kind = stage.removeprefix("i").partition("/")
    place = "9999-9" if stage == str(EXPORT) else f"{int(iteration):04d}-{list(StageKind).index(StageKind(kind))}"
    return f"events.out.tfevents.{place}.{stage.replace('/', '-')}"


def event_files(points: Sequence[Point]) -> Mapping[str, bytes]:
    """Whole files by name; equal points give equal bytes."""
    by_stage: dict[str, list[Point]] = {}
    for point in points:
        by_stage.setdefault(point.stage, []).append(point)
    return {file_name(stage): _event_file(found) for stage, found in by_stage.items()}


def _event_file(points: Sequence[Point]) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    out = io.BytesIO()
    writer = RecordWriter(cast("Any", out))
    writer.write(Event(wall_time=points[0].time, file_version=VERSION).SerializeToString())
    for point in points:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in point.figures.items()]
        event = Event(wall_time=point.time, step=point.step, summary=Summary(value=values))
        writer.write(event.SerializeToString())
    return out.getvalue()
