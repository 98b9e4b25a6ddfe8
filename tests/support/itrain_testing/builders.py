"""Runs, specs and observations for the planner's tests: a few words each, everything else at its default."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from itrain_contract.layout import job_name
from itrain_contract.spec import ITrainRunSpec
from itrain_contract.stageio import TerminationSummary
from itrain_contract.stages import StageKind, StageRef, shard_count
from itrain_contract.status import ITrainRunStatus
from itrain_operator.actions import DeleteJob, Emit, EnsureJob, EventReason, Plan
from itrain_operator.machine import plan
from itrain_operator.observed import JobState, JobView, Observed, Run
from itrain_operator.sequence import current_ref, stage_input

T0 = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
STORAGE = "s3://bucket/prefix"


def after(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def make_spec(**fields: Any) -> ITrainRunSpec:
    """A valid spec of two iterations; keyword arguments are top-level fields as in YAML."""
    required: dict[str, Any] = {
        "model": {"uri": "hf://org/model"},
        "data": {"uri": "./rows.json"},
        "storage": {"uri": STORAGE},
        "iterations": {"max": 2},
    }
    return ITrainRunSpec.model_validate({**required, **fields})


def make_run(spec: ITrainRunSpec | None = None, status: ITrainRunStatus | None = None, generation: int = 1) -> Run:
    return Run(
        name="run",
        namespace="team",
        uid="0f1e2d3c-run",
        generation=generation,
        spec=spec or make_spec(),
        status=status or ITrainRunStatus(),
        created=T0,
        storage=STORAGE,
    )


def ref(kind: str, iteration: int = 0) -> StageRef:
    return StageRef(kind=StageKind(kind), iteration=iteration)


def with_status(run: Run, status: ITrainRunStatus) -> Run:
    return replace(run, status=status)


def with_spec(run: Run, **fields: Any) -> Run:
    """An edit of some top-level fields, as YAML."""
    dumped = run.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    return replace(run, spec=ITrainRunSpec.model_validate({**dumped, **fields}), generation=run.generation + 1)


def view_of(run: Run, state: JobState, **fields: Any) -> JobView:
    """The Job that the run's status points at, in a state; a complete one has all its shards."""
    pointed = current_ref(run.status)
    assert pointed is not None, "the run points at no stage yet"
    attempt = fields.pop("attempt", run.status.attempt)
    shards = fields.get("shards", shard_count(run.spec, pointed.kind))
    base: dict[str, Any] = {
        "name": job_name(run.name, pointed, attempt),
        "uid": f"uid-{pointed}-a{attempt}",
        "ref": pointed,
        "attempt": attempt,
        "digest": stage_input(run, pointed, attempt).digest,
        "shards": shards,
        "state": state,
        "active": (shards or 1) if state == JobState.ACTIVE else 0,
        "completed": frozenset(range(shards or 0)) if state == JobState.COMPLETE else frozenset(),
    }
    return JobView(**{**base, **fields})


def summary(exit_code: int = 0, message: str = "", **metrics: float) -> TerminationSummary:
    """Metrics by name with `__` for `/`."""
    named = {name.replace("__", "/"): value for name, value in metrics.items()}
    return TerminationSummary(exit_code=exit_code, metrics=named, message=message)


def step(run: Run, *jobs: JobView, at: float = 0.0) -> tuple[Run, Plan]:
    """One pass; the run with the status that it wrote, and the plan."""
    made = plan(run, Observed(jobs=jobs), after(at))
    return with_status(run, made.status), made


def drive_to(run: Run, target: StageRef, metrics: dict[int, dict[str, float]] | None = None, at: float = 0.0) -> Run:
    """Let every stage before `target` succeed at the time `at`; `metrics[i]` are those of evaluation i."""
    for _ in range(600):
        if current_ref(run.status) == target or run.status.phase.terminal:
            return run
        jobs: tuple[JobView, ...] = ()
        pointed = current_ref(run.status)
        if pointed is not None:
            found = (metrics or {}).get(pointed.iteration, {}) if pointed.kind == StageKind.EVALUATE else {}
            done = view_of(run, JobState.COMPLETE, summary=TerminationSummary(exit_code=0, metrics=found))
            jobs = (done,)
        run, _ = step(run, *jobs, at=at)
    raise AssertionError(f"the run never reached {target}")


def made(plan: Plan) -> list[str]:
    return [action.job_name for action in plan.actions if isinstance(action, EnsureJob)]


def deleted(plan: Plan) -> list[str]:
    return [action.name for action in plan.actions if isinstance(action, DeleteJob)]


def events(plan: Plan) -> list[EventReason]:
    return [action.reason for action in plan.actions if isinstance(action, Emit)]
