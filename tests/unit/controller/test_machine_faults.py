"""From every interrupted state the run reaches the same end, no stage runs twice and none is lost."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from itrain_contract.names import Phase
from itrain_contract.stages import EXPORT, StageKind, StageRef, stage_sequence
from itrain_testing.builders import make_spec
from itrain_testing.simulator import Faults, Outcome, World, evaluations

SMALL = {"score": {"shards": 2, "parallelism": 2}, "rollout": {"shards": 3, "parallelism": 2, "minSucceeded": 2}}
SOME = st.floats(0.0, 0.4)


def faults() -> st.SearchStrategy[Faults]:
    return st.builds(
        Faults,
        die_between_actions=SOME,
        lose_effect=SOME,
        lose_write=SOME,
        stale=SOME,
        duplicate=SOME,
        person_deletes=st.floats(0.0, 0.1),
        clock_back=st.floats(0.0, 0.2),
        suspend=st.floats(0.0, 0.2),
        evict=st.floats(0.0, 0.1),
    )


def unlucky(failing: dict[str, int]) -> dict[tuple[str, int], Outcome]:
    """The first `n` attempts of a stage fail, in turn by an error, by a disruption, by being out of memory."""
    ends = (Outcome(exit_code=75), Outcome(exit_code=143, disrupted=True), Outcome(exit_code=137))
    return {(kind, a): ends[a % 3] for kind, count in failing.items() for a in range(1, count + 1)}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32),
    trouble=faults(),
    passes=st.integers(0, 60),
    failing=st.dictionaries(st.sampled_from([k.value for k in StageKind]), st.integers(0, 3), max_size=3),
    shapes=st.tuples(st.integers(0, 1), st.integers(0, 2), st.integers(1, 3), st.integers(0, 3)),
)
def test_whatever_gets_lost_every_stage_succeeds_once_in_order(
    seed: int, trouble: Faults, passes: int, failing: dict[str, int], shapes: tuple[int, int, int, int]
) -> None:
    waiting, pending, running, deletion = shapes
    bad = unlucky(failing)

    def script(ref: StageRef, attempt: int) -> Outcome:
        if (ref.kind.value, attempt) in bad:
            return bad[ref.kind.value, attempt]
        return Outcome(waiting=waiting, pending=pending, running=running)

    spec = make_spec(stages=SMALL, iterations={"max": 1})
    world = World(spec, script, seed=seed, deletion_ticks=deletion)
    world.live_on(passes, trouble)
    status = world.to_the_end()

    assert (status.phase, status.reason.value) == (Phase.SUCCEEDED, "RunCompleted"), status.message
    assert [record.ref for record in status.completed] == list(stage_sequence(spec))
    assert world.worked == dict.fromkeys(stage_sequence(spec), 1)
    succeeded = [n for (reason, _), n in world.events.items() if reason == "StageSucceeded"]
    assert set(succeeded) == {1}
    assert len(succeeded) == len(status.completed)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), trouble=faults(), passes=st.integers(0, 80))
def test_whatever_gets_lost_the_early_stop_and_the_best_iteration_are_the_same(
    seed: int, trouble: Faults, passes: int
) -> None:
    spec = make_spec(stages=SMALL, iterations={"max": 6, "stopWhen": {"minDeltaSE": 0.5, "patience": 2}})
    world = World(spec, evaluations({0: 0.50, 1: 0.60, 2: 0.605, 3: 0.59}, se=0.02), seed=seed)
    world.live_on(passes, trouble)
    status = world.to_the_end()
    assert (status.phase, status.reason.value) == (Phase.SUCCEEDED, "StoppedEarly")
    assert status.last_iteration == 3
    assert status.best is not None
    assert (status.best.iteration, status.best.value) == (2, 0.605)
    assert world.worked == dict.fromkeys(stage_sequence(spec, last_iteration=3), 1)
    assert world.inputs[EXPORT].best_iteration == 2


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), trouble=faults(), passes=st.integers(0, 60), code=st.sampled_from([64, 65, 70]))
def test_whatever_gets_lost_a_fatal_exit_fails_the_run_at_its_stage(
    seed: int, trouble: Faults, passes: int, code: int
) -> None:
    broken = StageRef(kind=StageKind.TRAIN, iteration=1)
    spec = make_spec(stages=SMALL)
    world = World(spec, lambda ref, _: Outcome(exit_code=code if ref == broken else 0), seed=seed)
    world.live_on(passes, trouble)
    status = world.to_the_end()
    assert status.phase == Phase.FAILED
    assert status.reason.value == {64: "ConfigError", 65: "DataError", 70: "PermanentError"}[code]
    assert (status.stage, status.iteration) == (broken.kind, broken.iteration)
    assert world.worked == dict.fromkeys(stage_sequence(spec)[: stage_sequence(spec).index(broken)], 1)
    world.live_on(20, trouble)
    assert status.model_dump(include={"phase", "reason", "message", "completed", "completion_time"}) == (
        world.status.model_dump(include={"phase", "reason", "message", "completed", "completion_time"})
    )
    for _ in range(6):
        world.one_pass()
        world.tick()
    assert not [job for job in world.jobs.values() if job.state.live], "nothing runs after the end"


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), trouble=faults(), passes=st.integers(0, 40))
def test_a_clock_that_jumps_by_hours_may_cost_an_attempt_but_neither_a_stage_nor_the_end(
    seed: int, trouble: Faults, passes: int
) -> None:
    """Two hours forth are longer than any wait for a clean-up: the next attempt starts, from the checkpoints."""
    spec = make_spec(stages=SMALL, iterations={"max": 1})
    world = World(spec, seed=seed)
    world.live_on(passes, replace(trouble, clock_back=0.3, clock_back_s=(7200,)))
    status = world.to_the_end()
    assert status.phase == Phase.SUCCEEDED, status.message
    assert [record.ref for record in status.completed] == list(stage_sequence(spec))
    assert min(world.worked[ref] for ref in stage_sequence(spec)) >= 1
    assert (status.retries, status.failures) == (0, 0)


def test_a_pass_that_dies_after_each_single_action_loses_nothing() -> None:
    """Every cut of a whole run: the effect of the n-th action and all that follows it in its pass is lost."""
    spec = make_spec(stages=SMALL)
    for cut in range(40):
        world = World(spec, seed=cut)
        for number in range(400):
            world.one_pass(Faults(die_between_actions=1.0) if number == cut else Faults())
            if world.status.phase.terminal:
                break
            world.tick()
        assert world.worked == dict.fromkeys(stage_sequence(spec), 1)


def test_a_run_whose_status_was_lost_is_rebuilt_from_its_jobs() -> None:
    spec = make_spec(stages=SMALL)
    world = World(spec)
    while world.status.iteration < 2:
        world.one_pass()
        world.tick()
    world.run = World(spec).run
    world.to_the_end()
    assert world.worked == dict.fromkeys(stage_sequence(spec), 1)
