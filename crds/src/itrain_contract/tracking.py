"""Where a run's figures are sent besides its storage (docs/report.md)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import StringConstraints

from itrain_contract.base import SpecModel
from itrain_contract.template import SecretRef

ServerUrl = Annotated[
    str, StringConstraints(min_length=8, max_length=1024, pattern=r"^https?://[^\s/?#@\x00]+(/[^\s?#@\x00]*)?$")
]
"""Without a name or password in it: specs, logs and pages are read by many."""
Project = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class MLflow(SpecModel):
    """An MLflow tracking server; the images of the stages need the package `mlflow-skinny`."""

    uri: ServerUrl
    """Of the server, as in `https://mlflow.example`."""
    experiment: Annotated[
        str, StringConstraints(min_length=1, max_length=255, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._/-]*$")
    ] = "itrain"
    """Made where there is none of this name."""
    secret_ref: SecretRef | None = None
    """MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."""


class WandB(SpecModel):
    """Weights & Biases; the images of the stages need the package `wandb`."""

    project: Project
    """Made where there is none of this name."""
    entity: Project | None = None
    """Team or user; absent: the key's own."""
    mode: Literal["online", "offline"] = "online"
    """`offline` calls no service: export leaves a folder in the run's storage for `wandb sync`."""
    uri: ServerUrl | None = None
    """Of a server of one's own."""
    secret_ref: SecretRef | None = None
    """WANDB_API_KEY; nothing is read from it offline."""


class Tracking(SpecModel):
    """Sent after each training and evaluation; a tracker that is away fails nothing."""

    tensorboard: bool = False
    """Event files in `tensorboard/` of the run's folder in storage."""
    mlflow: MLflow | None = None
    """An MLflow tracking server."""
    wandb: WandB | None = None
    """Weights & Biases."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """Names of the Secrets that are read."""
        refs = [self.mlflow.secret_ref if self.mlflow else None]
        refs.append(self.wandb.secret_ref if self.wandb and self.wandb.mode == "online" else None)
        return tuple(ref.name for ref in refs if ref is not None)

    @property
    def empty(self) -> bool:
        return not self.tensorboard and self.mlflow is None and self.wandb is None
