"""The local backend: jobs as child processes, `python -m itrain_pipeline <stage>`, one per shard.

It does what a node and the Job controller do on a cluster, with the same verdicts (`localjob`), and keeps everything
that must survive in the state folder (`localstate`). Between calls of `tick` nothing happens here.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from itrain_contract import names
from itrain_contract.names import ExitCode
from itrain_contract.spec import ITrainRunSpec
from itrain_contract.stageio import StageInput
from itrain_contract.stages import stage_spec
from itrain_contract.stagespec import Stage
from itrain_contract.status import ITrainRunStatus
from itrain_contract.template import merge_templates
from itrain_operator.localjob import Ended, JobLimits, JobVerdict, Verdict, judge, next_start, to_start
from itrain_operator.localmachine import CHILD_MEMORY_BYTES, Machine, quantity_bytes, share
from itrain_operator.localobserve import job_view
from itrain_operator.localproc import Child, Guard, start_child
from itrain_operator.localstate import JobFolder, LocalRunError, StateFolder, StoredJob
from itrain_operator.machine import Action, DeleteJob, Emit, EnsureJob
from itrain_operator.observed import Observed

GRACE_S = 30.0

Command = Callable[[str], list[str]]
"""The command line of a stage's process, by the stage's name."""


@dataclass(slots=True, kw_only=True)
class LocalJob:
    """One job in memory: a view of its folder and its running children."""

    folder: JobFolder
    stored: StoredJob
    stage_input: StageInput
    history: list[tuple[Ended, ...]]
    children: dict[int, Child] = field(default_factory=dict)
    deleting: bool = False

    @property
    def verdict(self) -> JobVerdict:
        return judge(tuple(self.history), self.stored.limits)

    @property
    def running(self) -> frozenset[int]:
        return frozenset(self.children)


class LocalBackend:
    """Backend of one run. The caller holds the folder's lock and calls `tick` often."""

    def __init__(
        self,
        folder: StateFolder,
        *,
        machine: Machine,
        command: Command,
        environ: Mapping[str, str],
        clock: Callable[[], float],
        on_event: Callable[[Emit], None],
        grace_s: float = GRACE_S,
    ) -> None:
        self._folder = folder
        self._machine = machine
        self._command = command
        self._environ = environ
        self._clock = clock
        self._on_event = on_event
        self._grace_s = grace_s
        self._guard = Guard()
        self._stopping = False
        self._scratch = scratch_folder(folder.path)
        shutil.rmtree(self._scratch, ignore_errors=True)  # of an `itrain` that was killed
        self._scratch.mkdir(mode=0o700)
        self._jobs = {job.name: self._load(job) for job in folder.jobs()}

    @staticmethod
    def _load(folder: JobFolder) -> LocalJob:
        stored = folder.job()
        history = [folder.ended(shard) for shard in range(stored.limits.shards)]
        return LocalJob(folder=folder, stored=stored, stage_input=folder.stage_input(), history=history)

    # Backend -----------------------------------------------------------------------------------------------------

    def observe(self) -> Observed:
        return Observed(
            jobs=tuple(
                job_view(
                    folder=job.folder,
                    stored=job.stored,
                    stage_input=job.stage_input,
                    history=tuple(job.history),
                    running={shard: child.started for shard, child in job.children.items()},
                    deleting=job.deleting,
                )
                for job in self._jobs.values()
            )
        )

    def apply(self, action: Action, spec: ITrainRunSpec) -> None:
        match action:
            case EnsureJob():
                self._ensure(action, spec)
            case DeleteJob():
                self._delete(action.name, action.uid)
            case Emit():
                self.emit(action)

    def save_status(self, status: ITrainRunStatus) -> None:
        self._folder.save_status(status)

    def emit(self, event: Emit) -> None:
        self._on_event(event)

    def _ensure(self, action: EnsureJob, spec: ITrainRunSpec) -> None:
        if action.job_name in self._jobs:
            return
        now = datetime.fromtimestamp(self._clock(), tz=UTC)
        stored = build_job(action, spec, self._machine, uid=str(uuid.uuid4()), now=now)
        self._jobs[action.job_name] = self._load(self._folder.create_job(action.job_name, action.stage_input, stored))

    def _delete(self, name: str, uid: str) -> None:
        job = self._jobs.get(name)
        if job is None or job.deleting or (uid and job.stored.uid != uid):
            return
        job.deleting = True
        for child in job.children.values():
            child.stop(self._clock(), self._grace_s)

    # Processes ---------------------------------------------------------------------------------------------------

    def tick(self) -> bool:
        """Reap, enforce grace periods and start what is due; True when something changed."""
        now = self._clock()
        changed = False
        for name, job in list(self._jobs.items()):
            changed |= self._reap(job, now)
            if job.deleting:
                if not job.children:
                    self._folder.delete_job(name)
                    del self._jobs[name]
                    changed = True
                continue
            if job.verdict.state == Verdict.FAILED:
                for child in job.children.values():
                    child.stop(now, self._grace_s)
            elif not self._stopping:
                changed |= self._start(job, now)
        return changed

    def _reap(self, job: LocalJob, now: float) -> bool:
        changed = False
        for shard, child in list(job.children.items()):
            child.enforce(now)
            code = child.exit_code()
            if code is None:
                continue
            stopped = child.asked_to_stop or (self._stopping and code == ExitCode.INTERRUPTED)
            ended = Ended(
                code=code,
                started=child.started,
                finished=now,
                disrupted=stopped and code != ExitCode.DONE,
            )
            job.folder.add_ended(shard, ended)
            job.history[shard] = (*job.history[shard], ended)
            del job.children[shard]
            changed = True
        return changed

    def _start(self, job: LocalJob, now: float) -> bool:
        due = to_start(tuple(job.history), job.running, job.stored.limits, now)
        for shard in due:
            job.folder.forget_execution(shard)
            scratch = self._scratch / f"{job.folder.name}-{shard}"
            scratch.mkdir(exist_ok=True)
            gpus = self._free_gpus(job.stored.share.gpus)
            job.children[shard] = start_child(
                self._command(job.stage_input.kind.value),
                env=self._environment(job, shard, scratch, gpus),
                log=job.folder.log(shard),
                now=now,
                guard=self._guard,
                gpus=gpus,
            )
        return bool(due)

    def _environment(self, job: LocalJob, shard: int, scratch: Path, gpus: tuple[str, ...]) -> dict[str, str]:
        env = {
            **self._environ,
            **dict.fromkeys(names.THREAD_VARIABLES, str(job.stored.share.threads)),
            "PYTHONUNBUFFERED": "1",
            "TMPDIR": str(scratch),
            **job.stored.env,
            names.ENV_STAGE_INPUT: str(job.folder.input_file.resolve()),
            names.ENV_ATTEMPT: str(job.stage_input.attempt),
            names.ENV_PROGRESS_FILE: str(job.folder.progress_file(shard).resolve()),
            names.ENV_TERMINATION_LOG: str(job.folder.termination_file(shard).resolve()),
            names.ENV_CACHE_DIR: str((self._folder.path / "cache").resolve()),
        }
        env.pop(names.ENV_SHARD, None)
        if job.stage_input.shards is not None:
            env[names.ENV_SHARD] = str(shard)
        if self._machine.gpus:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        return env

    def _free_gpus(self, count: int) -> tuple[str, ...]:
        taken = {gpu for job in self._jobs.values() for child in job.children.values() for gpu in child.gpus}
        return tuple(gpu for gpu in self._machine.gpus if gpu not in taken)[:count]

    # Life --------------------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """No process runs and none is being deleted."""
        return not any(job.children or job.deleting for job in self._jobs.values())

    def wake_at(self) -> float | None:
        """Unix time at which a back-off or a grace period ends."""
        times = [next_start(tuple(j.history), j.running, j.stored.limits) for j in self._jobs.values()]
        times += [child.kill_at for job in self._jobs.values() for child in job.children.values()]
        return min((t for t in times if t is not None), default=None)

    def stop(self, *, kill: bool = False) -> None:
        """Start nothing more; ask every process to save and end, or kill it."""
        self._stopping = True
        for job in self._jobs.values():
            for child in job.children.values():
                child.stop(self._clock(), 0.0 if kill else self._grace_s)

    def close(self) -> None:
        """Kill what still runs and leave no process and no temporary file."""
        self.stop(kill=True)
        self._guard.close()
        for job in self._jobs.values():
            for child in job.children.values():
                child.process.wait()
        shutil.rmtree(self._scratch, ignore_errors=True)


