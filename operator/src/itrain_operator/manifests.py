"""What the operator creates for one attempt of one stage: ConfigMap, Job and, for several nodes, a Service. Pure.

Plain dicts, exactly as they are POSTed (API document, "What the operator creates"). A Job for a queue is made
suspended, and from then on its suspension is the queue's alone: without Kueue it waits and says so, rather than run
outside the quota, and where Kueue's webhook is off none of its pods starts too early. Nothing here sets a TTL (a
vanished Job must not start a stage again), a success policy (it would kill the slowest, hardest shard) or a deadline
(the planner counts running time only).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from itrain_contract import names
from itrain_contract.spec import ITrainRunSpec
from itrain_contract.stageio import canonical_json
from itrain_contract.stages import StageKind, stage_spec
from itrain_contract.stagespec import TrainStage
from itrain_operator.actions import EnsureJob
from itrain_operator.jobpolicy import build_job_shape
from itrain_operator.observed import Run
from itrain_operator.podspec import INPUT_KEY, RENDEZVOUS_PORT, STORAGE_PATH, Attempt, Object, build_pod_spec
from itrain_operator.scheduling import ManifestError, place
from itrain_operator.settings import OperatorSettings

__all__ = ["ChildNames", "Children", "ManifestError", "build_children", "children_names", "storage_uri"]

HASH_DIGITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Children:
    """The objects of one attempt, in the order in which they are to be created: the Job last."""

    config_map: Object
    service: Object | None
    """Only where several pods train together."""
    job: Object
    template_hash: str
    """Of the Job's spec, the attempt's own names left out; reported, never judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildNames:
    """What is deleted along with a Job. Of most Jobs there is no Service."""

    config_map: str
    service: str


def children_names(job_name: str) -> ChildNames:
    return ChildNames(config_map=job_name, service=job_name)


def storage_uri(spec: ITrainRunSpec) -> str:
    """The storage root as pods see it. Raises ManifestError for a folder, which only one machine has."""
    storage = spec.storage
    if storage.uri is None:
        return f"file://{STORAGE_PATH}"
    if not storage.uri.startswith("s3://"):
        raise ManifestError(f"storage.uri: got {storage.uri!r}, allowed in a cluster are s3://… or storage.pvc")
    return storage.uri


def build_children(run: Run, action: EnsureJob, settings: OperatorSettings) -> Children:
    """Everything that one EnsureJob asks for. Raises ManifestError when it cannot be built, naming the field."""
    template_hash = hash_template(run, action, settings)
    labels = attempt_labels(run, action)
    metadata: Object = {
        "name": action.job_name,
        "namespace": run.namespace,
        "labels": labels,
        "annotations": {names.ANNOTATION_DIGEST: action.stage_input.digest},
        "ownerReferences": [owner_reference(run)],
    }
    template = place(run.spec, action.ref.kind, settings).template
    job: Object = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            **metadata,
            "labels": {**template.labels, **queue_labels(run.spec), **labels},
            "annotations": {
                **template.annotations,
                **queue_annotations(run.spec, action),
                **metadata["annotations"],
                names.ANNOTATION_TEMPLATE_HASH: template_hash,
            },
        },
        "spec": build_job_spec(run, action, settings, _attempt(run, action), labels),
    }
    config_map: Object = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "immutable": True,
        "data": {INPUT_KEY: action.stage_input.model_dump_json(by_alias=True, exclude_none=True)},
    }
    service = build_service(metadata) if nodes_of(run.spec, action.ref.kind) > 1 else None
    return Children(config_map=config_map, service=service, job=job, template_hash=template_hash)


def build_job_spec(
    run: Run, action: EnsureJob, settings: OperatorSettings, attempt: Attempt, labels: dict[str, str]
) -> Object:
    kind = action.ref.kind
    template = place(run.spec, kind, settings).template
    metadata: Object = {"labels": {**template.labels, **labels}}
    if template.annotations:
        metadata["annotations"] = dict(template.annotations)
    return {
        **build_job_shape(action, retries=stage_spec(run.spec, kind).retry.limit, nodes=attempt.nodes),
        **({"suspend": True} if run.spec.queue is not None else {}),
        "template": {"metadata": metadata, "spec": build_pod_spec(run.spec, kind, attempt, settings)},
    }


def build_service(metadata: Object) -> Object:
    """The headless Service that gives the nodes of a training their host names, before they are ready."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": metadata["labels"],
            "ports": [{"name": "rendezvous", "port": RENDEZVOUS_PORT, "protocol": "TCP"}],
        },
    }


def owner_reference(run: Run) -> Object:
    """The run owns its children.

    They do not block its deletion: setting blockOwnerDeletion asks for the right to update the run's finalizers, and a
    run that somebody deletes in foreground would hang on a Job whose node is dead.
    """
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "name": run.name,
        "uid": run.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def attempt_labels(run: Run, action: EnsureJob) -> dict[str, str]:
    return {
        names.LABEL_RUN: run.name,
        names.LABEL_RUN_UID: run.uid,
        names.LABEL_ITERATION: str(action.ref.iteration),
        names.LABEL_STAGE: action.ref.kind.value,
        names.LABEL_ATTEMPT: str(action.attempt),
    }


def queue_labels(spec: ITrainRunSpec) -> dict[str, str]:
    if spec.queue is None:
        return {}
    labels = {names.LABEL_QUEUE: spec.queue.name}
    if spec.queue.priority_class:
        labels[names.LABEL_QUEUE_PRIORITY] = spec.queue.priority_class
    return labels


def queue_annotations(spec: ITrainRunSpec, action: EnsureJob) -> dict[str, str]:
    """Partial admission (Kueue, "Run A Kubernetes Job"): fewer pods at a time, as many shards in all.

    Shards do not know of each other, so that fewer of them at a time only take longer. The nodes of a training do: it
    starts with all of them or not at all. Kueue refuses a minimum that is not below the parallelism.
    """
    least = spec.queue.min_parallelism if spec.queue is not None else None
    if least is None or action.shards is None or least >= action.parallelism:
        return {}
    return {names.ANNOTATION_MIN_PARALLELISM: str(least)}


def nodes_of(spec: ITrainRunSpec, kind: StageKind) -> int:
    block = stage_spec(spec, kind)
    return block.nodes if isinstance(block, TrainStage) else 1


def hash_template(run: Run, action: EnsureJob, settings: OperatorSettings) -> str:
    """sha256 (its first digits) of the Job's spec with the names, labels and number of the attempt left out."""
    nameless = Attempt(job_name="", number=0, nodes=nodes_of(run.spec, action.ref.kind))
    spec = build_job_spec(run, action, settings, nameless, {})
    return hashlib.sha256(canonical_json(spec)).hexdigest()[:HASH_DIGITS]


def _attempt(run: Run, action: EnsureJob) -> Attempt:
    return Attempt(job_name=action.job_name, number=action.attempt, nodes=nodes_of(run.spec, action.ref.kind))
