"""Pods and nodes as a kubelet writes their statuses. Pure but for the clock: stamps are the time of the call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from itrain_contract.stageio import TerminationSummary
from itrain_operator.kubeapi import Raw

CAPACITY = {"cpu": "4000", "memory": "8Ti", "pods": "20000", "nvidia.com/gpu": "4000", "ephemeral-storage": "8Ti"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PodRun:
    """How a pod goes: `seconds` of running, then an exit code; a `stuck` one waits for its image for ever."""

    seconds: float = 0.2
    exit_code: int = 0
    reason: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    counters: dict[str, float] = field(default_factory=dict)
    message: str = ""
    stuck: bool = False
    log: str = ""


def stamp() -> str:
    return datetime.now(tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def ready_condition() -> Raw:
    at = stamp()
    return {
        "type": "Ready",
        "status": "True",
        "reason": "Simulated",
        "lastHeartbeatTime": at,
        "lastTransitionTime": at,
    }


def build_node_status(log_port: int, capacity: Mapping[str, str] = CAPACITY) -> Raw:
    """A node with room for everything by default; the API server asks it for logs on loopback."""
    return {
        "capacity": dict(capacity),
        "allocatable": dict(capacity),
        "conditions": [ready_condition()],
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": log_port}},
    }


def _status(phase: str, ready: bool, state: Raw) -> Raw:
    at = stamp()
    container = {
        "name": "stage",
        "image": "simulated",
        "imageID": "",
        "ready": ready,
        "restartCount": 0,
        "state": state,
    }
    text = "True" if ready else "False"
    conditions = [{"type": kind, "status": text, "lastTransitionTime": at} for kind in ("Ready", "ContainersReady")]
    return {"phase": phase, "startTime": at, "conditions": conditions, "containerStatuses": [container]}


def with_conditions(pod: Raw, status: Raw) -> Raw:
    """The status with the pod's other conditions: a merge patch replaces the list."""
    kept = [c for c in pod["status"].get("conditions", []) if c["type"] not in ("Ready", "ContainersReady")]
    return {**status, "conditions": [*kept, *status["conditions"]]}


def build_waiting() -> Raw:
    why = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "example.org/itrain:1"'}
    return _status("Pending", False, {"waiting": why})


def build_running() -> Raw:
    return _status("Running", True, {"running": {"startedAt": stamp()}})


def build_ended(pod: Raw, run: PodRun) -> Raw:
    summary = TerminationSummary(
        exit_code=run.exit_code, metrics=run.metrics, counters=run.counters, message=run.message, seconds=run.seconds
    )
    terminated = {
        "exitCode": run.exit_code,
        "reason": run.reason or ("Error" if run.exit_code else "Completed"),
        "message": summary.to_message().decode(),
        "startedAt": pod.get("status", {}).get("startTime") or stamp(),
        "finishedAt": stamp(),
    }
    status = _status("Failed" if run.exit_code else "Succeeded", False, {"terminated": terminated})
    del status["startTime"]
    return status
