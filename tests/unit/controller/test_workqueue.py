"""The queue by its clock, and a pool of workers on it."""

from __future__ import annotations

import asyncio
from random import Random

from itrain_operator.kubeapi import ThrottledError
from itrain_operator.workqueue import WorkerPool, WorkQueue


def test_a_key_added_twice_comes_up_once() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a", 0.0)
    queue.add("a", 0.0)
    assert queue.pop(0.0) == "a"
    queue.done("a")
    assert queue.pop(0.0) is None


def test_a_key_under_way_comes_up_again_only_when_it_is_done() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a", 0.0)
    assert queue.pop(0.0) == "a"
    queue.add("a", 1.0)
    assert queue.pop(1.0) is None
    assert queue.next_due() is None
    queue.done("a")
    assert queue.pop(1.0) == "a"


def test_the_earliest_of_several_wishes_holds() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a", 0.0, delay_s=60.0)
    queue.add("a", 0.0, delay_s=5.0)
    queue.add("a", 0.0, delay_s=30.0)
    assert queue.next_due() == 5.0
    assert queue.pop(4.9) is None
    assert queue.pop(5.0) == "a"
    queue.done("a")
    assert queue.pop(1000.0) is None


def test_a_key_that_wants_one_more_pass_at_once_keeps_its_place_in_the_queue() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a", 0.0)
    queue.add("b", 1.0)
    assert queue.pop(2.0) == "a"
    queue.add("a", 2.0)  # an event comes meanwhile
    queue.again("a")
    assert [queue.pop(2.0), queue.pop(2.0)] == ["a", "b"]
    queue.done("a")
    assert queue.pop(2.0) is None


def test_a_failing_key_waits_longer_each_time_and_no_event_makes_it_come_earlier() -> None:
    queue: WorkQueue[str] = WorkQueue(backoff_s=1.0, max_backoff_s=10.0)
    now, delays = 0.0, []
    queue.add("a", now)
    for _ in range(6):
        assert queue.pop(now) == "a"
        delays.append(queue.failed("a", now))
        queue.add("a", now)
        assert queue.pop(now) is None
        now += delays[-1]
    assert delays == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_success_resets_the_back_off() -> None:
    queue: WorkQueue[str] = WorkQueue(backoff_s=1.0)
    queue.add("a", 0.0)
    queue.pop(0.0)
    queue.failed("a", 0.0)
    assert queue.pop(1.0) == "a"
    queue.done("a")
    queue.add("a", 1.0)
    assert queue.pop(1.0) == "a"
    assert queue.failed("a", 1.0) == 1.0


def test_a_server_that_asks_for_time_gets_it() -> None:
    queue: WorkQueue[str] = WorkQueue(backoff_s=1.0)
    queue.add("a", 0.0)
    queue.pop(0.0)
    assert queue.failed("a", 0.0, at_least_s=17.0) == 17.0


def test_whatever_is_added_in_whatever_order_comes_up_and_never_twice_at_once() -> None:
    for seed in range(30):
        rng, queue, now = Random(seed), WorkQueue[int](), 0.0
        owed: set[int] = set()
        active: set[int] = set()
        for _ in range(400):
            now += rng.random()
            match rng.randrange(4):
                case 0 | 1:
                    key = rng.randrange(8)
                    queue.add(key, now, rng.choice([0.0, 0.5, 3.0]))
                    owed.add(key)
                case 2:
                    found = queue.pop(now)
                    if found is not None:
                        assert found not in active
                        active.add(found)
                        owed.discard(found)
                case _ if active:
                    ended = active.pop()
                    queue.done(ended)
        for key in active:
            queue.done(key)
        left = set()
        while (key_left := queue.pop(now + 100.0)) is not None:
            left.add(key_left)
            queue.done(key_left)
        assert left == owed, f"seed {seed}"


def test_workers_share_the_keys_and_each_key_has_one_worker_at_a_time() -> None:
    async def main() -> None:
        busy: set[str] = set()
        passes: list[str] = []

        async def handle(key: str) -> float | None:
            assert key not in busy
            busy.add(key)
            passes.append(key)
            await asyncio.sleep(0.001)
            busy.discard(key)
            return 0.0 if passes.count(key) < 3 else None

        loop = asyncio.get_running_loop()
        pool = WorkerPool(handle, workers=4, clock=loop.time, on_failure=lambda key, error, delay: None)
        running = asyncio.create_task(pool.run())
        for key in "abcdef":
            pool.add(key)
        while len(passes) < 18:
            await asyncio.sleep(0.001)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert sorted(passes) == sorted("abcdef" * 3)

    asyncio.run(asyncio.wait_for(main(), timeout=10))


def test_one_keys_failure_is_told_and_does_not_end_the_others() -> None:
    async def main() -> None:
        told: list[tuple[str, str, float]] = []
        done: list[str] = []

        async def handle(key: str) -> float | None:
            if key == "bad":
                raise ThrottledError("slow down", retry_after_s=40.0)
            done.append(key)
            return None

        loop = asyncio.get_running_loop()
        pool = WorkerPool(
            handle,
            workers=2,
            clock=loop.time,
            on_failure=lambda key, error, delay: told.append((key, str(error), delay)),
        )
        running = asyncio.create_task(pool.run())
        for key in ("bad", "good", "better"):
            pool.add(key)
        while len(done) < 2 or not told:
            await asyncio.sleep(0.001)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert told == [("bad", "slow down", 40.0)]

    asyncio.run(asyncio.wait_for(main(), timeout=10))
