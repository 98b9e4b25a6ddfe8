"""A run's spec as it holds on this machine: paths made absolute, single fields overridden, edits judged. Pure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from itrain_contract.immutability import changes_refused
from itrain_contract.loading import ITrainRun, SpecError, SpecProblem, validate_run
from itrain_contract.names import Phase, Reason
from itrain_contract.spec import ITrainRunSpec
from itrain_contract.status import ITrainRunStatus, Progress
from itrain_contract.yamltext import read_documents
from itrain_operator.localstate import StoredRun

RELATIVE = ("./", "../")


def override(run: ITrainRun, settings: list[str]) -> ITrainRun:
    """The run with `path=value` settings applied (`iterations.max=1`; `spec.` may be left out).

    Raises SpecError that names the setting; values are YAML scalars, lists or mappings.
    """
    data = run.model_dump(mode="json", by_alias=True, exclude_unset=True)
    for setting in settings:
        path, equals, text = setting.partition("=")
        steps = path.strip().removeprefix("spec.").split(".")
        if not equals or not all(steps):
            problem = SpecProblem(field="--set", got=repr(setting), allowed="path=value, as in iterations.max=1")
            raise SpecError("--set", [problem])
        _set(data.setdefault("spec", {}), steps, _value(setting, text))
    return validate_run(data) if settings else run


def _value(setting: str, text: str) -> Any:
    try:
        (value,) = read_documents(text) or [None]
        return value
    except (yaml.YAMLError, ValueError) as error:
        problem = SpecProblem(field="--set", got=repr(setting), allowed="a YAML value after the =")
        raise SpecError("--set", [problem]) from error


def _set(node: dict[str, Any], steps: list[str], value: Any) -> None:
    for step in steps[:-1]:
        below = node.get(step)
        if not isinstance(below, dict):
            below = node[step] = {}
        node = below
    node[steps[-1]] = value


def absolute_paths(spec: ITrainRunSpec, folder: Path) -> ITrainRunSpec:
    """Every relative path of the spec taken from `folder`: a run must not depend on where it is resumed from."""

    def walk(node: Any) -> Any:
        if isinstance(node, dict):
            return {k: _absolute(v, folder) if k == "uri" and isinstance(v, str) else walk(v) for k, v in node.items()}
        return [walk(item) for item in node] if isinstance(node, list) else node

    return ITrainRunSpec.model_validate(walk(spec.model_dump(mode="json", by_alias=True, exclude_unset=True)))


def _absolute(uri: str, folder: Path) -> str:
    return str((folder / uri).resolve()) if uri.startswith(RELATIVE) else uri


def storage_root(spec: ITrainRunSpec, state: Path) -> str:
    """Where results go: storage.uri, or a folder in the state folder that stands for the volume claim."""
    if spec.storage.uri is None:
        claim = spec.storage.pvc
        below = Path(claim.claim_name, claim.sub_path or "") if claim else Path()
        return (state.resolve() / "storage" / below).as_uri()
    return Path(spec.storage.uri).as_uri() if spec.storage.uri.startswith("/") else spec.storage.uri


def edited(stored: StoredRun, spec: ITrainRunSpec, phase: Phase, source: str) -> StoredRun:
    """The stored run with a new spec, its generation raised; the same object when nothing changed.

    Raises SpecError for what the API server would refuse too.
    """
    if spec == stored.spec:
        return stored
    refused = changes_refused(stored.spec, spec, phase)
    if refused:
        raise SpecError(source, refused)
    return stored.model_copy(update={"spec": spec, "generation": stored.generation + 1})


def reopened(status: ITrainRunStatus) -> ITrainRunStatus:
    """A failed run's status with its stage to be tried again, under the next attempt; other statuses as they are.

    Only a person may ask for this, and only for a local run: on a cluster the terminal phase latches.
    """
    if status.phase != Phase.FAILED:
        return status
    return status.model_copy(
        update={
            "phase": Phase.RUNNING if status.start_time else Phase.PENDING,
            "reason": Reason.STAGE_RETRYING,
            "message": "",
            "attempt": status.attempt + 1,
            "failures": 0,
            "retry_at": None,
            "attempt_seconds": 0.0,
            "pending_seconds": 0.0,
            "completion_time": None,
            "current": None,
            "progress": Progress(),
        }
    )
