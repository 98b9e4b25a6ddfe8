"""Expected Jobs, made by small words: a whole object to compare with, of which a test says only what matters to it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from itrain_contract.names import LABEL_ATTEMPT, LABEL_ITERATION, LABEL_RUN, LABEL_RUN_UID, LABEL_STAGE
from itrain_contract.stages import StageRef
from itrain_operator.machine import ensure_job
from itrain_operator.manifests import Children, build_children
from itrain_operator.observed import Run
from itrain_operator.settings import OperatorSettings
from itrain_operator.settingsfile import parse_settings

IMAGES = "images: {current: {trainer: trainer, rollout: rollout}, volta: {pipeline: volta}, cpu: {pipeline: cpu}}\n"
DISRUPTED = [{"type": "DisruptionTarget", "status": "True"}]


def settings(text: str = "") -> OperatorSettings:
    """Settings with an image for every pool, and what a YAML text says beside."""
    return parse_settings(IMAGES + text, {})


def children(run: Run, ref: StageRef, settings: OperatorSettings, attempt: int = 1) -> Children:
    """What the run's attempt of a stage is made of."""
    pointed = run.status.model_copy(update={"stage": ref.kind, "iteration": ref.iteration, "attempt": attempt})
    run = replace(run, status=pointed)
    return build_children(run, ensure_job(run, ref), settings)


