"""Pods as a watch tells them: what is known, when it is doubted, and that a pass then asks the server for nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import pytest

from itrain_operator.kubeapi import PODS, ExpiredError, Raw, UnavailableError, watch_event
from itrain_operator.kubedetails import FIRST_LOOK_S, Inspector
from itrain_operator.kubeobserve import parse_job
from itrain_operator.observed import JobState
from itrain_operator.podcache import LABEL_JOB_UID, PodCache, read_pod
from itrain_operator.podwatch import PodWatch
from itrain_operator.ratelimit import TokenBucket
from itrain_testing.fakecluster import FakeCluster, FakeServer

RUN_LABEL = "itrain.dev/run"


def pod(name: str, phase: str = "Running", *, job: str = "job", index: int | None = None, version: str = "7") -> Raw:
    labels = {RUN_LABEL: "run", LABEL_JOB_UID: job}
    if index is not None:
        labels["batch.kubernetes.io/job-completion-index"] = str(index)
    status: Raw = {"phase": phase}
    if phase == "Succeeded":
        said = json.dumps({"exit_code": 0, "counters": {"pairs": 3}, "seconds": 1})
        status["containerStatuses"] = [{"state": {"terminated": {"exitCode": 0, "message": said}}}]
    if phase == "Pending":
        told = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no GPU"}
        status["conditions"] = [told]
    metadata = {"name": name, "namespace": "team", "uid": name, "labels": labels, "resourceVersion": version}
    return {"metadata": metadata, "status": status}


def job(condition: str = "", *, shards: int | None = None, done: str = "", **status: Any) -> Raw:
    stage = "train" if shards is None else "rollout"
    labels = {RUN_LABEL: "run", "itrain.dev/stage": stage, "itrain.dev/iteration": "1", "itrain.dev/attempt": "1"}
    if condition:
        status["conditions"] = [{"type": condition, "status": "True"}]
    spec = {} if shards is None else {"completionMode": "Indexed", "completions": shards, "backoffLimitPerIndex": 1}
    metadata = {"name": "job", "namespace": "team", "uid": "job", "labels": labels}
    return {"metadata": metadata, "spec": spec, "status": {**status, "completedIndexes": done}}


def names(cache: PodCache, namespace: str = "team", uid: str = "job") -> list[str] | None:
    found = cache.of(namespace, uid)
    return None if found is None else sorted(pod.name for pod in found)


def test_nothing_is_known_before_the_first_list_and_after_a_watch_broke() -> None:
    cache = PodCache()
    cache.put("", pod("a"))
    assert names(cache) is None
    cache.fill("", [read_pod(pod("b"))])
    assert names(cache) == ["b"]
    cache.doubt("")
    assert names(cache) is None


def test_a_pod_that_changed_or_went_is_known_by_its_newest_event() -> None:
    cache = PodCache()
    cache.fill("", [read_pod(pod("a")), read_pod(pod("b")), read_pod(pod("c", job="other"))])
    cache.put("", pod("a", "Succeeded"))
    cache.remove("", pod("b"))
    found = cache.of("team", "job")
    assert found is not None
    assert [(p.name, p.phase) for p in found] == [("a", "Succeeded")]
    cache.remove("", pod("never-seen"))
    assert names(cache, uid="nobody's") == []


def test_namespaces_that_are_watched_apart_fill_and_fail_apart() -> None:
    cache = PodCache()
    cache.fill("team", [read_pod(pod("a"))])
    assert names(cache, "team") == ["a"]
    assert names(cache, "others") is None
    cache.doubt("team")
    assert names(cache, "team") is None


class Script:
    """A server that lists `listed` and then tells one watch after the other: lines, or the error that ends it."""

    def __init__(self, listed: list[Raw], *watches: list[Raw | Exception]) -> None:
        self.server = FakeServer()
        for raw in listed:
            self.server.add(PODS, raw)
        self._watches = list(watches)
        self.asked: list[dict[str, str]] = []
        self.lists = 0
        self.done = asyncio.Event()

    async def list(self, *arguments: Any, **how: Any) -> Any:
        self.lists += 1
        return await FakeCluster(self.server).list(*arguments, **how)

    async def lines(self, path: str, *, query: Sequence[tuple[str, str]], silence_s: float) -> AsyncGenerator[str]:
        self.asked.append({"path": path, **dict(query)})
        if not self._watches:
            self.done.set()
            await asyncio.Event().wait()
        for line in self._watches.pop(0):
            if isinstance(line, Exception):
                raise line
            yield json.dumps(line)


def event(kind: str, raw: Raw) -> Raw:
    return {"type": kind, "object": raw}


def bookmark(version: str) -> Raw:
    return event("BOOKMARK", {"kind": "Pod", "metadata": {"resourceVersion": version}})


def watched(script: Script, slept: list[float] | None = None) -> PodCache:
    """What is known once everything of the script was told; `slept` takes the pauses, on a clock that stands still."""
    cache = PodCache()
    pauses = [] if slept is None else slept

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async def go() -> None:
        watch = PodWatch(script, cache, "", clock=lambda: 50.0, sleep=sleep)  # type: ignore[arg-type]
        watching = asyncio.create_task(watch.run())
        await asyncio.wait_for(script.done.wait(), 10)
        watching.cancel()

    asyncio.run(go())
    return cache


def test_only_pods_of_ours_are_asked_for_and_a_watch_that_ended_goes_on_where_it_was() -> None:
    script = Script(
        [],
        [event("ADDED", pod("a", version="8")), bookmark("20")],
        [event("MODIFIED", pod("a", "Succeeded", version="21")), event("DELETED", pod("a", version="22"))],
    )
    cache = watched(script)
    assert names(cache) == []
    assert [asked["labelSelector"] for asked in script.asked] == [RUN_LABEL] * 3
    assert [asked["resourceVersion"] for asked in script.asked][1:] == ["20", "22"]
    assert script.lists == 1


GONE = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}


@pytest.mark.parametrize("problem", [event("ERROR", GONE), ExpiredError("too old")])
def test_a_watch_too_far_behind_starts_from_a_new_list(problem: Raw | Exception) -> None:
    script = Script([pod("a")], [event("DELETED", pod("a")), problem])
    assert names(watched(script)) == ["a"]
    assert script.lists == 2


def test_a_server_that_ends_every_watch_at_once_is_not_asked_in_a_tight_loop() -> None:
    slept: list[float] = []
    script = Script([pod("a")], [], [], [event("ERROR", GONE)], [UnavailableError("cut")], [UnavailableError("cut")])
    watched(script, slept)
    assert slept == [1.0, 1.0, 1.0, 1.0, 2.0]
    assert script.lists == 4


def test_a_watch_that_falls_silent_is_doubted_and_then_mended() -> None:
    script = Script([pod("a")], [UnavailableError("the stream fell silent")])
    cache = watched(script)
    assert names(cache) == ["a"]
    assert script.lists == 2


@pytest.mark.parametrize("line", ["", "{", "[]", '{"type": "ADDED"}'])
def test_a_line_that_is_no_event_is_an_error_of_the_server(line: str) -> None:
    with pytest.raises(UnavailableError):
        watch_event(line)


# The inspector ----------------------------------------------------------------------------------------------------


def inspector(cluster: FakeCluster, cache: PodCache, clock: Callable[[], float] = lambda: 100.0) -> Inspector:
    bucket = TokenBucket(rate=2.0, burst=2)
    return Inspector(cluster, cache, clock=clock, progress_interval_s=15.0, progress_rate=bucket)


def filled(*pods: Raw) -> PodCache:
    cache = PodCache()
    cache.fill("", [read_pod(raw) for raw in pods])
    return cache


def details(raw_job: Raw, cache: PodCache, server: FakeServer) -> Any:
    return asyncio.run(inspector(FakeCluster(server), cache).details(parse_job(raw_job)))


def lists(server: FakeServer) -> int:
    return sum(request.verb == "list" for request in server.requests)


def test_a_completed_job_is_told_from_the_watch_without_a_request() -> None:
    server = FakeServer()
    told = details(job("Complete", succeeded=1), filled(pod("a", "Succeeded")), server)
    assert told.summary.counters == {"pairs": 3}
    assert lists(server) == 0


def test_shards_are_told_from_the_watch_once_all_completed_ones_are_seen() -> None:
    server = FakeServer()
    seen = filled(pod("a", "Succeeded", index=0), pod("b", "Succeeded", index=2))
    told = details(job("Complete", shards=3, done="0,2", succeeded=2), seen, server)
    assert told.summary.counters == {"pairs": 6}
    assert lists(server) == 0


@pytest.mark.parametrize(
    ("raw_job", "cache"),
    [
        (job("Complete", succeeded=1), PodCache()),
        (job("Complete", succeeded=1), filled()),
        (job("Complete", shards=3, done="0,2", succeeded=2), filled(pod("a", "Succeeded", index=0))),
        (job("Failed", failed=1), filled(pod("a", "Failed"))),
    ],
    ids=["not known", "watch behind", "a shard missing", "failed"],
)
def test_the_server_is_asked_where_the_watch_may_not_know_all(raw_job: Raw, cache: PodCache) -> None:
    server = FakeServer()
    details(raw_job, cache, server)
    assert lists(server) == 1


def test_a_pending_job_says_why_from_the_watch() -> None:
    server = FakeServer()
    times = iter((0.0, 10.0))
    watching = inspector(FakeCluster(server), filled(pod("a", "Pending")), lambda: next(times))
    waiting = parse_job(job(active=1, ready=0))
    asyncio.run(watching.details(waiting))
    told = asyncio.run(watching.details(waiting))
    assert (told.reason, told.message) == ("Unschedulable", "no GPU")
    assert lists(server) == 0


def test_a_job_whose_last_pod_just_ended_does_not_look_as_if_it_waited() -> None:
    """Between a pod's end and the count of it there is neither a ready pod nor an ended one."""
    now = {"s": 0.0}
    watching = inspector(FakeCluster(FakeServer()), filled(), lambda: now["s"])

    def state(second: float, **status: Any) -> Any:
        now["s"] = second
        return asyncio.run(watching.details(parse_job(job(**status)))).state

    between = {"active": 1, "ready": 0}
    assert state(0, **between) == JobState.PENDING
    assert state(1, active=1, ready=1) == JobState.ACTIVE
    assert state(9, **between) == JobState.ACTIVE
    assert watching.wake_s(parse_job(job(**between))) == FIRST_LOOK_S
    assert state(9 + FIRST_LOOK_S / 2, active=1, ready=1) == JobState.ACTIVE
    assert state(20, **between) == JobState.ACTIVE
    assert state(20 + FIRST_LOOK_S, **between) == JobState.PENDING  # it lost its node, say, and waits for another
    assert state(30, succeeded=1, condition="Complete") == JobState.COMPLETE
