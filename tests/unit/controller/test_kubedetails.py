"""How often the pods of a Job are looked at."""

from __future__ import annotations

import asyncio

from itrain_operator.kubedetails import Inspector
from itrain_operator.kubeobserve import parse_job
from itrain_operator.podcache import PodCache
from itrain_operator.ratelimit import TokenBucket
from itrain_testing.fakecluster import FakeCluster, FakeServer

INTERVAL_S = 15.0


def wishes_after_an_hour(jobs: int) -> int:
    """Passes that so many training Jobs ask for in an hour, for the sake of their progress."""
    now = 0.0
    inspector = Inspector(
        FakeCluster(FakeServer()),
        PodCache(),
        clock=lambda: now,
        progress_interval_s=INTERVAL_S,
        progress_rate=TokenBucket(rate=2.0, burst=2),
    )
    records = [parse_job(active_job(f"job-{number}")) for number in range(jobs)]
    due = dict.fromkeys(records, 0.0)
    passes = 0
    for second in range(3600):
        now = float(second)
        for record in [record for record, at in due.items() if at <= now]:
            asyncio.run(inspector.details(record))
            wake_s = inspector.wake_s(record)
            assert wake_s is not None
            due[record], passes = now + wake_s, passes + 1
    return passes


def active_job(name: str) -> dict[str, object]:
    labels = {
        "itrain.dev/run": name,
        "itrain.dev/stage": "train",
        "itrain.dev/iteration": "1",
        "itrain.dev/attempt": "1",
    }
    return {
        "metadata": {"name": name, "namespace": "team", "uid": name, "labels": labels},
        "status": {"active": 1, "ready": 1},
    }


def test_a_few_trainings_are_looked_at_every_interval() -> None:
    assert wishes_after_an_hour(3) == 3 * 3600 // INTERVAL_S


def test_many_trainings_ask_for_no_more_passes_than_there_are_looks_to_be_had() -> None:
    assert wishes_after_an_hour(300) <= 2.1 * 3600 + 300
