"""One pass over a run: observe, plan, act in order, one status write, then the events. Decides nothing.

The cluster is all that is remembered: a pass may die between any two requests, and the next one, by this process or
another, starts from what is there. What a pass wrote is in the cache by the server's own answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from itrain_contract.layout import job_name
from itrain_contract.loading import SpecError
from itrain_contract.names import LABEL_RUN, Phase
from itrain_contract.stages import PREPARE
from itrain_contract.status import ITrainRunStatus
from itrain_operator.accounting import moved
from itrain_operator.actions import DeleteJob, Emit, EnsureJob, EventReason, Plan, SetActive
from itrain_operator.cache import Cache, RunKey, RunRecord
from itrain_operator.children import ChildKeeper, NotMade
from itrain_operator.events import EventPoster
from itrain_operator.kubeapi import JOBS, RUNS, Cluster, ConflictError, NotFoundError, RefusedError, pages
from itrain_operator.kubedetails import Inspector
from itrain_operator.kubeobserve import NO_DETAILS, JobRecord, job_view
from itrain_operator.kuberun import read_run, read_status, status_patch
from itrain_operator.machine import invalid_spec_status, only_clocks, plan
from itrain_operator.observed import JobState, JobView, Observed, Refusal, Run
from itrain_operator.ratelimit import TokenBucket
from itrain_operator.sequence import current_ref
from itrain_operator.workloads import WorkloadReader

log = logging.getLogger(__name__)

FRESH_S = 2.0
"""So old may be what the server said of a run when its next Job is made."""
SETTLE_S = 5.0
"""A Job just made is left to start for so long: that it waits is no news before that, and not worth a status write."""
REFUSED_AGAIN_S = 60.0
FORMER_AGAIN_S = 5.0
TERMINATING_AGAIN_S = 60.0

JUMP = timedelta(seconds=5)
"""By so much wall clock and steady clock may differ between two writes of a run: clocks are also set by slewing."""

OnWritten = Callable[[ITrainRunStatus, ITrainRunStatus], None]
"""Told of every status that was stored: the one before and the new one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """A creation that came to nothing; it is not tried again before `until`, unless the spec was edited."""

    refusal: Refusal | None
    former: JobView | None
    """Stands for whatever else of a deleted run still bears the name: to be waited for as its Job would be."""
    generation: int
    until: float

    def show(self, observed: Observed) -> Observed:
        """What was observed, with this."""
        jobs = (*observed.jobs, self.former) if self.former is not None else observed.jobs
        return replace(observed, jobs=jobs, refusal=self.refusal)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dated:
    """A status that this process stored: its date on the wall clock, and the steady clock at that moment."""

    observed: datetime
    clock: float


