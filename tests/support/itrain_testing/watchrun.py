"""What a test asks of a run on a real API server."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from itrain_testing.cluster.access import Access, eventually
from itrain_testing.clusterruns import run_manifest

SMALL: dict[str, Any] = {
    "iterations": {"max": 1},
    "stages": {
        "prepare": {"gpus": 0, "retry": {"backoffSeconds": 1}},
        "warmup": {"gpus": 0, "retry": {"backoffSeconds": 1}},
        "score": {"gpus": 0, "shards": 2, "parallelism": 2},
        "rollout": {"gpus": 0, "shards": 3, "parallelism": 3, "minSucceeded": 2},
        "train": {"gpus": 0, "retry": {"backoffSeconds": 1}},
        "evaluate": {"gpus": 0},
        "export": {"gpus": 0},
    },
}
"""Eight stages without GPUs."""
STAGES = [
    "run-i0-prepare-a1",
    "run-i0-warmup-a1",
    "run-i0-evaluate-a1",
    "run-i1-score-a1",
    "run-i1-rollout-a1",
    "run-i1-train-a1",
    "run-i1-evaluate-a1",
    "run-i0-export-a1",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedRun:
    """One run by its name, whichever object bears it."""

    cluster: Access
    namespace: str
    name: str = "run"

    def apply(self, **fields: Any) -> None:
        self.cluster.apply(run_manifest(self.name, self.namespace, **{**SMALL, **fields}))

    def patch(self, spec: dict[str, Any]) -> None:
        patch = json.dumps({"spec": spec})
        self.cluster.kubectl("patch", "itr", self.name, "--type=merge", f"--patch={patch}", namespace=self.namespace)

    def delete(self, kind: str = "itr", name: str = "", *options: str) -> None:
        self.cluster.kubectl("delete", kind, name or self.name, *options, namespace=self.namespace)

    def raw(self) -> dict[str, Any]:
        return self.cluster.get("itr", self.name, namespace=self.namespace)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.raw().get("status") or {}
        return found

    def job_names(self) -> list[str]:
        """Oldest first."""
        jobs = self.cluster.get("jobs", namespace=self.namespace)["items"]
        return [job["metadata"]["name"] for job in sorted(jobs, key=lambda j: j["metadata"]["creationTimestamp"])]

    def events(self) -> list[str]:
        """`Reason: message` of the run's events."""
        found = self.cluster.get("events", namespace=self.namespace)["items"]
        return [f"{e['reason']}: {e['message']}" for e in found if e["involvedObject"]["kind"] == "ITrainRun"]

    def wait(self, timeout_s: float = 90.0, **wanted: Any) -> dict[str, Any]:
        """The status once all its fields named are as wanted; a callable judges its field."""

        def fits(value: Any, want: Any) -> bool:
            return bool(want(value)) if callable(want) else value == want

        def check() -> dict[str, Any]:
            now = self.status()
            return now if all(fits(now.get(key), want) for key, want in wanted.items()) else {}

        return self.until(check, f"{wanted}", timeout_s=timeout_s)

    def wait_for_running(self, stage: str, timeout_s: float = 60.0) -> dict[str, Any]:
        """The status once pods of a stage run."""
        return self.wait(timeout_s, stage=stage, reason="StageRunning")

    def until(self, check: Callable[[], Any], what: str, *, timeout_s: float = 60.0) -> Any:
        try:
            return eventually(check, timeout_s=timeout_s, what=what)
        except AssertionError as error:
            raise AssertionError(f"{error}; {json.dumps(self.status())[:1200]}") from error
