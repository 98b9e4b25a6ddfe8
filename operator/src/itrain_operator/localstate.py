"""The state folder of a local run: everything that survives `kill -9`, and nothing believed that is half written.

    run.json                  name, uid (made once), generation, creation time, spec
    status.json               ITrainRunStatus
    lock                      held while an `itrain` works on the run; holds its process id
    jobs/<job>/input.json     StageInput
    jobs/<job>/job.json       uid, creation time
    jobs/<job>/shard-N.log    output of the process, all executions
    jobs/<job>/shard-N.progress.json, .termination.json   written by the process
    jobs/<job>/shard-N.exit.json                          exit codes, written by `itrain` once the process ended

An execution without an exit record was interrupted together with `itrain`: it starts again, under the same attempt.
A deleted job is renamed to `<job>.deleted-N`; its logs stay.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, ConfigDict, ValidationError

from itrain_contract.base import SpecModel
from itrain_contract.names import API_VERSION, KIND
from itrain_contract.spec import ITrainRunSpec
from itrain_contract.stageio import StageInput, TerminationSummary, printable
from itrain_contract.status import ITrainRunStatus
from itrain_operator.localjob import Ended, JobLimits
from itrain_operator.localmachine import Share

M = TypeVar("M", bound=SpecModel)

UNSHARDED = 0
"""The index under which an unsharded job's files are kept."""


class LocalRunError(Exception):
    """Something about a local run that the user can mend; `str(error)` is one line with the remedy."""


class LockedError(LocalRunError):
    """Another `itrain` works on the run."""


class StoredRun(SpecModel):
    """run.json."""

    name: str
    uid: str
    generation: int = 1
    created: datetime
    source: str = ""
    """The file that the run was made from."""
    spec: ITrainRunSpec


class StoredJob(SpecModel):
    """job.json: what the job was created with. An edit of the spec applies from the next attempt."""

    uid: str
    created: datetime
    limits: JobLimits
    share: Share
    env: dict[str, str]
    """From the spec's templates: literal values, never a credential."""


class StageProgress(SpecModel):
    """What a process writes to ITRAIN_PROGRESS_FILE."""

    model_config: ClassVar[ConfigDict] = {**SpecModel.model_config, "extra": "ignore"}

    done: int = 0
    total: int = 0
    text: Annotated[str, AfterValidator(printable)] = ""