class Reconciler:
    """`clock` gives seconds that never run backwards, `wall_clock` Unix seconds."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        cache: Cache,
        inspector: Inspector,
        workloads: WorkloadReader,
        children: ChildKeeper,
        poster: EventPoster,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        on_written: OnWritten,
        clock_writes: TokenBucket,
    ) -> None:
        """`clock_writes`: how often a status may be stored in which only time has passed, of all runs together."""
        self._cluster = cluster
        self._cache = cache
        self._inspector = inspector
        self._workloads = workloads
        self._children = children
        self._poster = poster
        self._clock = clock
        self._wall_clock = wall_clock
        self._on_written = on_written
        self._clock_writes = clock_writes
        self._held: dict[RunKey, _Held] = {}
        self._watched: dict[RunKey, frozenset[str]] = {}
        self._made: dict[RunKey, tuple[str, float]] = {}
        self._stored: dict[RunKey, float] = {}
        """When the server last answered with the run as a write of this process made it."""
        self._planned: dict[RunKey, _Dated] = {}
        self._dated: dict[RunKey, _Dated] = {}

    async def reconcile(self, key: RunKey) -> float | None:
        """One pass; seconds until the next one is wanted, None to wait for events. Raises ApiError."""
        record = self._cache.run(key)
        if record is None:
            self._forget(key)
            return None
        if record.deleting:
            return None  # its children go with it
        settling_s = self._settling_s(key)
        if settling_s > 0:
            return settling_s
        try:
            return await self._pass(record)
        except RefusedError as error:
            if not error.terminating:
                raise
            return TERMINATING_AGAIN_S
        except ConflictError:
            await self._refresh(record)  # the cache is behind: with the run its Jobs may be
            return 0.0

    async def _pass(self, record: RunRecord) -> float | None:
        try:
            run = self._read(record)
        except SpecError as error:
            return await self._reject(record, "; ".join(str(problem) for problem in error.problems))
        observed, made = await self._plan(run)
        ensured = _ensured(made)
        if ensured is not None and observed.refusal is None:
            fresh = await self._refresh(record)
            if fresh is None:
                return None
            if fresh is not record:
                record, run = fresh, self._read(fresh)
                observed, made = await self._plan(run)
                ensured = _ensured(made)
        for action in made.actions:
            if isinstance(action, DeleteJob):
                await self._children.delete(run, action)
            elif isinstance(action, SetActive):
                await self._workloads.set_active(run.namespace, action)
        if ensured is not None and observed.refusal is None:
            made = await self._create(run, ensured, observed, made)
        await self._write(record, run.status, made.status)
        for action in made.actions:
            if isinstance(action, Emit):
                await self._poster.post(record, action)
        await self._children.sweep(run, self._now())
        return self._wake(record, run, made)

    def _read(self, record: RunRecord) -> Run:
        """The run, its dates on the wall clock as it is now: of a jump no deadline, budget or wait takes notice."""
        run = read_run(record)
        dated = self._dated.get(record.key)
        if dated is None or run.status.last_observed_time != dated.observed:
            return run  # another process wrote it, by its own clock
        jump = self._now() - dated.observed - timedelta(seconds=self._clock() - dated.clock)
        return replace(run, status=moved(run.status, jump)) if abs(jump) > JUMP else run

    async def _plan(self, run: Run) -> tuple[Observed, Plan]:
        key = RunKey(namespace=run.namespace, name=run.name)
        current = _current_name(run)
        views = []
        for job in self._cache.jobs(key):
            looked_at = job.name == current and job.owner_uid == run.uid and not run.status.phase.terminal
            details = await self._inspector.details(job) if looked_at else NO_DETAILS
            paused = run.spec.suspend or run.status.phase == Phase.SUSPENDED
            queue = await self._workloads.view(job, needed=paused) if looked_at else None
            ref = current_ref(run.status) or PREPARE
            views.append(job_view(job, run_uid=run.uid, ref=ref, details=details, queue=queue))
        self._remember(key, current)
        observed = Observed(jobs=tuple(views))
        held = self._held.get(key)
        if held is not None and (held.generation != run.generation or self._clock() >= held.until):
            held = None
            del self._held[key]
        if held is not None:
            observed = held.show(observed)
        made = plan(run, observed, self._date(key))
        adopted = next((job for job in self._cache.jobs(key) if job.name == current and job.template_hash), None)
        return observed, _with_hash(made, adopted)

    async def _create(self, run: Run, action: EnsureJob, observed: Observed, made: Plan) -> Plan:
        """Make the Job; a refusal becomes part of what is observed, and of the status of this very pass."""
        key = RunKey(namespace=run.namespace, name=run.name)
        refused = await self._children.create(run, action)
        if refused is not None:
            held = self._held[key] = self._hold(run, action, refused)
            log.warning("run %s: %s was not created: %s", key, action.job_name, refused.refusal.message)
            return plan(run, held.show(observed), self._date(key))
        self._held.pop(key, None)
        self._made[key] = (action.job_name, self._clock())
        log.info("run %s: created %s", key, action.job_name)
        return made

    def _hold(self, run: Run, action: EnsureJob, outcome: NotMade) -> _Held:
        former = JobView(
            name=action.job_name,
            uid="",
            ref=action.ref,
            attempt=action.attempt,
            state=JobState.DELETING,
            former_run=True,
        )
        again_s = FORMER_AGAIN_S if outcome.former else REFUSED_AGAIN_S
        return _Held(
            refusal=None if outcome.former else outcome.refusal,
            former=former if outcome.former else None,
            generation=run.generation,
            until=self._clock() + again_s,
        )

    async def _refresh(self, record: RunRecord) -> RunRecord | None:
        """The run and its Jobs as they are on the server: nothing is made on the word of a cache.

        A Job is made only after a status that points at it was stored. If the run is as it was when its Jobs were
        listed, or as this process wrote it since, nobody else has made one, and the list is spared; if it was written
        a moment ago, the server has just told how it is. None when there is nothing to be made any more.
        """
        key = record.key
        if self._cache.complete(record) and self._clock() - self._stored.get(key, float("-inf")) < FRESH_S:
            return record
        try:
            self._cache.put_run(await self._cluster.get(RUNS, key.namespace, key.name))
        except NotFoundError:
            self._cache.forget_run(key, record.uid)
        fresh = self._cache.run(key)
        if fresh is None or fresh.deleting:
            return None
        if self._cache.complete(fresh):
            return fresh
        jobs = []
        async for page in pages(self._cluster, JOBS, key.namespace, labels=f"{LABEL_RUN}={key.name}"):
            jobs += page.items
        self._cache.set_jobs(key, jobs)
        self._cache.note_complete(key, fresh.resource_version)
        return fresh

    async def _reject(self, record: RunRecord, message: str) -> float | None:
        """The spec cannot be read: say so, and wait for an edit."""
        old = read_status(record)
        new = invalid_spec_status(old, generation=record.generation, message=message, now=self._now())
        if (new.reason, new.message, new.observed_generation) != (old.reason, old.message, old.observed_generation):
            await self._write(record, old, new)
            event = Emit(type="Warning", reason=EventReason.INVALID_SPEC, message=new.message)
            await self._poster.post(record, event)
        return None

    async def _write(self, record: RunRecord, old: ITrainRunStatus, new: ITrainRunStatus) -> None:
        """Store a status that changed. Raises ConflictError when the run is another one by now.

        One that only became older may have to wait for a later pass: a new process finds a thousand of them, and what
        has really happened must not stand behind them.
        """
        if new == old or (only_clocks(old, new) and not self._clock_writes.take(self._clock())):
            return
        key = record.key
        try:
            stored = await self._cluster.merge_patch(
                RUNS, key.namespace, key.name, status_patch(record, new), subresource="status"
            )
        except NotFoundError:
            self._cache.forget_run(key, record.uid)
            return
        complete = self._cache.complete(record)
        self._cache.put_run(stored)
        if complete:
            self._cache.note_complete(key, stored["metadata"]["resourceVersion"])
        self._stored[key] = self._clock()
        planned = self._planned.get(key)
        if planned is not None and planned.observed == new.last_observed_time:
            self._dated[key] = planned
        self._on_written(old, new)

    def _wake(self, record: RunRecord, run: Run, made: Plan) -> float | None:
        """The earliest reason to look again."""
        wishes = [] if made.wake_after is None else [made.wake_after.total_seconds()]
        held = self._held.get(record.key)
        if held is not None:
            wishes.append(max(0.0, held.until - self._clock()))
        elif _ensured(made) is not None:
            wishes.append(SETTLE_S)
        current = _current_name(run)
        jobs = [job for job in self._cache.jobs(record.key) if job.name == current]
        looks = [look(job) for look in (self._inspector.wake_s, self._workloads.wake_s) for job in jobs]
        wishes += [look for look in looks if look is not None]
        return min(wishes, default=None)

    def _remember(self, key: RunKey, current: str) -> None:
        """Let the inspector drop what it knows of Jobs that are not under way any more."""
        keep = frozenset(job.uid for job in self._cache.jobs(key) if job.name == current)
        before = self._watched.get(key, frozenset())
        if keep != before:
            self._inspector.forget(keep, before)
            self._workloads.forget(keep, before)
            self._watched[key] = keep

    def _settling_s(self, key: RunKey) -> float:
        """Seconds that the Job just made still has to start in before anybody looks; 0 as soon as it has."""
        name, at = self._made.get(key, ("", 0.0))
        left = at + SETTLE_S - self._clock()
        starting = any(job.name == name and job.state() == JobState.PENDING for job in self._cache.jobs(key))
        if left > 0 and starting:
            return left
        self._made.pop(key, None)
        return 0.0

    def _forget(self, key: RunKey) -> None:
        self._held.pop(key, None)
        self._made.pop(key, None)
        self._stored.pop(key, None)
        self._planned.pop(key, None)
        self._dated.pop(key, None)
        self._children.forget(key)
        watched = self._watched.pop(key, frozenset())
        self._inspector.forget(frozenset(), watched)
        self._workloads.forget(frozenset(), watched)

    def _date(self, key: RunKey) -> datetime:
        """Now, for a plan whose status may be stored later."""
        self._planned[key] = _Dated(observed=self._now(), clock=self._clock())
        return self._planned[key].observed

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._wall_clock(), tz=UTC)


def _ensured(made: Plan) -> EnsureJob | None:
    """The Job that a plan wants to be there; at most one."""
    return next((action for action in made.actions if isinstance(action, EnsureJob)), None)


def _current_name(run: Run) -> str:
    """The Job that the status points at; empty before the first one."""
    ref = current_ref(run.status)
    return job_name(run.name, ref, run.status.attempt) if ref is not None else ""


def _with_hash(made: Plan, job: JobRecord | None) -> Plan:
    """The template hash of the Job under way, in the status."""
    if job is None or not made.status.current or made.status.template_hash == job.template_hash:
        return made
    return replace(made, status=made.status.model_copy(update={"template_hash": job.template_hash}))
