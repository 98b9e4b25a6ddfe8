"""A stored run to the planner's `Run`, and a status to the patch that stores it. Pure."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from pydantic import ValidationError

from itrain_contract.loading import SpecError, SpecProblem, validate_run
from itrain_contract.names import API_VERSION, KIND
from itrain_contract.status import ITrainRunStatus
from itrain_operator.cache import RunRecord
from itrain_operator.kubeapi import Raw, merge_diff
from itrain_operator.manifests import ManifestError, storage_uri
from itrain_operator.observed import Run


class UnreadableStatusError(Exception):
    """The stored status is not this version's: it is left alone."""


def read_run(record: RunRecord) -> Run:
    """Raises SpecError for a spec that cannot be carried out, UnreadableStatusError for a status of another version."""
    status = read_status(record)
    data = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": record.key.name, "namespace": record.key.namespace},
        "spec": json.loads(record.spec),
    }
    spec = validate_run(data).spec
    try:
        storage = storage_uri(spec)
    except ManifestError as error:
        problem = SpecProblem(field="spec.storage.uri", got=repr(spec.storage.uri), allowed="s3://… or storage.pvc")
        raise SpecError("<object>", [problem]) from error
    return Run(
        name=record.key.name,
        namespace=record.key.namespace,
        uid=record.uid,
        generation=record.generation,
        spec=spec,
        status=status,
        created=record.created or datetime.fromtimestamp(0, tz=UTC),
        storage=storage,
    )


def read_status(record: RunRecord) -> ITrainRunStatus:
    try:
        return ITrainRunStatus.model_validate_json(record.status)
    except ValidationError as error:
        raise UnreadableStatusError(f"the status of {record.key} cannot be read: {error}") from error


def status_patch(record: RunRecord, status: ITrainRunStatus) -> Raw:
    """A merge patch for `/status` that holds only for the version that the status was planned on."""
    new = status.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {
        "metadata": {"resourceVersion": record.resource_version, "uid": record.uid},
        "status": merge_diff(json.loads(record.status), new),
    }