class JobFolder:
    """One job's files. `shard` is the completion index, `UNSHARDED` for the others."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def input_file(self) -> Path:
        return self.path / "input.json"

    def log(self, shard: int) -> Path:
        return self.path / f"shard-{shard}.log"

    def progress_file(self, shard: int) -> Path:
        return self.path / f"shard-{shard}.progress.json"

    def termination_file(self, shard: int) -> Path:
        return self.path / f"shard-{shard}.termination.json"

    def exit_file(self, shard: int) -> Path:
        return self.path / f"shard-{shard}.exit.json"

    def stage_input(self) -> StageInput:
        return StageInput.model_validate_json(self.input_file.read_bytes())

    def job(self) -> StoredJob:
        return StoredJob.model_validate_json((self.path / "job.json").read_bytes())

    def ended(self, shard: int) -> tuple[Ended, ...]:
        """The executions of an index that ended while `itrain` watched, oldest first."""
        path = self.exit_file(shard)
        return tuple(Ended(**entry) for entry in json.loads(path.read_bytes())["ended"]) if path.exists() else ()

    def add_ended(self, shard: int, ended: Ended) -> None:
        entries = [
            {"code": e.code, "started": e.started, "finished": e.finished, "disrupted": e.disrupted}
            for e in (*self.ended(shard), ended)
        ]
        write_atomic(self.exit_file(shard), _json({"ended": entries}))

    def progress(self, shard: int) -> StageProgress | None:
        """None while there is none; a process killed while it wrote leaves none either."""
        return _read_model(self.progress_file(shard), StageProgress)

    def termination(self, shard: int) -> TerminationSummary | None:
        return _read_model(self.termination_file(shard), TerminationSummary)

    def forget_execution(self, shard: int) -> None:
        """Remove what the former execution of an index said, before the next one starts."""
        self.progress_file(shard).unlink(missing_ok=True)
        self.termination_file(shard).unlink(missing_ok=True)


class StateFolder:
    """The state folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def run_file(self) -> Path:
        return self.path / "run.json"

    @property
    def exists(self) -> bool:
        return self.run_file.exists()

    def run(self) -> StoredRun:
        """Raises LocalRunError where there is no run or another version wrote it."""
        if not self.exists:
            raise LocalRunError(
                f"{self.path} holds no run: no run.json there; start one with `itrain run FILE --local`"
            )
        return self._load(self.run_file, StoredRun)

    def save_run(self, run: StoredRun) -> None:
        write_atomic(self.run_file, run.model_dump_json(by_alias=True, exclude_none=True, indent=1).encode())

    def status(self) -> ITrainRunStatus:
        path = self.path / "status.json"
        return self._load(path, ITrainRunStatus) if path.exists() else ITrainRunStatus()

    def save_status(self, status: ITrainRunStatus) -> None:
        data = status.model_dump_json(by_alias=True, exclude_none=True, indent=1)
        write_atomic(self.path / "status.json", data.encode())

    @staticmethod
    def _load(path: Path, model: type[M]) -> M:
        try:
            return model.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise LocalRunError(
                f"{path} cannot be read ({error.error_count()} problems; another version of itrain wrote it?): "
                "start over with --fresh"
            ) from error

    def job(self, name: str) -> JobFolder:
        return JobFolder(self.path / "jobs" / name)

    def find_job(self, name: str) -> JobFolder:
        """A job's folder; where it was deleted, the newest one put aside."""
        job = self.job(name)
        aside = sorted(job.path.parent.glob(f"{name}.deleted-*"), key=lambda p: int(p.name.rpartition("-")[2]))
        return job if job.path.exists() or not aside else JobFolder(aside[-1])

    def jobs(self) -> list[JobFolder]:
        """Jobs that exist (a folder counts once its job.json does), by name."""
        found = (self.path / "jobs").glob("*/job.json")
        return [JobFolder(p.parent) for p in sorted(found) if "." not in p.parent.name]

    def create_job(self, name: str, stage_input: StageInput, stored: StoredJob) -> JobFolder:
        """Make a job's folder; job.json last, so that an interrupted creation is none."""
        job = self.job(name)
        job.path.mkdir(parents=True, exist_ok=True)
        write_atomic(job.input_file, stage_input.model_dump_json(by_alias=True, indent=1).encode())
        write_atomic(job.path / "job.json", stored.model_dump_json(by_alias=True, indent=1).encode())
        return job

    def delete_job(self, name: str) -> None:
        """Put a job aside; its logs stay readable."""
        job = self.job(name)
        taken = len(list(job.path.parent.glob(f"{name}.deleted-*")))
        if job.path.exists():
            job.path.rename(job.path.with_name(f"{name}.deleted-{taken + 1}"))

    def clear(self) -> None:
        """Forget the run (`--fresh`). Only files of the state folder: results may lie in the same place."""
        shutil.rmtree(self.path / "jobs", ignore_errors=True)
        for name in ("run.json", "status.json"):
            (self.path / name).unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; raises LockedError when another one does. The kernel frees it at our end."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("a+") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                held.seek(0)
                raise LockedError(
                    f"the run in {self.path} is worked on by process {held.read().strip() or 'unknown'}: "
                    f"wait for it, or stop it with Ctrl-C; `itrain status {self.path}` shows where it is"
                ) from error
            held.truncate(0)
            held.write(f"{os.getpid()}\n")
            held.flush()
            yield
            held.truncate(0)

    def holder(self) -> int | None:
        """Process id of the `itrain` that works on the run; None when there is none."""
        path = self.path / "lock"
        if not path.exists():
            return None
        with path.open() as held:
            try:
                fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                text = held.read().strip()
                return int(text) if text.isdigit() else 0
        return None


def new_run(*, name: str, uid: str, spec: ITrainRunSpec, source: str, now: datetime) -> StoredRun:
    return StoredRun(name=name, uid=uid, created=now.astimezone(UTC), source=source, spec=spec)


def resource(run: StoredRun, status: ITrainRunStatus) -> dict[str, Any]:
    """The run as `kubectl get -o json` would print it."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {
            "name": run.name,
            "uid": run.uid,
            "generation": run.generation,
            "creationTimestamp": run.created.isoformat(),
        },
        "spec": run.spec.model_dump(mode="json", by_alias=True, exclude_none=True),
        "status": status.model_dump(mode="json", by_alias=True, exclude_none=True),
    }


def write_atomic(path: Path, data: bytes) -> None:
    """Whole or absent: temp name, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temp = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        Path(temp).chmod(0o644)
        Path(temp).replace(path)
    except BaseException:
        Path(temp).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read_model(path: Path, model: type[M]) -> M | None:
    """A file that another process writes; None where it is absent or not whole."""
    try:
        return model.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1).encode()
