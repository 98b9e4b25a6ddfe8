"""Runs on the in-memory cluster: a server with one run in it, and an operator that has not started yet."""

from __future__ import annotations

from typing import Any

from itrain_contract.names import API_VERSION, KIND
from itrain_operator.kubeapi import JOBS, RUNS, Raw
from itrain_operator.settings import ImageTable, OperatorSettings, PoolImages
from itrain_testing.builders import make_spec
from itrain_testing.fakecluster import FakeServer
from itrain_testing.fakejobs import JobScript, JobWorld, all_complete, attempt_of
from itrain_testing.fakeoperator import FakeOperator

SETTINGS = OperatorSettings(images=ImageTable(current=PoolImages(pipeline="example.org/itrain:1")))
SHORT: dict[str, Any] = {
    "data": {"uri": "s3://bucket/rows.json"},
    "iterations": {"max": 1},
    "stages": {"score": {"shards": 2, "parallelism": 2}, "rollout": {"shards": 3, "parallelism": 2, "minSucceeded": 2}},
}
"""Spec fields of a run of eight stages."""


def run_manifest(name: str = "run", namespace: str = "team", **fields: Any) -> Raw:
    spec = make_spec(**{**SHORT, **fields}).model_dump(mode="json", by_alias=True, exclude_none=True)
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def start_run(script: JobScript = all_complete, **fields: Any) -> FakeOperator:
    server = FakeServer()
    server.add(RUNS, run_manifest(**fields))
    return FakeOperator(server, JobWorld(server, script), SETTINGS)


def jobs_made(server: FakeServer) -> list[str]:
    """Names of the Jobs that were ever made, in order; twice for one that was made twice."""
    seen: set[str] = set()
    made = []
    for event in server.events:
        uid = event.raw["metadata"]["uid"]
        if event.resource == JOBS and uid not in seen:
            seen.add(uid)
            made.append(event.raw["metadata"]["name"])
    return made


def live_jobs(server: FakeServer) -> list[Raw]:
    """Jobs that run or will run."""
    return [
        job
        for job in server.all(JOBS)
        if "deletionTimestamp" not in job["metadata"] and not job.get("status", {}).get("conditions")
    ]


def attempts(server: FakeServer) -> list[str]:
    return [f"{ref} a{attempt}" for ref, attempt in (attempt_of(job) for job in server.all(JOBS))]
