"""Runs as the API server has them, read by a command that may be older than the operator. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from itrain_contract.layout import RunLayout
from itrain_contract.spec import ITrainRunSpec
from itrain_contract.status import ITrainRunStatus
from itrain_operator.clusteraccess import ClusterError
from itrain_operator.kubeapi import Raw
from itrain_operator.kubeobserve import parse_time
from itrain_operator.manifests import ManifestError, storage_uri

M = TypeVar("M", bound=BaseModel)

GITOPS: Mapping[str, str] = {
    "argocd.argoproj.io/tracking-id": "Argo CD",
    "argocd.argoproj.io/instance": "Argo CD",
    "kustomize.toolkit.fluxcd.io/name": "Flux",
    "helm.toolkit.fluxcd.io/name": "Flux",
}
"""Labels and annotations by which a GitOps controller marks what it applies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterRun:
    """One stored run."""

    name: str
    namespace: str
    uid: str
    generation: int
    created: datetime | None
    spec: ITrainRunSpec | None
    """None where this version cannot read it."""
    status: ITrainRunStatus
    raw: Raw

    @property
    def observed(self) -> bool:
        """Whether an operator has seen the spec as it is now."""
        return self.status.observed_generation >= self.generation

    @property
    def managed_by(self) -> str:
        """The GitOps controller that applied it, which would undo an edit by hand; empty where there is none."""
        metadata = self.raw["metadata"]
        marks = {**(metadata.get("labels") or {}), **(metadata.get("annotations") or {})}
        return next((tool for mark, tool in GITOPS.items() if mark in marks), "")

    @property
    def layout(self) -> RunLayout:
        """Where its artifacts lie; raises ClusterError where the spec cannot tell."""
        if self.spec is None:
            raise ClusterError(f"the spec of {self.name} cannot be read: use the itrain of the cluster's version")
        try:
            return RunLayout(storage=storage_uri(self.spec), name=self.name, uid=self.uid)
        except ManifestError as error:
            raise ClusterError(f"{self.name} has no artifacts: {error}") from error


def read_run(raw: Raw) -> ClusterRun:
    """Raises ClusterError for a status that this version cannot read."""
    metadata = raw["metadata"]
    name = str(metadata["name"])
    try:
        status = lenient(ITrainRunStatus, raw.get("status") or {})
    except ValidationError as error:
        problems = f"{error.error_count()} problems"
        raise ClusterError(
            f"the status of {name} cannot be read ({problems}): use the itrain of the cluster's version"
        ) from error
    try:
        spec = lenient(ITrainRunSpec, raw.get("spec") or {})
    except ValidationError:  # what the operator says of it is in the status
        spec = None
    return ClusterRun(
        name=name,
        namespace=str(metadata.get("namespace", "")),
        uid=str(metadata["uid"]),
        generation=int(metadata.get("generation", 1)),
        created=parse_time(metadata.get("creationTimestamp")),
        spec=spec,
        status=status,
        raw=raw,
    )


def lenient(model: type[M], data: Raw) -> M:
    """`data` as a model, fields that are unknown here left out: a newer operator may have added some."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        unknown = [problem["loc"] for problem in error.errors() if problem["type"] == "extra_forbidden"]
        if len(unknown) < error.error_count():
            raise
        return model.model_validate(_without(data, unknown, ()))


def _without(node: Any, unknown: list[tuple[int | str, ...]], at: tuple[int | str, ...]) -> Any:
    if isinstance(node, dict):
        return {k: _without(v, unknown, (*at, k)) for k, v in node.items() if (*at, k) not in unknown}
    if isinstance(node, list):
        return [_without(item, unknown, (*at, index)) for index, item in enumerate(node)]
    return node