def scratch_folder(state: Path) -> Path:
    """Temporary files of a run's processes: always in the same place, so that those of a killed `itrain` are found.

    Short, because sockets of multi-process stages lie there; not in the state folder, whose path may be long.
    """
    name = hashlib.sha256(str(state.resolve()).encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir(), f"itrain-{os.getuid()}-{name}")


def build_job(action: EnsureJob, spec: ITrainRunSpec, machine: Machine, *, uid: str, now: datetime) -> StoredJob:
    """A local job for an action: its limits as the cluster's Job would have them, its share of this machine.

    Unsharded stages are tried again by the planner, as a new attempt; an index of a sharded one is retried here.
    """
    block = stage_spec(spec, action.ref.kind)
    shards = action.shards or 1
    share_ = share(
        machine, shards=shards, parallelism=action.parallelism, gpus=block.gpus, memory_bytes=_memory_bytes(block)
    )
    limits = JobLimits(
        shards=shards,
        parallelism=share_.slots,
        retries_per_index=0 if action.shards is None else block.retry.limit,
        max_failed_indexes=action.max_failed_indexes,
        backoff_s=block.retry.backoff_seconds,
        max_backoff_s=block.retry.max_backoff_seconds,
    )
    env = {variable.name: variable.value for variable in merge_templates(spec.template, block.template).env}
    return StoredJob(uid=uid, created=now, limits=limits, share=share_, env=env)


def _memory_bytes(block: Stage) -> int:
    asked = block.resources.requests.get("memory") if block.resources else None
    try:
        return CHILD_MEMORY_BYTES if asked is None else quantity_bytes(asked)
    except ValueError as error:
        raise LocalRunError(f"resources.requests: {error}") from error
