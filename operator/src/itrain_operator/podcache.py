"""The pods of Jobs of ours as a watch tells them, by the Job's UID. Pure.

A pass asks it instead of the API server, for which a list of one Job's pods is a walk over all pods of the namespace.
"""

from __future__ import annotations

from collections.abc import Iterable
from sys import intern

from itrain_operator.kubeapi import Raw
from itrain_operator.kubepods import PodFacts, parse_pod

LABEL_JOB_UID = "batch.kubernetes.io/controller-uid"

_Jobs = dict[str, dict[str, PodFacts]]


class PodCache:
    """By namespace as it is watched: "" where one watch sees them all."""

    def __init__(self) -> None:
        self._jobs: dict[str, _Jobs] = {}
        self._filled: set[str] = set()

    def fill(self, watched: str, pods: Iterable[tuple[str, PodFacts]]) -> None:
        """Everything there is, by the Job's UID; what was known before is forgotten."""
        self._jobs[watched] = {}
        for uid, facts in pods:
            self._put(watched, uid, facts)
        self._filled.add(watched)

    def doubt(self, watched: str) -> None:
        """The watch broke: nothing is known until the next `fill`."""
        self._filled.discard(watched)

    def put(self, watched: str, raw: Raw) -> None:
        self._put(watched, *read_pod(raw))

    def _put(self, watched: str, uid: str, facts: PodFacts) -> None:
        self._jobs.setdefault(watched, {}).setdefault(uid, {})[facts.name] = facts

    def remove(self, watched: str, raw: Raw) -> None:
        uid, facts = read_pod(raw)
        pods = self._jobs.get(watched, {}).get(uid, {})
        pods.pop(facts.name, None)
        if not pods:
            self._jobs.get(watched, {}).pop(uid, None)

    def of(self, namespace: str, job_uid: str) -> list[PodFacts] | None:
        """The Job's pods; None while they are not known. They may be of a moment ago."""
        watched = namespace if namespace in self._filled else ""
        if watched not in self._filled:
            return None
        return list(self._jobs[watched].get(job_uid, {}).values())


def read_pod(raw: Raw) -> tuple[str, PodFacts]:
    """The UID of the Job that a pod belongs to, and its facts."""
    labels = raw["metadata"].get("labels") or {}
    return intern(str(labels.get(LABEL_JOB_UID, ""))), parse_pod(raw)
