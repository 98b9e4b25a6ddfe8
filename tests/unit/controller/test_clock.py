"""The operator's wall clock jumps: no deadline, budget, back-off or clean-up takes notice of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from itrain_contract.names import Phase
from itrain_contract.stages import StageRef
from itrain_contract.status import ITrainRunStatus
from itrain_operator.accounting import moved
from itrain_operator.kubeapi import JOBS, RUNS
from itrain_testing.clusterruns import start_run
from itrain_testing.fakecluster import Fault, Request
from itrain_testing.fakejobs import TICK_S, JobEnd
from itrain_testing.fakeoperator import FakeOperator

HOURS_S = 7200.0
GPU_STAGES = {"warmup": {"gpus": 1}, "rollout": {"shards": 2, "parallelism": 2}, "score": {"shards": 2}}


def in_stage(operator: FakeOperator, stage: str) -> bool:
    status = operator.status()
    return status.stage == stage and status.current is not None and status.current.active > 0


def run_through(jumps_s: list[float], **fields: object) -> ITrainRunStatus:
    """A run during which the clock jumps whenever another stage runs."""
    operator = start_run(stages=GPU_STAGES, **fields)
    for stage, jump_s in zip(("prepare", "warmup", "evaluate"), jumps_s, strict=True):
        operator.live(50, until=lambda stage=stage: in_stage(operator, stage))  # type: ignore[misc]
        operator.wall_clock_error_s += jump_s
        operator.server.edit(RUNS, "team", "run", lambda raw: raw["spec"].update(historyLimit=20))
        operator.live(0)  # a pass while the stage still runs
    operator.live(200, until=operator.ended)
    return operator.status()


@pytest.mark.parametrize("jumps_s", [[HOURS_S, 0, 0], [-HOURS_S, HOURS_S, -HOURS_S], [0, HOURS_S, HOURS_S]])
def test_neither_running_time_nor_gpu_time_is_charged_for_a_jump(jumps_s: list[float]) -> None:
    """Less may be: while the clock is wrong, the Job's own dates, which are the server's, lie in another time."""
    calm, jumped = run_through([0, 0, 0]), run_through(jumps_s)
    assert (jumped.phase, jumped.retries) == (Phase.SUCCEEDED, 0)
    assert 0 < jumped.running_seconds <= calm.running_seconds + TICK_S
    assert 0 < jumped.gpu_seconds <= calm.gpu_seconds + TICK_S


def test_a_jump_of_hours_exceeds_neither_a_deadline_nor_the_gpu_hours() -> None:
    status = run_through([HOURS_S, HOURS_S, HOURS_S], activeDeadlineSeconds=3600, maxGpuHours=1.0)
    assert status.phase == Phase.SUCCEEDED, status.message


@pytest.mark.parametrize("jump_s", [HOURS_S, -HOURS_S])
def test_a_back_off_is_neither_cut_short_nor_drawn_out(jump_s: float) -> None:
    def script(ref: StageRef, attempt: int) -> JobEnd:
        return JobEnd(exit_code=75 if (ref.kind, attempt) == ("prepare", 1) else 0)

    operator = start_run(script, stages={"prepare": {"retry": {"backoffSeconds": 300}}})
    operator.live(50, until=lambda: operator.status().attempt == 2)
    operator.wall_clock_error_s = jump_s
    operator.live(25)
    assert operator.status().current is None
    operator.live(10)
    assert operator.status().current is not None or operator.status().completed


def test_a_jump_between_planning_and_storing_is_noticed_too() -> None:
    """The clock jumps back when the status that begins the back-off is on its way."""

    def before(request: Request) -> Fault:
        job = operator.server.find(JOBS, "team", "run-i0-prepare-a1")
        ended = job is not None and bool(job.get("status", {}).get("conditions"))
        if request.verb == "patch" and request.resource == RUNS and ended and not operator.wall_clock_error_s:
            operator.wall_clock_error_s = -HOURS_S
        return None

    operator = start_run(
        lambda ref, attempt: JobEnd(exit_code=75 if (ref.kind, attempt) == ("prepare", 1) else 0),
        stages={"prepare": {"retry": {"backoffSeconds": 300}}},
    )
    operator.server.before = before
    operator.live(50, until=lambda: operator.status().attempt == 2)
    operator.live(25)
    assert operator.status().current is None
    operator.live(10)
    assert operator.status().current is not None or operator.status().completed


def test_of_a_clock_that_another_operator_goes_by_nothing_is_concluded() -> None:
    """A new process knows no jump: what it reads was written by another clock, right or wrong."""
    operator = start_run(activeDeadlineSeconds=3600)
    operator.live(50, until=lambda: in_stage(operator, "prepare"))
    operator.kill()
    operator.wall_clock_error_s = -HOURS_S
    operator.live(200, until=operator.ended)
    assert operator.status().phase == Phase.SUCCEEDED


def test_only_the_dates_that_are_compared_with_now_are_moved() -> None:
    at = datetime(2026, 3, 1, tzinfo=UTC)
    status = ITrainRunStatus(last_observed_time=at, retry_at=None, start_time=at, running_seconds=5.0)
    after = moved(status, timedelta(hours=1))
    assert after == status.model_copy(update={"last_observed_time": at + timedelta(hours=1)})
