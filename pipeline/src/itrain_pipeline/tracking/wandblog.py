"""Weights & Biases: one run of our uid, each point a step of its own, so that a resumed run goes on where it was."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from itrain_contract.tracking import WandB
from itrain_pipeline.tracking.points import Point

INIT_TIMEOUT_S: Final = 30.0
FOLDER: Final = "wandb/"


def send(settings: WandB, run: Mapping[str, str], points: Sequence[Point], *, folder: Path) -> int:
    """Log the points after those that the run has; their number. Offline all of them, to `folder`/wandb.

    Raises what wandb raises.
    """
    if settings.uri is not None:
        os.environ["WANDB_BASE_URL"] = settings.uri
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    made = wandb.init(
        project=settings.project,
        entity=settings.entity,
        id=run["uid"],
        name=run["name"],
        config={f"itrain.{name}": value for name, value in run.items() if value},
        mode=settings.mode,
        resume="allow" if settings.mode == "online" else None,
        dir=folder,
        settings=wandb.Settings(
            console="off",
            silent=True,
            disable_code=True,
            disable_git=True,
            x_disable_meta=True,
            x_disable_stats=True,
            init_timeout=INIT_TIMEOUT_S,
        ),
    )
    has = made.step if settings.mode == "online" else 0
    for name, axis in {name: point.axis for point in points for name in point.figures}.items():
        made.define_metric(name, step_metric=axis)
    for number, point in enumerate(points[has:], has):
        made.log({**point.figures, point.axis: point.step}, step=number)
    made.finish()
    return len(points) - min(has, len(points))
