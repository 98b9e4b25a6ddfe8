"""`itrain report --compare`: which runs are meant, where each lies, and the pipeline's page about them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itrain_contract.spec import ITrainRunSpec
from itrain_operator.cli_inspect import artifacts_root
from itrain_operator.cli_local import run_pipeline
from itrain_operator.clusteraccess import ClusterError
from itrain_operator.clusterruns import ClusterRun
from itrain_operator.clusterstore import AWS_HINT, on_claim
from itrain_operator.localstate import StateFolder

OUT = Path("comparison.html")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a run's results lie, and the spec that they were made from."""

    root: str
    spec: Mapping[str, Any]
    remote: bool = False
    """In a bucket that this machine must be allowed to read."""


def place_of(run: StateFolder | ClusterRun) -> Place:
    """Raises ClusterError for a run whose volume only a pod can read, or whose spec cannot be read."""
    if isinstance(run, StateFolder):
        root = artifacts_root(run)
        return Place(root=root, spec=_dump(run.run().spec), remote=not root.startswith("file:"))
    if on_claim(run):
        raise ClusterError(
            f"{run.name} lies on a volume claim, which this machine cannot read: a comparison needs storage.uri, or "
            f"`itrain report {run.name}` for one run alone"
        )
    root = run.layout.root
    if run.spec is None:
        raise AssertionError("a layout needs a spec")
    return Place(root=root, spec=_dump(run.spec), remote=True)


def _dump(spec: ITrainRunSpec) -> dict[str, Any]:
    """Defaults included: two versions of this software may have different ones."""
    return spec.model_dump(mode="json", by_alias=True, exclude_none=True)


def labels_of(named: Sequence[str]) -> list[str]:
    """Short names of the runs: the last part of each path where these differ, else the paths. Raises ClusterError for
    a run that is named twice."""
    if len(set(named)) < len(named):
        raise ClusterError(f"--compare names one run twice: {', '.join(named)}")
    short = [Path(name).name or name for name in named]
    return short if len(set(short)) == len(short) else list(named)


def write_comparison(named: Sequence[str], places: Sequence[Place], out: Path, environ: Mapping[str, str]) -> Path:
    """Raises PipelineError with the pipeline's own words and exit code."""
    runs = [
        {"label": label, "root": place.root, "spec": place.spec}
        for label, place in zip(labels_of(named), places, strict=True)
    ]
    with tempfile.TemporaryDirectory(prefix="itrain-compare-") as folder:
        file = Path(folder) / "runs.json"
        file.write_text(json.dumps(runs), encoding="utf-8")
        hint = f"; {AWS_HINT}" if any(place.remote for place in places) else ""
        run_pipeline(["compare", "--runs", str(file), "--out", str(out)], environ, hint=hint)
    return out
