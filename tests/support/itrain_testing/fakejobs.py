"""What runs Jobs in the in-memory cluster: Job controller, kubelet and garbage collector, one tick at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from itrain_contract.names import KIND, LABEL_ATTEMPT, LABEL_ITERATION, LABEL_STAGE
from itrain_contract.stageio import TerminationSummary
from itrain_contract.stages import StageKind, StageRef
from itrain_operator.kubeapi import CONFIG_MAPS, JOBS, PODS, RUNS, SERVICES, Raw
from itrain_operator.kubepods import LABEL_INDEX
from itrain_testing.fakecluster import FakeServer

TICK_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnd:
    """How the Job of an attempt ends."""

    exit_code: int = 0
    disrupted: bool = False
    metrics: tuple[tuple[str, float], ...] = ()
    failed_indexes: frozenset[int] = frozenset()


JobScript = Callable[[StageRef, int], JobEnd]


def all_complete(ref: StageRef, attempt: int) -> JobEnd:
    return JobEnd()


class JobWorld:
    """Every Job is pending for a tick, active for a tick, then it ends as the script says."""

    def __init__(self, server: FakeServer, script: JobScript = all_complete) -> None:
        self.server = server
        self.script = script

    def tick(self) -> None:
        self.server.now += timedelta(seconds=TICK_S)
        self._collect_garbage()
        for job in self.server.all(JOBS):
            if "deletionTimestamp" in job["metadata"]:
                self._finish_deletion(job)
            elif LABEL_STAGE in job["metadata"].get("labels", {}) and not job.get("status", {}).get("conditions"):
                self._advance(job)

    def _collect_garbage(self) -> None:
        runs = {run["metadata"]["uid"] for run in self.server.all(RUNS)}
        for resource in (JOBS, CONFIG_MAPS, SERVICES):
            for raw in self.server.all(resource):
                owners = [o["uid"] for o in raw["metadata"].get("ownerReferences", []) if o["kind"] == KIND]
                if owners and not runs.intersection(owners):
                    if resource == JOBS:
                        self._finish_deletion(raw)
                    else:
                        self.server.remove(resource, raw)

    def _finish_deletion(self, job: Raw) -> None:
        for pod in self._pods(job):
            self.server.remove(PODS, pod)
        self.server.remove(JOBS, job)

    def _advance(self, job: Raw) -> None:
        status = job.setdefault("status", {})
        if "startTime" not in status:
            status |= {"startTime": self.server.stamp(), "active": self._parallelism(job), "ready": 0}
        elif not status.get("ready"):
            status["ready"] = status["active"]
        else:
            self._end(job, self.script(*attempt_of(job)))
        self.server.touch(JOBS, job)

    def _end(self, job: Raw, end: JobEnd) -> None:
        status, sharded = job["status"], job["spec"].get("completionMode") == "Indexed"
        count = job["spec"].get("completions", 1)
        all_failed = bool(end.exit_code or end.disrupted)
        bad = frozenset(range(count)) if all_failed else end.failed_indexes
        for index in range(count):
            self._add_pod(job, index if sharded else None, end, failed=index in bad)
        status |= {"active": 0, "ready": 0, "succeeded": count - len(bad), "failed": len(bad)}
        if sharded:
            status["completedIndexes"] = ",".join(str(i) for i in range(count) if i not in bad)
            status["failedIndexes"] = ",".join(str(i) for i in sorted(bad))
        condition: Raw = {"status": "True", "lastTransitionTime": self.server.stamp()}
        if not bad:
            status["completionTime"] = self.server.stamp()
            status["conditions"] = [{**condition, "type": "Complete"}]
        else:
            reason = "PodFailurePolicy" if all_failed else "FailedIndexes"
            message = f"Container stage for pod x failed with exit code {end.exit_code} matching FailJob rule"
            if end.disrupted:
                message = "Pod x has condition DisruptionTarget matching FailJob rule at index 0"
            status["conditions"] = [{**condition, "type": "Failed", "reason": reason, "message": message}]

    def _add_pod(self, job: Raw, index: int | None, end: JobEnd, *, failed: bool) -> None:
        metadata = job["metadata"]
        code = (end.exit_code or 75) if failed else 0
        summary = TerminationSummary(
            exit_code=code, metrics=dict(end.metrics), message="it broke" if failed else "", seconds=TICK_S
        )
        labels = {"batch.kubernetes.io/controller-uid": metadata["uid"]}
        name = f"{metadata['name']}-{index if index is not None else 'x'}"
        if index is not None:
            labels[LABEL_INDEX] = str(index)
        terminated = {
            "exitCode": code,
            "reason": "Error" if failed else "Completed",
            "message": summary.to_message().decode(),
            "startedAt": job["status"]["startTime"],
            "finishedAt": self.server.stamp(),
        }
        conditions = [{"type": "DisruptionTarget", "status": "True"}] if end.disrupted and failed else []
        self.server.logs[name] = f"starting\nlast words of {name}"
        self.server.add(
            PODS,
            {
                "metadata": {"name": name, "namespace": metadata["namespace"], "labels": labels},
                "status": {
                    "phase": "Failed" if failed else "Succeeded",
                    "conditions": conditions,
                    "containerStatuses": [{"name": "stage", "state": {"terminated": terminated}}],
                },
            },
        )

    def _pods(self, job: Raw) -> list[Raw]:
        uid = job["metadata"]["uid"]
        return [
            pod
            for pod in self.server.all(PODS)
            if pod["metadata"]["labels"].get("batch.kubernetes.io/controller-uid") == uid
        ]

    def _parallelism(self, job: Raw) -> int:
        return int(job["spec"].get("parallelism", 1))


def attempt_of(job: Raw) -> tuple[StageRef, int]:
    labels = job["metadata"]["labels"]
    ref = StageRef(kind=StageKind(labels[LABEL_STAGE]), iteration=int(labels[LABEL_ITERATION]))
    return ref, int(labels[LABEL_ATTEMPT])