def pod(job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = job["spec"]["template"]["spec"]
    return found


def container(job: dict[str, Any]) -> dict[str, Any]:
    (found,) = pod(job)["containers"]
    return dict(found)


def env(job: dict[str, Any]) -> dict[str, str]:
    """Literal variables by name."""
    return {v["name"]: v["value"] for v in container(job)["env"] if "value" in v}


def mounts(job: dict[str, Any]) -> dict[str, str]:
    """Volume name by mount path."""
    return {mount["mountPath"]: mount["name"] for mount in container(job)["volumeMounts"]}


class ExpectedJob:
    """A Job of a CPU stage on default settings; each word changes one thing."""

    def __init__(self, run: Run, ref: StageRef, attempt: int = 1) -> None:
        name = f"{run.name}-i{ref.iteration}-{ref.kind.value}-a{attempt}"
        self._stage = ref.kind.value
        labels = {
            LABEL_RUN: run.name,
            LABEL_RUN_UID: run.uid,
            LABEL_ITERATION: str(ref.iteration),
            LABEL_STAGE: ref.kind.value,
            LABEL_ATTEMPT: str(attempt),
        }
        owner = {
            "apiVersion": "itrain.dev/v1alpha1",
            "kind": "ITrainRun",
            "name": run.name,
            "uid": run.uid,
            "controller": True,
            "blockOwnerDeletion": False,
        }
        self._env: dict[str, str] = {
            "HF_HOME": "/var/cache/itrain/huggingface",
            "HOME": "/home/itrain",
            "ITRAIN_ATTEMPT": str(attempt),
            "ITRAIN_CACHE_DIR": "/var/cache/itrain",
            "ITRAIN_STAGE_INPUT": "/etc/itrain/input/stage-input.json",
            "ITRAIN_TERMINATION_LOG": "/dev/termination-log",
            "MPLCONFIGDIR": "/home/itrain/.cache/matplotlib",
            "PYTHONUNBUFFERED": "1",
            "TORCHINDUCTOR_CACHE_DIR": "/home/itrain/.cache/torchinductor",
            "TRITON_CACHE_DIR": "/home/itrain/.cache/triton",
            "VLLM_CACHE_ROOT": "/home/itrain/.cache/vllm",
            "XDG_CACHE_HOME": "/home/itrain/.cache",
        }
        self._volumes: list[dict[str, Any]] = [
            {"name": "input", "configMap": {"name": name, "defaultMode": 0o440}},
            {"name": "tmp", "emptyDir": {}},
            {"name": "home", "emptyDir": {}},
            {"name": "cache", "emptyDir": {}},
        ]
        self._mounts: list[dict[str, Any]] = [
            {"name": "input", "mountPath": "/etc/itrain/input", "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "home", "mountPath": "/home/itrain"},
            {"name": "cache", "mountPath": "/var/cache/itrain"},
        ]
        self._pod: dict[str, Any] = {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 120,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "runAsGroup": 10001,
                "fsGroup": 10001,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
        }
        self._container: dict[str, Any] = {}
        self._job: dict[str, Any] = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {
                "name": name,
                "namespace": run.namespace,
                "labels": dict(labels),
                "annotations": {},
                "ownerReferences": [owner],
            },
            "spec": {"template": {"metadata": {"labels": dict(labels)}}},
        }

    def annotated(self, made: Children) -> ExpectedJob:
        """With the digest and the hash that these children carry."""
        annotations = made.job["metadata"]["annotations"]
        for name in ("itrain.dev/input-digest", "itrain.dev/template-hash"):
            self._job["metadata"]["annotations"][name] = annotations[name]
        return self

    def queued(self, queue: str, priority: str) -> ExpectedJob:
        self._job["metadata"]["labels"] |= {
            "kueue.x-k8s.io/queue-name": queue,
            "kueue.x-k8s.io/priority-class": priority,
        }
        self._job["spec"]["suspend"] = True
        return self

    def partly_admitted(self, least: int) -> ExpectedJob:
        self._job["metadata"]["annotations"]["kueue.x-k8s.io/job-min-parallelism"] = str(least)
        return self

    def whole(self, nodes: int = 1) -> ExpectedJob:
        """Unsharded: it fails at its first failure, whose code the Job's condition then tells."""
        self._job["spec"] |= {
            "completionMode": "Indexed" if nodes > 1 else "NonIndexed",
            "completions": nodes,
            "parallelism": nodes,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    {"action": "FailJob", "onPodConditions": DISRUPTED},
                    {
                        "action": "FailJob",
                        "onExitCodes": {"containerName": "stage", "operator": "NotIn", "values": [0, 143]},
                    },
                ]
            },
        }
        return self

    def sharded(self, shards: int, parallelism: int, *, retries: int, may_fail: int) -> ExpectedJob:
        def on_exit(action: str, *codes: int) -> dict[str, Any]:
            return {
                "action": action,
                "onExitCodes": {"containerName": "stage", "operator": "In", "values": list(codes)},
            }

        self._job["spec"] |= {
            "completionMode": "Indexed",
            "completions": shards,
            "parallelism": parallelism,
            "backoffLimitPerIndex": retries,
            "maxFailedIndexes": may_fail,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    {"action": "Ignore", "onPodConditions": DISRUPTED},
                    on_exit("FailIndex", 70),
                    on_exit("FailJob", 64, 65),
                ]
            },
        }
        return self

    def image(self, image: str) -> ExpectedJob:
        self._container["image"] = image
        return self

    def resources(self, requests: dict[str, Any], limits: dict[str, Any] | None = None) -> ExpectedJob:
        self._container["resources"] = {"requests": requests, **({"limits": limits} if limits else {})}
        return self

    def threads(self, count: int) -> ExpectedJob:
        for name in ("ITRAIN_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            self._env[name] = str(count)
        return self

    def shm(self) -> ExpectedJob:
        self._volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}})
        self._mounts.append({"name": "shm", "mountPath": "/dev/shm"})
        return self

    def secret(self, number: int, name: str) -> ExpectedJob:
        self._env["ITRAIN_SECRETS_DIR"] = "/etc/itrain/secrets"
        self._volumes.append({"name": f"secret-{number}", "secret": {"secretName": name, "defaultMode": 0o440}})
        mount = {"name": f"secret-{number}", "mountPath": f"/etc/itrain/secrets/{name}", "readOnly": True}
        self._mounts.append(mount)
        return self

    def env_from(self, name: str) -> ExpectedJob:
        self._container["envFrom"] = [{"secretRef": {"name": name}}]
        return self

    def with_env(self, **variables: str) -> ExpectedJob:
        self._env |= variables
        return self

    def with_pod(self, **fields: Any) -> ExpectedJob:
        self._pod |= fields
        return self

    def build(self) -> dict[str, Any]:
        variables: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in self._env.items()]
        variables.append({"name": "ITRAIN_POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}})
        job = copy.deepcopy(self._job)
        job["spec"]["template"]["spec"] = {
            **self._pod,
            "volumes": self._volumes,
            "containers": [
                {
                    "name": "stage",
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["python", "-m", "itrain_pipeline", self._stage],
                    "env": sorted(variables, key=lambda variable: str(variable["name"])),
                    "volumeMounts": self._mounts,
                    "terminationMessagePath": "/dev/termination-log",
                    "terminationMessagePolicy": "FallbackToLogsOnError",
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                        "readOnlyRootFilesystem": True,
                    },
                    **self._container,
                }
            ],
        }
        return job
