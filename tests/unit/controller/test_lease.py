"""Who may act, decided by the clock; two candidates on one API server in memory never lead at the same time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from itrain_operator.kubeapi import LEASES, UnavailableError
from itrain_operator.lease import Leadership, LeaseTimes, Seen, Step, decide, lease_spec, patience_s, see
from itrain_testing.fakecluster import FakeCluster, FakeServer

TIMES = LeaseTimes(duration_s=10.0, renew_s=7.0, retry_s=2.0)
T0 = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def lease(holder: str, renewed: str = "t1", duration: int = 10) -> dict[str, Any]:
    return {"spec": {"holderIdentity": holder, "renewTime": renewed, "leaseDurationSeconds": duration}}


def test_without_a_lease_it_is_made() -> None:
    assert decide(None, "me", 0.0) == Step.CREATE


def test_ones_own_lease_is_renewed() -> None:
    assert decide(see(lease("me"), None, 0.0), "me", 100.0) == Step.RENEW


def test_another_holder_is_waited_for_until_its_time_has_passed_by_ones_own_clock() -> None:
    seen = see(lease("other"), None, 50.0)
    assert decide(seen, "me", 59.9) == Step.WAIT
    assert decide(seen, "me", 60.0) == Step.TAKE


def test_a_renewal_starts_the_time_anew_and_a_second_look_does_not() -> None:
    first = see(lease("other", "t1"), None, 0.0)
    assert see(lease("other", "t1"), first, 8.0) == first
    assert see(lease("other", "t2"), first, 8.0) == Seen(holder="other", renewed="t2", duration_s=10.0, since=8.0)


def test_a_released_lease_is_taken_at_once() -> None:
    assert decide(see(lease(""), None, 0.0), "me", 0.0) == Step.TAKE


def test_a_standby_looks_at_the_very_moment_at_which_the_lease_runs_out() -> None:
    seen = see(lease("other"), None, 50.0)
    assert patience_s(seen, 2.0, 51.0) == 2.0
    assert patience_s(seen, 2.0, 59.5) == 0.5
    assert patience_s(seen, 2.0, 60.0) == patience_s(None, 2.0, 60.0) == 2.0


def test_taking_over_counts_a_transition_and_renewing_does_not() -> None:
    taken = lease_spec({"spec": {"holderIdentity": "other", "leaseTransitions": 4}}, "me", TIMES, T0)
    assert (taken["leaseTransitions"], taken["acquireTime"]) == (5, "2026-03-01T12:00:00.000000Z")
    renewed = lease_spec({"spec": {**taken, "acquireTime": "before"}}, "me", TIMES, T0)
    assert (renewed["leaseTransitions"], renewed["acquireTime"]) == (5, "before")


@dataclass
class Time:
    """A clock that runs fifty times as fast as the event loop's."""

    def __call__(self) -> float:
        return asyncio.get_running_loop().time() * 50


FAST = LeaseTimes(duration_s=10.0, renew_s=7.0, retry_s=0.02)
"""Retries are real sleeps."""


class Line(FakeCluster):
    """A way to the server that can be cut."""

    cut = False

    async def get(self, *what: Any) -> Any:
        if self.cut:
            raise UnavailableError("no route to host")
        return await super().get(*what)


class Candidate:
    def __init__(self, server: FakeServer, name: str) -> None:
        clock = Time()
        self.line = Line(server)
        self.acting = False
        self.terms = 0
        self.leadership = Leadership(
            self.line,
            namespace="system",
            name="itrain-operator",
            identity=name,
            times=FAST,
            clock=clock,
            wall_clock=clock,
        )

    async def act(self) -> None:
        self.acting, self.terms = True, self.terms + 1
        try:
            await asyncio.Event().wait()
        finally:
            self.acting = False

    async def run(self) -> None:
        await self.leadership.run(self.act)


def test_one_of_two_leads_and_the_other_follows_when_it_is_released() -> None:
    async def main() -> None:
        server = FakeServer()
        one, two = Candidate(server, "one"), Candidate(server, "two")
        first = asyncio.create_task(one.run())
        await until(lambda: one.acting)
        second = asyncio.create_task(two.run())
        for _ in range(40):
            assert one.acting
            assert not two.acting
            await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert not one.acting
        await one.leadership.release()
        await until(lambda: two.acting)
        stored = server.find(LEASES, "system", "itrain-operator")
        assert stored is not None
        assert stored["spec"]["holderIdentity"] == "two"
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)

    asyncio.run(asyncio.wait_for(main(), timeout=20))


def test_a_leader_that_cannot_renew_stops_before_another_one_starts() -> None:
    async def main() -> None:
        server = FakeServer()
        one, two = Candidate(server, "one"), Candidate(server, "two")
        tasks = [asyncio.create_task(one.run())]
        await until(lambda: one.acting)
        tasks.append(asyncio.create_task(two.run()))
        await asyncio.sleep(0.05)

        one.line.cut = True
        while not two.acting:
            assert not (one.acting and two.acting)
            await asyncio.sleep(0.001)
        assert not one.acting
        assert not one.leadership.leading
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(asyncio.wait_for(main(), timeout=20))


async def until(check: Any) -> None:
    while not check():
        await asyncio.sleep(0.005)
