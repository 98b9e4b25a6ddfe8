"""Local jobs decide as Kubernetes' Job controller does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itrain_operator.localjob import Ended, JobLimits, Verdict, judge, next_start, ready_at, to_start

NONE: tuple[Ended, ...] = ()


def ended(code: int, *, at: float = 100.0, disrupted: bool = False) -> Ended:
    return Ended(code=code, started=at - 1, finished=at, disrupted=disrupted)


def limits(shards: int = 2, **changes: float) -> JobLimits:
    settings = {"parallelism": shards, "retries_per_index": 2, "backoff_s": 10.0, "max_backoff_s": 25.0, **changes}
    return JobLimits(shards=shards, **settings)  # type: ignore[arg-type]


def test_indexes_start_lowest_first_and_at_most_parallelism_at_a_time() -> None:
    history = (NONE,) * 5
    assert to_start(history, frozenset(), limits(5, parallelism=2), 0.0) == (0, 1)
    assert to_start(history, frozenset({0}), limits(5, parallelism=2), 0.0) == (1,)
    assert to_start(history, frozenset({0, 1}), limits(5, parallelism=2), 0.0) == ()


def test_a_failed_index_waits_for_a_back_off_that_doubles_up_to_the_maximum() -> None:
    bounds = limits(1, retries_per_index=9)
    one, two, three = ended(75, at=100), ended(75, at=200), ended(1, at=300)
    assert ready_at((one,), bounds) == 110  # 100 + 10
    assert ready_at((one, two), bounds) == 220  # 200 + 20
    assert ready_at((one, two, three), bounds) == 325  # 300 + min(40, 25)
    assert to_start(((one,),), frozenset(), bounds, 109.9) == ()
    assert to_start(((one,),), frozenset(), bounds, 110.0) == (0,)
    assert next_start(((one,),), frozenset(), bounds) == 110


def test_an_index_fails_after_its_retries() -> None:
    bounds = limits(1)
    assert judge(((ended(75),) * 2,), bounds).state == Verdict.ACTIVE
    spent = judge(((ended(75),) * 3,), bounds)
    assert (spent.state, spent.failed, spent.exit_code) == (Verdict.FAILED, {0}, 75)


def test_a_disruption_is_never_a_failure_and_starts_again_at_once() -> None:
    history = ((ended(143, disrupted=True),) * 50,)
    assert judge(history, limits(1)).state == Verdict.ACTIVE
    assert to_start(history, frozenset(), limits(1), 0.0) == (0,)


def test_a_killed_execution_of_a_disruption_does_not_count_whatever_its_code() -> None:
    assert judge(((ended(65, disrupted=True), ended(0)),), limits(1)).state == Verdict.COMPLETE


def test_exit_70_fails_its_index_at_once_and_the_others_go_on() -> None:
    bounds = limits(3, max_failed_indexes=1)
    verdict = judge(((ended(70),), NONE, NONE), bounds)
    assert (verdict.state, verdict.failed) == (Verdict.ACTIVE, {0})
    assert to_start(((ended(70),), NONE, NONE), frozenset(), bounds, 0.0) == (1, 2)


@pytest.mark.parametrize("code", [64, 65])
def test_configuration_and_data_errors_fail_the_job_at_once(code: int) -> None:
    verdict = judge(((ended(0),), (ended(code),), NONE), limits(3, max_failed_indexes=2))
    assert (verdict.state, verdict.exit_code, verdict.completed) == (Verdict.FAILED, code, {0})


def test_more_failed_indexes_than_allowed_fail_the_job_while_others_still_run() -> None:
    history = ((ended(70),), (ended(70),), NONE)
    assert judge(history, limits(3, max_failed_indexes=1)).state == Verdict.FAILED
    assert to_start(history, frozenset(), limits(3, max_failed_indexes=1), 0.0) == ()


def test_a_job_whose_every_index_ended_is_complete_only_without_failed_ones() -> None:
    assert judge(((ended(0),), (ended(0),)), limits(2)).state == Verdict.COMPLETE
    partial = judge(((ended(0),), (ended(70),)), limits(2, max_failed_indexes=1))
    assert (partial.state, partial.completed, partial.failed) == (Verdict.FAILED, {0}, {1})


histories = st.lists(
    st.lists(
        st.builds(
            Ended,
            code=st.sampled_from([0, 1, 64, 65, 70, 75, 137, 143]),
            started=st.just(0.0),
            finished=st.floats(0, 1000),
            disrupted=st.booleans(),
        ),
        max_size=5,
    ).map(tuple),
    min_size=1,
    max_size=6,
).map(tuple)


@given(histories, st.integers(1, 6), st.integers(0, 6), st.integers(0, 3))
def test_what_is_started_always_has_room_and_is_neither_done_nor_failed(
    history: tuple[tuple[Ended, ...], ...], parallelism: int, spare: int, retries: int
) -> None:
    shards = len(history)
    bounds = limits(shards, parallelism=parallelism, max_failed_indexes=spare, retries_per_index=retries)
    running = frozenset(k for k in range(shards) if k % 2)
    verdict = judge(history, bounds)
    due = to_start(history, running, bounds, 1e9)
    assert not set(due) & (verdict.completed | verdict.failed | running)
    assert len(due) + len(running) <= max(parallelism, len(running))
    assert not verdict.completed & verdict.failed
    idle = verdict.state == Verdict.ACTIVE and not running
    assert bool(due) == idle or bool(running)  # an active job with free slots never stands still
