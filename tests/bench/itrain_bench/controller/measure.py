"""One measurement: so many runs at a time, children that finish at random; times, requests, memory and CPU."""

from __future__ import annotations

import asyncio
import math
import statistics
from dataclasses import dataclass, field, replace
from pathlib import Path

from itrain_bench.controller.floor import measure_floor
from itrain_bench.controller.load import SETTLE_S, Figures, Say, Scale, arriving, closed, filled, settled, times
from itrain_bench.controller.population import CHILDREN
from itrain_bench.controller.usage import peak_rss_mib, rss_mib
from itrain_bench.controller.world import World, open_world

SAMPLE_S = 1.0
RESTART_TIMEOUT_S = 300.0
LAST_WORD_S = 0.5
"""What is seen so soon after a kill the killed process did; no new one starts so fast."""

CALM = (
    "children_per_s",
    "transition_p50_s",
    "transition_p99_s",
    "writes_per_transition",
    "cores_operator",
    "cores_apiserver",
    "cores_others",
)
"""The figures of a calm window that are told."""


@dataclass(slots=True)
class Sample:
    at: float
    passes: float
    rss_mib: float


@dataclass(slots=True)
class Window:
    """A stretch of time, and what was there at its beginning and its end."""

    since: float
    until: float = 0.0
    samples: list[Sample] = field(default_factory=list)


async def measure(scale: Scale, folder: Path, say: Say) -> Figures:
    """Figures by name, without the prefix of the scale."""
    async with open_world(folder) as world:
        began = world.clock()
        await world.population.fill(scale.runs)
        await filled(world, scale.runs)
        figures: Figures = {"filled_s": round(world.clock() - began, 1)}
        say(f"{scale.runs} runs have a running child after {figures['filled_s']} s")
        await settled(world)
        async with arriving(world, scale.rate, scale.seed):
            figures |= await _window(world, scale, say)
        await closed(world, world.clock())
        calm = replace(scale, rate=scale.rate / 2, seconds=scale.calm_s, passes=0)
        async with arriving(world, calm.rate, scale.seed + 1):
            if scale.calm_s:
                found = await _window(world, calm, say)
                figures |= {f"calm_{name}": found[name] for name in CALM}
            if scale.restart:
                figures |= await _restart(world, "restart", say)
                await world.pause(SETTLE_S)
                figures |= await _restart(world, "failover", say)
        template = world.template
    if scale.floor and template is not None:
        floor = await measure_floor(scale, folder.with_name(f"{folder.name}-floor"), template, say)
        figures |= {f"floor_{name}": value for name, value in floor.items()}
    return figures


async def _window(world: World, scale: Scale, say: Say) -> Figures:
    world.audit.read()
    before = world.cpu()
    window = Window(since=before.at)
    while True:
        await _sample(world, window)
        passes = window.samples[-1].passes - window.samples[0].passes
        over = world.clock() - window.since
        if over >= scale.longest_s or (over >= scale.seconds and passes >= scale.passes):
            break
        await world.pause(SAMPLE_S)
    after, requests = world.cpu(), world.audit.read()
    window.until = after.at
    await closed(world, window.until)
    made = world.ledger.made_between(window.since, window.until)
    spent = {name: after.by_name[name] - before.by_name[name] for name in after.by_name}
    seconds = window.until - window.since
    figures = times(world, window.since, window.until)
    figures |= {
        "window_s": round(seconds, 1),
        "children_made": made,
        "children_per_s": round(made / seconds, 2),
        "runs_succeeded": world.population.succeeded,
        "writes_per_transition": _ratio(requests.writes_beside("jobs", "configmaps", "leases"), made),
        "status_writes_per_transition": _ratio(requests.writes("itrainruns/status"), made),
        "event_writes_per_transition": _ratio(requests.writes("events"), made),
        "job_and_config_map_writes_per_transition": _ratio(requests.writes("jobs", "configmaps"), made),
        "reads_per_transition": _ratio(requests.reads(), made),
        "requests_refused": sum(requests.refused.values()),
        "reconciles": round(window.samples[-1].passes - window.samples[0].passes),
        "reconciles_failed": round(_failed(await _metrics(world))),
        "cpu_s_per_run": _ratio(spent["operator"] * CHILDREN, made),
    }
    figures |= {f"cores_{name}": round(value / seconds, 3) for name, value in spent.items()}
    figures |= _memory(world, window)
    say(f"{scale.runs} runs: {figures}")
    say(f"{scale.runs} runs: requests {dict(requests.counts)}, refused {dict(requests.refused)}")
    return figures


async def _sample(world: World, window: Window) -> None:
    assert world.operator.pid is not None
    passes = _passes(await _metrics(world))
    window.samples.append(Sample(world.clock(), passes, rss_mib(world.operator.pid)))


async def _metrics(world: World) -> dict[str, float]:
    return await asyncio.to_thread(world.operator.metrics)


def _passes(metrics: dict[str, float]) -> float:
    return sum(n for name, n in metrics.items() if name.startswith("itrain_reconcile_duration_seconds_count"))


def _failed(metrics: dict[str, float]) -> float:
    return sum(n for name, n in metrics.items() if name.startswith("itrain_reconcile_errors_total"))


def _memory(world: World, window: Window) -> Figures:
    """The growth is the mean of the window's last tenth less that of its first; the late one less that of its middle.

    A leak grows in both alike; what a process needs until it has seen everything once grows in the first half only.
    """
    assert world.operator.pid is not None
    rss = [sample.rss_mib for sample in window.samples]
    tenth, middle = max(1, len(rss) // 10), len(rss) // 2
    last = statistics.fmean(rss[-tenth:])
    return {
        "rss_mib": round(max(rss), 1),
        "rss_peak_mib": round(peak_rss_mib(world.operator.pid), 1),
        "rss_growth_mib": round(last - statistics.fmean(rss[:tenth]), 1),
        "rss_growth_late_mib": round(last - statistics.fmean(rss[middle : middle + tenth]), 1),
    }


async def _restart(world: World, how: str, say: Say) -> Figures:
    """Kill the operator and start it again at once; children go on finishing. Seconds count from the kill.

    A `restart` is that of a container in its pod; in a `failover` another pod must wait for the Lease to run out.
    Consistent: every child that finished while nobody led has its successor.
    """
    killed = world.clock()
    world.operator.kill()
    if how == "failover":
        world.new_pod()
    world.operator.launch()
    while world.renewals[-1] < killed + LAST_WORD_S:
        await _before(world, killed, "no operator leads again")
    leading = next(at for at in world.renewals if at >= killed + LAST_WORD_S)
    while any(t.finished < leading for t in world.ledger.waiting()):
        await _before(world, killed, "children that finished meanwhile have no successor")
    missed = [t for t in world.ledger.between(0.0, leading) if t.created is None or t.created > killed]
    consistent = max((t.created or math.inf for t in missed), default=leading)
    figures: Figures = {
        f"{how}_missed_children": len(missed),
        f"{how}_leading_s": round(leading - killed, 2),
        f"{how}_consistent_s": round(max(leading, consistent) - killed, 2),
    }
    say(f"{how}: {figures}")
    return figures


async def _before(world: World, killed: float, what: str) -> None:
    await world.pause(0.05)
    if world.clock() - killed > RESTART_TIMEOUT_S:
        raise RuntimeError(f"{what}, {RESTART_TIMEOUT_S:g} s after the operator was killed")


def _ratio(count: float, of: int) -> float:
    return round(count / of, 3) if of else math.nan
