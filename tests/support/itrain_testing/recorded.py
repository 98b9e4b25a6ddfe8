"""Every status that the planner writes in the lives of some runs, in the object that the API server has around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from itrain_contract.layout import job_name
from itrain_contract.names import API_VERSION, KIND, Phase
from itrain_contract.stages import PREPARE, StageKind
from itrain_operator.machine import invalid_spec_status, plan
from itrain_operator.observed import Observed, Refusal
from itrain_testing.builders import T0, make_spec
from itrain_testing.simulator import Outcome, Script, World, evaluations

Raw = dict[str, Any]
CALM_PASSES = 5
"""Passes after the end, in which nothing but a clean-up may happen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What the API server holds between two writes."""

    life: str
    number: int
    raw: Raw

    def __str__(self) -> str:
        return f"{self.life}-{self.number}"

    @property
    def status(self) -> Raw:
        found: Raw = self.raw.get("status") or {}
        return found


def stored(world: World) -> Raw:
    """The run as `kubectl get -o json` shows it."""
    run = world.run
    status = run.status.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {
            "name": run.name,
            "namespace": run.namespace,
            "uid": run.uid,
            "generation": run.generation,
            "resourceVersion": str(world.passes + 1),
            "creationTimestamp": T0.strftime("%Y-%m-%dT%H:%M:%SZ"),
        },
        "spec": run.spec.model_dump(mode="json", by_alias=True, exclude_none=True),
        **({"status": status} if run.status.observed_generation else {}),
    }


def live(
    name: str, world: World, disturb: Callable[[World], None] = lambda world: None, passes: int = 400
) -> list[Moment]:
    """Passes and ticks until the run ends; `disturb` is called before each pass. Every change is recorded."""
    moments = [Moment(life=name, number=0, raw=stored(world))]

    def record() -> None:
        raw = stored(world)
        if {**raw, "metadata": None} != {**moments[-1].raw, "metadata": None} or (
            raw["metadata"]["generation"] != moments[-1].raw["metadata"]["generation"]
        ):
            moments.append(Moment(life=name, number=len(moments), raw=raw))

    ended = 0
    for _ in range(passes):
        disturb(world)
        record()
        world.one_pass()
        record()
        ended += world.status.phase.terminal
        if ended > CALM_PASSES:
            break
        world.tick()
    return moments


def script(**by_stage: Outcome) -> Script:
    """Outcomes by stage, of the first attempt only."""
    return lambda ref, attempt: by_stage.get(ref.kind.value, Outcome()) if attempt == 1 else Outcome()


def always(kind: StageKind, outcome: Outcome) -> Script:
    return lambda ref, attempt: outcome if ref.kind == kind else Outcome()


def pausing(at: int, until: int) -> Callable[[World], None]:
    """A person suspends the run before one pass and resumes it before another."""

    def disturb(world: World) -> None:
        if world.passes in (at, until) and world.run.spec.suspend == (world.passes == until):
            world.edit(world.run.spec.model_copy(update={"suspend": world.passes == at}))

    return disturb


def refused(message: str) -> list[Moment]:
    """A run whose first Job the server does not take: the pass sees the refusal and writes it down."""
    world = World(make_spec())
    first = live("create-forbidden", world, passes=1)
    refusal = Refusal(job_name=job_name(world.run.name, PREPARE, 1), forbidden=True, message=message)
    made = plan(world.run, Observed(refusal=refusal), world.now)
    world.run = replace(world.run, status=made.status)
    return [*first, Moment(life="create-forbidden", number=len(first), raw=stored(world))]


def unreadable() -> list[Moment]:
    """A run whose spec an operator of another version cannot carry out."""
    world = World(make_spec())
    first = live("invalid-spec", world, passes=0)
    status = invalid_spec_status(world.status, generation=1, message="spec.storage.uri: got './x'", now=world.now)
    world.run = replace(world.run, status=status)
    return [*first, Moment(life="invalid-spec", number=1, raw=stored(world))]


def lives() -> dict[str, list[Moment]]:
    """By name, from the first write to the last."""
    queued = make_spec(queue={"name": "v100"})
    config = always(StageKind.WARMUP, Outcome(exit_code=64))
    retried = always(StageKind.ROLLOUT, Outcome(exit_code=75))
    found = {
        "succeeds": live("succeeds", World(make_spec(), evaluations({0: 0.4, 1: 0.5, 2: 0.6}, se=0.01))),
        "stops-early": live(
            "stops-early",
            World(make_spec(iterations={"max": 3, "stopWhen": {}}), evaluations({0: 0.5, 1: 0.5}, se=0.1)),
        ),
        "queued": live("queued", World(queued, script(prepare=Outcome(waiting=3), rollout=Outcome(waiting=2)))),
        "preempted": live("preempted", World(make_spec(), script(train=Outcome(disrupted=True, running=2)))),
        "retried": live("retried", World(make_spec(), script(score=Outcome(exit_code=75)))),
        "waits-for-nodes": live("waits-for-nodes", World(make_spec(), script(warmup=Outcome(pending=4)))),
        "suspended": live("suspended", World(make_spec()), pausing(5, 12)),
        "configuration": live("configuration", World(make_spec(), config)),
        "retries-exhausted": live("retries-exhausted", World(make_spec(), retried)),
        "create-forbidden": refused('jobs.batch is forbidden: User "operator" cannot create resource "jobs"'),
        "invalid-spec": unreadable(),
    }
    assert found["succeeds"][-1].status["phase"] == Phase.SUCCEEDED
    return found
