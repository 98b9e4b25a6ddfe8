"""A cluster in memory for people's commands: watches and followed logs are scripts, one for each opening."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from itrain_contract.names import API_VERSION, KIND
from itrain_operator.clusteraccess import Access
from itrain_operator.kubeapi import PODS, RUNS, ApiError, NotFoundError, Raw, Resource
from itrain_testing.builders import make_spec
from itrain_testing.fakecluster import FakeCluster, FakeServer

Query = dict[str, str]


@dataclass
class Streams:
    """What each opened stream tells: lines, and an error or a change of the server in between."""

    script: list[list[Any]] = field(default_factory=list)
    opened: list[tuple[str, Query]] = field(default_factory=list)


class FakeUserCluster(FakeCluster):
    """`UserCluster` on a FakeServer; a stream that no script is left for ends at once."""

    def __init__(self, server: FakeServer, streams: Streams) -> None:
        super().__init__(server)
        self._streams = streams

    async def apply(
        self, resource: Resource, namespace: str, name: str, manifest: Raw, *, manager: str, force: bool, dry_run: bool
    ) -> Raw:
        raise NotFoundError("the server could not find the requested resource")

    async def lines(
        self, path: str, *, query: Sequence[tuple[str, str]], silence_s: float
    ) -> AsyncGenerator[str, None]:
        self._streams.opened.append((path, dict(query)))
        for item in self._streams.script.pop(0) if self._streams.script else []:
            if isinstance(item, ApiError):
                raise item
            if callable(item):
                item()
            else:
                yield item


def access(server: FakeServer, streams: Streams | None = None) -> Access:
    return Access(cluster=FakeUserCluster(server, streams or Streams()), namespace="team")


def add_run(server: FakeServer, name: str = "run", status: Raw | None = None, **spec: Any) -> Raw:
    made = make_spec(**{"data": {"uri": "s3://bucket/rows.json"}, **spec})
    return server.add(
        RUNS,
        {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": name, "namespace": "team"},
            "spec": made.model_dump(mode="json", by_alias=True, exclude_none=True),
            **({"status": status} if status else {}),
        },
    )


def add_pod(
    server: FakeServer, run: Raw, *, stage: str = "rollout", iteration: int = 1, attempt: int = 1,
    shard: int | None = None, phase: str = "Running", log: str = "", retry: int = 0,
) -> str:  # fmt: skip
    """A pod of a stage as the Job controller labels it; its name."""
    tail = "" if shard is None else f"-{shard}"
    name = f"run-i{iteration}-{stage}-a{attempt}{tail}-{'abcde'[retry]}"
    labels = {
        "itrain.dev/run": run["metadata"]["name"],
        "itrain.dev/run-uid": run["metadata"]["uid"],
        "itrain.dev/iteration": str(iteration),
        "itrain.dev/stage": stage,
        "itrain.dev/attempt": str(attempt),
    }
    if shard is not None:
        labels["batch.kubernetes.io/job-completion-index"] = str(shard)
    server.add(PODS, {"metadata": {"name": name, "namespace": "team", "labels": labels}, "status": {"phase": phase}})
    server.logs[name] = log
    return name
