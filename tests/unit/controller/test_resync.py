"""The whole list: what it costs, what it knows afterwards, and who is looked at first."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

from itrain_operator import resync
from itrain_operator.cache import Cache, RunKey
from itrain_operator.health import Vitals
from itrain_operator.kubeapi import JOBS, RUNS
from itrain_operator.resync import Resync, by_need
from itrain_testing.clusterruns import start_run
from itrain_testing.fakecluster import FakeCluster, FakeServer

KEY = RunKey(namespace="team", name="run")


def run(
    name: str, version: int = 1, *, phase: str = "Running", created: str = "2026-01-01T00:00:00Z"
) -> dict[str, Any]:
    metadata = {"namespace": "team", "name": name, "uid": name, "resourceVersion": str(version), "generation": 1}
    return {"metadata": metadata | {"creationTimestamp": created}, "spec": {}, "status": {"phase": phase}}


def job(of: str, finished: str = "", number: int = 1) -> dict[str, Any]:
    metadata = {"namespace": "team", "name": f"{of}-{number}", "uid": f"{of}-{number}", "resourceVersion": "1"}
    conditions = [{"type": "Complete", "status": "True", "lastTransitionTime": finished}] if finished else []
    return {
        "metadata": metadata | {"labels": {"itrain.dev/run": of}},
        "spec": {},
        "status": {"ready": 1, "conditions": conditions},
    }


def names(keys: list[RunKey]) -> list[str]:
    return [key.name for key in keys]


def test_runs_that_may_want_a_job_come_first_and_who_waits_longest_before_the_others() -> None:
    cache = Cache()
    cache.put_run(run("busy"))
    cache.put_job(job("busy", finished="2026-01-01T01:00:00Z"))
    cache.put_job(job("busy", number=2))
    cache.put_run(run("over", phase="Succeeded"))
    for name, finished in (("late", "2026-01-01T03:00:00Z"), ("early", "2026-01-01T02:00:00Z")):
        cache.put_run(run(name))
        cache.put_job(job(name, finished="2026-01-01T00:30:00Z"))
        cache.put_job(job(name, finished=finished, number=2))
    cache.put_run(run("new", phase="", created="2026-01-01T02:30:00Z"))
    waiting, rest = by_need(cache)
    assert names(waiting) == ["early", "new", "late"]
    assert sorted(names(rest)) == ["busy", "over"]


def lister(
    server: FakeServer, cache: Cache, wishes: list[tuple[str, float]], clock: Callable[[], float] = lambda: 0.0
) -> Resync:
    return Resync(
        FakeCluster(server),
        cache,
        Vitals(started=0.0, heartbeat=0.0),
        namespaces=(),
        interval_s=300.0,
        enqueue=lambda key, delay_s: wishes.append((key.name, delay_s)),
        clock=clock,
        rng=random.Random(0),
    )


def test_a_thousand_runs_with_a_job_under_way_are_looked_at_one_by_one() -> None:
    server, wishes = FakeServer(), list[tuple[str, float]]()
    for number in range(1000):
        server.add(RUNS, run(f"r{number}"))
        server.add(JOBS, job(f"r{number}"))
    server.add(RUNS, run("idle"))
    asyncio.run(lister(server, Cache(), wishes).once())
    assert wishes[0] == ("idle", 0.0)
    delays = sorted(delay for _, delay in wishes[1:])
    assert 0.0 <= delays[0] < 0.2
    assert 9.0 < delays[-1] <= 10.0


def test_a_run_that_changed_after_it_was_listed_does_not_count_as_complete() -> None:
    cache = Cache()
    cache.put_run(run("run", 10))
    cache.note_complete(KEY, "10")
    first = cache.run(KEY)
    assert first is not None
    assert cache.complete(first)
    cache.put_run(run("run", 11))
    second = cache.run(KEY)
    assert second is not None
    assert not cache.complete(second)
    cache.note_complete(KEY, "10")  # a list that is overtaken by a watch event
    assert not cache.complete(second)
    cache.remove_run(run("run", 12))
    assert not cache.complete(second)
    assert not cache.complete(first)


def test_runs_are_listed_before_their_jobs_so_that_no_job_of_a_listed_run_is_missing() -> None:
    operator = start_run()
    operator.live(1)
    lists = [str(request.resource.plural) for request in operator.server.requests if request.verb == "list"]
    assert lists[:2] == ["itrainruns", "jobs"]


def test_a_new_process_makes_the_next_job_without_listing_the_jobs_of_the_run_again() -> None:
    operator = start_run()
    operator.live(200, until=lambda: operator.server.find(JOBS, "team", "run-i0-warmup-a1") is not None)
    operator.kill()
    before = len(operator.server.requests)
    operator.live(200, until=lambda: operator.server.find(JOBS, "team", "run-i0-evaluate-a1") is not None)
    assert operator.server.find(JOBS, "team", "run-i0-evaluate-a1") is not None
    lists = [request for request in operator.server.requests[before:] if request.verb == "list"]
    assert [request.resource for request in lists if request.resource in (RUNS, JOBS)] == [RUNS, JOBS]


@pytest.mark.parametrize("leader_lists", [True, False])
def test_at_the_start_everything_is_listed_once_by_the_leader_or_by_a_standby(
    monkeypatch: pytest.MonkeyPatch, leader_lists: bool
) -> None:
    monkeypatch.setattr(resync, "LEADER_FIRST_S", 0.02)
    server = FakeServer()
    server.add(RUNS, run("run"))

    async def start() -> None:
        keeper = lister(server, Cache(), [])
        background = asyncio.create_task(keeper.run())
        if leader_lists:
            await keeper.once()
        await asyncio.sleep(0.1)
        background.cancel()
        await asyncio.gather(background, return_exceptions=True)

    asyncio.run(start())
    assert [request.resource for request in server.requests] == [RUNS, JOBS]
