"""The operator's requests by verb and resource, counted by the API server: its audit log of one user."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from itrain_operator.kubeapi import Raw

READS = ("get", "list")
WRITES = ("create", "update", "patch", "delete")


def build_policy(user: str) -> Raw:
    return {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived", "ResponseStarted"],
        "rules": [{"level": "Metadata", "users": [user]}, {"level": "None"}],
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """Counts of a stretch of time, by (verb, resource with its subresource)."""

    counts: Counter[tuple[str, str]]
    refused: Counter[int]
    """Answers other than 2xx, by code."""

    def reads(self) -> int:
        """Without the lease's, which are the same whatever the runs do."""
        return sum(n for (verb, what), n in self.counts.items() if verb in READS and what != "leases")

    def writes(self, *resources: str) -> int:
        """To these resources; tries that were refused count too."""
        return sum(n for (verb, what), n in self.counts.items() if verb in WRITES and what in resources)

    def writes_beside(self, *resources: str) -> int:
        return sum(n for (verb, what), n in self.counts.items() if verb in WRITES and what not in resources)


class AuditTail:
    """Each `read` counts what was written since the one before."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> Requests:
        counts: Counter[tuple[str, str]] = Counter()
        refused: Counter[int] = Counter()
        with self._path.open("rb") as log:
            log.seek(self._offset)
            for line in log:
                if not line.endswith(b"\n"):
                    break  # still being written
                self._offset += len(line)
                _count(json.loads(line), counts, refused)
        return Requests(counts=counts, refused=refused)


def _count(event: Raw, counts: Counter[tuple[str, str]], refused: Counter[int]) -> None:
    target = event.get("objectRef") or {}
    counts[event["verb"], "/".join(filter(None, (target.get("resource"), target.get("subresource"))))] += 1
    code = event.get("responseStatus", {}).get("code", 0)
    if not 200 <= code < 300:
        refused[code] += 1
