"""Kubernetes' Pod Security Standard "restricted", written from its documentation: what a pod spec does against it."""

from __future__ import annotations

from typing import Any

VOLUME_TYPES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


def violations(pod: dict[str, Any]) -> list[str]:
    """Every rule that a pod spec breaks, in words; empty for a pod that a restricted namespace admits."""
    context = pod.get("securityContext", {})
    found = [f"spec.{name} is set" for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name)]
    for volume in pod.get("volumes", []):
        kinds = set(volume) - {"name"}
        if len(kinds) != 1 or not kinds <= VOLUME_TYPES:
            found.append(f"volume {volume['name']} is of type {sorted(kinds)}")
    found += [f"sysctl {sysctl['name']}" for sysctl in context.get("sysctls", [])]
    for container in (*pod.get("initContainers", []), *pod.get("containers", []), *pod.get("ephemeralContainers", [])):
        found += [f"{container['name']}: {text}" for text in _container(container.get("securityContext", {}), context)]
        found += [f"{container['name']}: hostPort" for port in container.get("ports", []) if port.get("hostPort")]
    return found


def _container(own: dict[str, Any], pod: dict[str, Any]) -> list[str]:
    def effective(name: str) -> Any:
        return own.get(name, pod.get(name))

    found = []
    if own.get("privileged"):
        found.append("privileged")
    if own.get("allowPrivilegeEscalation") is not False:
        found.append("allowPrivilegeEscalation is not false")
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []):
        found.append("capabilities are not dropped")
    if set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        found.append("capabilities are added")
    if effective("runAsNonRoot") is not True:
        found.append("runAsNonRoot is not true")
    if effective("runAsUser") == 0:
        found.append("runAsUser is 0")
    if (effective("seccompProfile") or {}).get("type") not in ("RuntimeDefault", "Localhost"):
        found.append("no seccomp profile")
    if own.get("procMount", "Default") != "Default":
        found.append("procMount")
    return found
