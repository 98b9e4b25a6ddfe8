"""A world for the planner: Jobs that run, fail, are preempted and deleted, results in storage, one status.

It does what the real world does to a controller: passes die between two actions, effects get lost, what is observed is
old, doubled and in any order. Nothing of the planner is replaced; the world keeps the books that the tests compare.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from random import Random

from itrain_contract.spec import ITrainRunSpec
from itrain_contract.stageio import StageInput, TerminationSummary
from itrain_contract.stages import StageKind, StageRef
from itrain_contract.status import STATUS_LIMIT_BYTES, ITrainRunStatus
from itrain_operator.actions import Action, DeleteJob, Emit, EnsureJob
from itrain_operator.machine import plan
from itrain_operator.observed import JobState, JobView, Observed, Run
from itrain_operator.sequence import current_ref
from itrain_testing.builders import T0, make_run

TICK_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one attempt of a stage goes: pending and running ticks, then an end."""

    exit_code: int = 0
    disrupted: bool = False
    waiting: int = 0
    pending: int = 0
    running: int = 1
    failed_shards: frozenset[int] = frozenset()
    metrics: dict[str, float] = field(default_factory=dict)


Script = Callable[[StageRef, int], Outcome]


def all_succeed(ref: StageRef, attempt: int) -> Outcome:
    return Outcome()


