"""The pod of a stage: one container, restricted, with read-only root and writable scratch. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from itrain_contract import names
from itrain_contract.names import DEFAULT_TERMINATION_LOG
from itrain_contract.spec import ITrainRunSpec
from itrain_contract.stages import StageKind, stage_spec
from itrain_contract.template import EnvVar, Resources
from itrain_operator.scheduling import (
    Placement,
    cpu_threads,
    place,
    scheduling_fields,
    stage_image,
    stage_resources,
)
from itrain_operator.secretmounts import (
    SECRETS_DIR,
    mounted_secrets,
    secret_volumes,
    storage_env_from,
    tracking_secrets,
)
from itrain_operator.settings import OperatorSettings

CONTAINER = "stage"
INPUT_DIR = "/etc/itrain/input"
INPUT_KEY = "stage-input.json"
STORAGE_PATH = "/itrain/storage"
HOME = "/home/itrain"
GRACE_SECONDS = 120
"""For a checkpoint to be written and uploaded after SIGTERM."""
RENDEZVOUS_PORT = 29500

Object = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What one attempt's pods are called; everything else in a pod is the same for every attempt of a stage."""

    job_name: str
    number: int
    nodes: int = 1
    """Pods that train together."""

    @property
    def master(self) -> str:
        """Host name of node 0 (its pod's subdomain is the headless Service)."""
        return f"{self.job_name}-0.{self.job_name}"


def build_pod_spec(spec: ITrainRunSpec, kind: StageKind, attempt: Attempt, settings: OperatorSettings) -> Object:
    """The pod's spec. Raises ManifestError when no image is known or a quantity cannot be read."""
    placement = place(spec, kind, settings)
    resources = stage_resources(spec, kind, settings)
    secrets = mounted_secrets(spec, kind), tracking_secrets(spec, kind)
    volumes, mounts = build_volumes(spec, kind, attempt, settings, secrets)
    container: Object = {
        "name": CONTAINER,
        "image": stage_image(spec, kind, placement.pool, settings),
        "imagePullPolicy": settings.image_pull_policy,
        "command": [*settings.command, kind.value],
        "env": build_env(kind, attempt, placement, resources, settings, secrets=any(secrets)),
        "resources": resources.model_dump(mode="json", by_alias=True, exclude_defaults=True),
        "volumeMounts": mounts,
        # Where a process dies without a word (out of memory, a crash), the end of its log stands in.
        "terminationMessagePath": DEFAULT_TERMINATION_LOG,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
    }
    env_from = storage_env_from(spec)
    if env_from:
        container["envFrom"] = env_from
    pod: Object = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": settings.pod_security.run_as_user,
            "runAsGroup": settings.pod_security.run_as_group,
            "fsGroup": settings.pod_security.fs_group,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": volumes,
        **scheduling_fields(placement.template),
    }
    if attempt.nodes > 1:
        pod["subdomain"] = attempt.job_name
    return pod


def build_env(
    kind: StageKind,
    attempt: Attempt,
    placement: Placement,
    resources: Resources,
    settings: OperatorSettings,
    *,
    secrets: bool,
) -> list[Object]:
    """Every variable once, sorted. People's go over the defaults; what the stage process needs goes over people's."""
    cache = settings.cache_mount_path
    values = {
        "HOME": HOME,
        "XDG_CACHE_HOME": f"{HOME}/.cache",
        "TRITON_CACHE_DIR": f"{HOME}/.cache/triton",
        "TORCHINDUCTOR_CACHE_DIR": f"{HOME}/.cache/torchinductor",
        "VLLM_CACHE_ROOT": f"{HOME}/.cache/vllm",
        "MPLCONFIGDIR": f"{HOME}/.cache/matplotlib",
        "HF_HOME": f"{cache}/huggingface",
        "PYTHONUNBUFFERED": "1",
    }
    threads = cpu_threads(resources, kind)
    if threads is not None:
        values |= dict.fromkeys(names.THREAD_VARIABLES, str(threads))
    if placement.preset.precision_default != "auto":
        values[names.ENV_PRECISION_DEFAULT] = placement.preset.precision_default
    for layer in (settings.extra_env, placement.preset.env, placement.template.env):
        values |= _by_name(layer)
    # Kubernetes leaves this one alone where it is set already, and every pod would be shard 0.
    values.pop(names.ENV_SHARD, None)
    values |= {
        names.ENV_STAGE_INPUT: f"{INPUT_DIR}/{INPUT_KEY}",
        names.ENV_ATTEMPT: str(attempt.number),
        names.ENV_CACHE_DIR: cache,
        names.ENV_TERMINATION_LOG: DEFAULT_TERMINATION_LOG,
    }
    if secrets:
        values[names.ENV_SECRETS_DIR] = SECRETS_DIR
    if attempt.nodes > 1:
        values |= {names.ENV_MASTER_ADDR: attempt.master, names.ENV_MASTER_PORT: str(RENDEZVOUS_PORT)}
    values.pop(names.ENV_POD_UID, None)
    env: list[Object] = [{"name": name, "value": value} for name, value in values.items()]
    env.append({"name": names.ENV_POD_UID, "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}})
    return sorted(env, key=lambda variable: str(variable["name"]))


def _by_name(variables: list[EnvVar]) -> dict[str, str]:
    return {variable.name: variable.value for variable in variables}


def build_volumes(
    spec: ITrainRunSpec,
    kind: StageKind,
    attempt: Attempt,
    settings: OperatorSettings,
    secrets: tuple[tuple[str, ...], tuple[str, ...]],
) -> tuple[list[Object], list[Object]]:
    """(volumes, mounts) of the container. `secrets` are needed ones and optional ones."""
    volumes: list[Object] = [
        {"name": "input", "configMap": {"name": attempt.job_name, "defaultMode": 0o440}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "home", "emptyDir": {}},
    ]
    mounts: list[Object] = [
        {"name": "input", "mountPath": INPUT_DIR, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  (the pod's own)
        {"name": "home", "mountPath": HOME},
    ]
    claim, cache = spec.storage.pvc, spec.model.cache
    if claim is not None:
        volumes.append({"name": "storage", "persistentVolumeClaim": {"claimName": claim.claim_name}})
        below = {"subPath": claim.sub_path} if claim.sub_path else {}
        mounts.append({"name": "storage", "mountPath": STORAGE_PATH, **below})
    if claim is not None and cache is not None and cache.pvc == claim.claim_name:
        mounts.append({"name": "storage", "mountPath": settings.cache_mount_path})  # a claim is mounted as one volume
    else:
        held = {"persistentVolumeClaim": {"claimName": cache.pvc}} if cache is not None else {"emptyDir": {}}
        volumes.append({"name": "cache", **held})
        mounts.append({"name": "cache", "mountPath": settings.cache_mount_path})
    if stage_spec(spec, kind).gpus:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": str(settings.shm_size)}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108
    secret_vols, secret_mounts = secret_volumes(*secrets)
    return [*volumes, *secret_vols], [*mounts, *secret_mounts]
