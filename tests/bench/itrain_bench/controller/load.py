"""The load: children that finish at random, and what became of their successors."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random

from itrain_bench.controller.ledger import percentile
from itrain_bench.controller.world import World

FILL_TIMEOUT_S = 600.0
OPEN_TIMEOUT_S = 60.0
SETTLE_S = 5.0

Say = Callable[[str], None]
Figures = dict[str, float | int | str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """`passes` more than 0: go on until the operator has made so many. `seconds` are those of the window.

    `calm_s` more than 0: another window, so long, at half the rate. Where the first is more than the machine can do,
    its times are those of a queue; the second one's are the operator's.
    """

    runs: int
    seconds: float
    rate: float = 10.0
    """Children that finish per second, in the mean (Poisson)."""
    passes: int = 0
    longest_s: float = 600.0
    calm_s: float = 0.0
    restart: bool = False
    floor: bool = False
    """Measure afterwards what a bare loop takes that makes the same Jobs."""
    seed: int = 0


@asynccontextmanager
async def arriving(world: World, rate: float, seed: int) -> AsyncIterator[None]:
    """Children finish meanwhile; it begins a while before."""
    arrivals = asyncio.create_task(arrive(world, rate, Random(seed)))
    try:
        await world.pause(SETTLE_S)
        yield
    finally:
        arrivals.cancel()
        await asyncio.gather(arrivals, return_exceptions=True)


async def arrive(world: World, rate: float, rng: Random) -> None:
    """End running pods, a Poisson process; where none runs, the next one to run is ended."""
    due = world.clock()
    while True:
        due = max(due + rng.expovariate(rate), world.clock() - 1.0)
        await asyncio.sleep(max(0.0, due - world.clock()))
        await world.node.end_one(rng)


async def filled(world: World, runs: int) -> None:
    deadline = world.clock() + FILL_TIMEOUT_S
    while world.node.running < runs:
        await world.pause(0.2)
        if world.clock() > deadline:
            raise RuntimeError(
                f"only {world.node.running} of {runs} runs have a running child; see {world.operator.log}"
            )


async def settled(world: World) -> None:
    """Wait until no run waits for a worker: a thousand that were applied at once have a thousand statuses to write."""
    deadline = world.clock() + FILL_TIMEOUT_S
    while (await asyncio.to_thread(world.operator.metrics))["itrain_queue_depth"] > 0:
        await world.pause(0.5)
        if world.clock() > deadline:
            raise RuntimeError(f"runs wait for a worker and nothing happens; see {world.operator.log}")


async def closed(world: World, until: float) -> None:
    """Wait for the successors of all children that finished before."""
    deadline = world.clock() + OPEN_TIMEOUT_S
    while any(t.finished < until for t in world.ledger.waiting()) and world.clock() < deadline:
        await world.pause(0.1)


def times(world: World, since: float, until: float) -> Figures:
    """How long the successors took of the children that finished in this time."""
    seconds = [t.seconds for t in world.ledger.between(since, until)]
    lags = [lag for at, lag in world.lags if since <= at < until]
    return {
        "transitions": len(seconds),
        "transitions_without_successor": sum(1 for s in seconds if math.isinf(s)),
        "transition_p50_s": round(percentile(seconds, 0.5), 3),
        "transition_p99_s": round(percentile(seconds, 0.99), 3),
        "transition_max_s": round(max(seconds, default=math.nan), 3),
        "bench_lag_p99_s": round(percentile(lags, 0.99), 3),
    }