@dataclass(slots=True, kw_only=True)
class SimJob:
    uid: str
    action: EnsureJob
    outcome: Outcome
    age: int = 0
    """Ticks since it was made."""
    state: JobState = JobState.PENDING
    started: datetime | None = None
    finished: datetime | None = None
    gone_in: int | None = None
    """Ticks until its deletion is over."""

    @property
    def stage_input(self) -> StageInput:
        return self.action.stage_input


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Probabilities, each for one pass."""

    die_between_actions: float = 0.0
    lose_effect: float = 0.0
    lose_write: float = 0.0
    stale: float = 0.0
    duplicate: float = 0.0
    person_deletes: float = 0.0
    clock_back: float = 0.0
    clock_back_s: tuple[int, ...] = (1, 60, 300)
    suspend: float = 0.0
    evict: float = 0.0


NO_FAULTS = Faults()


class World:
    """One run and everything around it."""

    def __init__(
        self, spec: ITrainRunSpec, script: Script = all_succeed, seed: int = 0, deletion_ticks: int = 1
    ) -> None:
        self.run: Run = make_run(spec)
        self.script = script
        self.rng = Random(seed)
        self.deletion_ticks = deletion_ticks
        self.now = T0
        self.jobs: dict[str, SimJob] = {}
        self.results: dict[str, str] = {}
        """Digest by output prefix: what storage proves to be done."""
        self.worked: Counter[StageRef] = Counter()
        """How often a stage's work was done to its end; a Job that finds its result does none."""
        self.inputs: dict[StageRef, StageInput] = {}
        """What the stages that did their work were given."""
        self.events: Counter[tuple[str, str]] = Counter()
        self.passes = 0
        self._uids = 0
        self._snapshots: list[tuple[JobView, ...]] = [()]
        self._oldest_seen = 0
        """What was observed once is never un-observed: caches are late, they do not go back."""

    @property
    def status(self) -> ITrainRunStatus:
        return self.run.status

    def edit(self, spec: ITrainRunSpec) -> None:
        self.run = replace(self.run, spec=spec, generation=self.run.generation + 1)

    # --- time ---

    def tick(self) -> None:
        """Let every Job live for ten seconds."""
        self.now += timedelta(seconds=TICK_S)
        for name, job in list(self.jobs.items()):
            if job.gone_in is not None:
                job.gone_in -= 1
                if job.gone_in < 0:
                    del self.jobs[name]
            elif job.state.live:
                self._age(job)
        self._snapshots.append(self._views())

    def _age(self, job: SimJob) -> None:
        job.age += 1
        outcome, made = job.outcome, job.stage_input
        if self.results.get(made.output_prefix) == made.digest:
            self._end(job, JobState.COMPLETE)
        elif job.age <= outcome.waiting:
            job.state = JobState.WAITING
        elif job.age <= outcome.waiting + outcome.pending:
            job.state = JobState.PENDING
        elif job.age <= outcome.waiting + outcome.pending + outcome.running:
            job.state, job.started = JobState.ACTIVE, job.started or self.now
        elif outcome.exit_code or outcome.disrupted:
            self._end(job, JobState.FAILED)
        else:
            self.worked[made.ref] += 1
            self.inputs[made.ref] = made
            self.results[made.output_prefix] = made.digest
            self._end(job, JobState.FAILED if outcome.failed_shards else JobState.COMPLETE)

    def _end(self, job: SimJob, state: JobState) -> None:
        job.state, job.finished, job.started = state, self.now, job.started or self.now

    # --- the edges of the planner ---

    def apply(self, action: Action) -> None:
        match action:
            case EnsureJob():
                pointed = (current_ref(self.status), self.status.attempt)
                assert pointed == (action.ref, action.attempt), f"{action.job_name} made, on record is {pointed}"
                assert not self.status.phase.terminal, f"{action.job_name} made after the end"
                self._create(action)
            case DeleteJob(name=name, uid=uid):
                job = self.jobs.get(name)
                if job is not None and job.uid == uid and job.gone_in is None:
                    job.gone_in = self.deletion_ticks

    def _create(self, action: EnsureJob) -> None:
        if action.job_name in self.jobs:
            return
        others = [j for j in self.jobs.values() if j.state.live and j.gone_in is None]
        assert not others, f"{action.job_name} made beside {[j.action.job_name for j in others]}"
        self._uids += 1
        outcome = self.script(action.ref, action.attempt)
        self.jobs[action.job_name] = SimJob(uid=f"u{self._uids}", action=action, outcome=outcome)

    def _views(self) -> tuple[JobView, ...]:
        return tuple(self._look(name, job) for name, job in self.jobs.items())

    def _look(self, name: str, job: SimJob) -> JobView:
        made, outcome, ended = job.stage_input, job.outcome, job.state.ended
        shards = frozenset(range(made.shards or 0))
        completed = frozenset()
        if ended and not outcome.exit_code and not outcome.disrupted:
            completed = shards - outcome.failed_shards
        return JobView(
            name=name,
            uid=job.uid,
            ref=made.ref,
            attempt=made.attempt,
            digest=made.digest,
            shards=made.shards,
            state=JobState.DELETING if job.gone_in is not None else job.state,
            active=(made.shards or 1) if job.state == JobState.ACTIVE and job.gone_in is None else 0,
            completed=completed,
            failed_indexes=outcome.failed_shards if ended else frozenset(),
            started=job.started,
            finished=job.finished,
            exit_code=outcome.exit_code if ended and outcome.exit_code else None,
            disrupted=outcome.disrupted and ended,
            summary=TerminationSummary(exit_code=outcome.exit_code, metrics=outcome.metrics) if ended else None,
        )

    def observe(self, faults: Faults) -> Observed:
        """What the planner gets to see: perhaps old, perhaps twice, in any order."""
        self._snapshots.append(self._views())
        newest = len(self._snapshots) - 1
        at = newest
        if self.rng.random() < faults.stale:
            at = self.rng.randint(max(self._oldest_seen, newest - 4), newest)
        jobs = list(self._snapshots[at])
        if self.rng.random() < faults.duplicate:
            jobs += self._snapshots[self.rng.randint(self._oldest_seen, at)]
        self._oldest_seen = at
        self.rng.shuffle(jobs)
        return Observed(jobs=tuple(jobs))

    # --- passes ---

    def one_pass(self, faults: Faults = NO_FAULTS) -> None:
        """Observe, plan, act in order, write once, then the events; the faults may cut it short anywhere."""
        self.passes += 1
        now = self.now
        if self.rng.random() < faults.clock_back:
            now -= timedelta(seconds=self.rng.choice(faults.clock_back_s))
        made = plan(self.run, self.observe(faults), now)
        for action in made.actions:
            if self.rng.random() < faults.die_between_actions:
                return
            if self.rng.random() >= faults.lose_effect:
                self.apply(action)
        if self.rng.random() < faults.lose_write:
            return
        self._write(made.status)
        for action in made.actions:
            if isinstance(action, Emit):
                self.events[(action.reason, action.message)] += 1

    def _write(self, status: ITrainRunStatus) -> None:
        """What the API server checks, and what must hold of any two statuses in a row."""
        old = self.status
        if status == old:
            return
        stored = status.model_dump_json(by_alias=True, exclude_none=True)
        assert len(stored) <= STATUS_LIMIT_BYTES
        assert ITrainRunStatus.model_validate_json(stored) == status
        assert not old.phase.terminal or status.phase == old.phase, f"{old.phase} became {status.phase}"
        assert [r.ref for r in status.completed][: len(old.completed)] == [r.ref for r in old.completed]
        assert status.running_seconds >= 0
        assert status.gpu_seconds >= old.gpu_seconds
        self.run = replace(self.run, status=status)

    def disturb(self, faults: Faults) -> None:
        """What people and the cluster do between two passes."""
        if self.rng.random() < faults.suspend:
            suspended = self.run.spec.suspend
            self.edit(self.run.spec.model_copy(update={"suspend": not suspended}))
        if self.jobs and self.rng.random() < faults.person_deletes:
            job = self.rng.choice(list(self.jobs.values()))
            job.gone_in = self.deletion_ticks if job.gone_in is None else job.gone_in
        active = [job for job in self.jobs.values() if job.state == JobState.ACTIVE and job.gone_in is None]
        if active and self.rng.random() < faults.evict:
            evicted = self.rng.choice(active)
            evicted.state, evicted.age, evicted.started = JobState.WAITING, 0, None

    def live_on(self, passes: int, faults: Faults) -> None:
        for _ in range(passes):
            self.disturb(faults)
            self.one_pass(faults)
            for _ in range(self.rng.randint(0, 2)):
                self.tick()

    def to_the_end(self, limit: int = 3000) -> ITrainRunStatus:
        """No more faults: the run goes on, unsuspended, until it ends."""
        if self.run.spec.suspend:
            self.edit(self.run.spec.model_copy(update={"suspend": False}))
        for _ in range(limit):
            self.one_pass()
            if self.status.phase.terminal:
                return self.status
            self.tick()
        raise AssertionError(
            f"no end after {limit} passes: {self.status.phase} {self.status.reason} {self.status.message}"
        )


def evaluations(values: dict[int, float], se: float = 0.0, metric: str = "dev/call_accuracy") -> Script:
    """Every stage succeeds; evaluation i gives `values[i]`."""

    def script(ref: StageRef, attempt: int) -> Outcome:
        if ref.kind != StageKind.EVALUATE or ref.iteration not in values:
            return Outcome()
        return Outcome(metrics={metric: values[ref.iteration], f"{metric}_se": se})

    return script
