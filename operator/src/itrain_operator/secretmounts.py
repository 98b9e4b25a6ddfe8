"""Which Secrets a stage's pods see. Only names travel: the operator reads no Secret.

The storage Secret is the process's environment. Sources with a Secret of their own (model, data, benchmark) get it as
files, a folder per Secret, since several may hold the same AWS names with other values. The storage Secret is there as
files as well, so that AWS_CA_BUNDLE may point at one of its own keys.
"""

from __future__ import annotations

from typing import Any

from itrain_contract.spec import ITrainRunSpec
from itrain_contract.stageio import TRACKED
from itrain_contract.stages import StageKind
from itrain_contract.template import SecretRef

SECRETS_DIR = "/etc/itrain/secrets"


def mounted_secrets(spec: ITrainRunSpec, kind: StageKind) -> tuple[str, ...]:
    """Names of the Secrets that a stage reads, each once, the storage's first."""
    refs: list[SecretRef | None] = [spec.storage.secret_ref]
    if kind is StageKind.PREPARE:
        data = spec.data
        refs += [spec.model.secret_ref, data.secret_ref, *(source.secret_ref for source in data.extra)]
        refs.append(data.dev.secret_ref if data.dev else None)
    if kind is StageKind.EVALUATE:
        evaluate = spec.stages.evaluate
        refs.append(evaluate.api_bank.secret_ref if evaluate.api_bank else None)
        refs += [plugin.secret_ref for plugin in evaluate.plugins]
    return tuple(dict.fromkeys(ref.name for ref in refs if ref is not None))


def tracking_secrets(spec: ITrainRunSpec, kind: StageKind) -> tuple[str, ...]:
    """Names of the Secrets that only trackers need."""
    if spec.tracking is None or kind not in TRACKED:
        return ()
    needed = mounted_secrets(spec, kind)
    return tuple(name for name in dict.fromkeys(spec.tracking.secrets) if name not in needed)


def secret_volumes(
    names: tuple[str, ...], optional: tuple[str, ...] = ()
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(volumes, mounts). A Secret that is missing keeps the pod waiting until somebody creates it; an `optional` one
    does not: prepare ends with a reason, and later stages go on without their tracker."""
    volumes: list[dict[str, Any]] = [
        {"name": f"secret-{number}", "secret": {"secretName": name, "defaultMode": 0o440}}
        for number, name in enumerate((*names, *optional))
    ]
    for volume in volumes[len(names) :]:
        volume["secret"]["optional"] = True
    mounts = [
        {"name": f"secret-{number}", "mountPath": f"{SECRETS_DIR}/{name}", "readOnly": True}
        for number, name in enumerate((*names, *optional))
    ]
    return volumes, mounts


def storage_env_from(spec: ITrainRunSpec) -> list[dict[str, Any]]:
    ref = spec.storage.secret_ref
    return [] if ref is None else [{"secretRef": {"name": ref.name}}]
