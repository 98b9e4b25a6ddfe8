"""The ranks of one node as child processes, and the files in the job's folder through which they are watched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from itrain_contract.names import ENV_THREADS, ExitCode
from itrain_pipeline.errors import (
    ConfigError,
    DataError,
    Interrupted,
    PermanentError,
    RetryableError,
    StageError,
)
from itrain_pipeline.files import write_atomic
from itrain_pipeline.learn.checkpoints import put_checkpoint
from itrain_pipeline.learn.job import TrainJob, job_to_json
from itrain_pipeline.learn.supervision import PROGRESS_FILE, READY_PREFIX, STOP_FILE
from itrain_pipeline.ports import Nodes, Ports

Rank = subprocess.Popen[bytes]

POLL_INTERVAL_S = 0.2
STOP_GRACE_S = 90.0
"""Time that ranks have to save after a stop, and to end after one of them failed."""
FAILURE_GRACE_S = 5.0
ERRORS: dict[int, type[StageError]] = {
    error.exit_code: error for error in (ConfigError, DataError, PermanentError, RetryableError, Interrupted)
}
DEFINITE = (ExitCode.CONFIG, ExitCode.DATA, ExitCode.PERMANENT)
"""Codes that a rank gives for a reason of its own; one that only lost the others ends with 75."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a rank, or a whole node, ended."""

    code: int
    text: str

    def error(self) -> StageError:
        return ERRORS.get(self.code, RetryableError)(self.text)


def first_cause(failures: Sequence[Failure]) -> Failure:
    """The failure that explains the others: the first with a reason of its own, else the first."""
    return next((failure for failure in failures if failure.code in DEFINITE), failures[0])


@contextmanager
def started_ranks(job: TrainJob, nodes: Nodes) -> Iterator[list[Rank]]:
    """This node's ranks; every one of them is gone at the end of the block."""
    job.folder.mkdir(parents=True, exist_ok=True)
    path = job.folder / "job.json"
    write_atomic(path, job_to_json(job))
    here = job.how.plan.processes // nodes.count
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "itrain_pipeline.learn.launch", str(path)],
            env=rank_environment(os.environ, local, here, nodes),
        )
        for local in range(here)
    ]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()
        for rank in ranks:
            rank.wait()


def rank_environment(environ: Mapping[str, str], local: int, here: int, nodes: Nodes) -> dict[str, str]:
    """What torch.distributed, accelerate and DeepSpeed read; threads are shared out over this node's ranks.

    Port 0 stands for one node, whose ranks meet at a file.
    """
    threads = max(1, int(environ.get(ENV_THREADS) or os.cpu_count() or 1) // here)
    return {
        **environ,
        "RANK": str(nodes.rank * here + local),
        "LOCAL_RANK": str(local),
        "WORLD_SIZE": str(nodes.count * here),
        "LOCAL_WORLD_SIZE": str(here),
        "LOCAL_SIZE": str(here),
        "MASTER_ADDR": nodes.address if nodes.rank else "127.0.0.1",
        "MASTER_PORT": str(nodes.port),
        "OMP_NUM_THREADS": str(threads),
        ENV_THREADS: str(threads),
    }


def ask_to_stop(folder: Path) -> None:
    write_atomic(folder / STOP_FILE, b"")


def rank_failures(folder: Path, ranks: Sequence[Rank]) -> list[Failure]:
    """Of the ranks that have ended, with the words that they could still write."""
    found = []
    for local, rank in enumerate(ranks):
        code = rank.poll()
        if code:
            message = folder / f"error-{local}.txt"
            text = message.read_text(encoding="utf-8") if message.is_file() else f"rank {local} ended with code {code}"
            found.append(Failure(code=code, text=text))
    return found


def put_ready_checkpoints(folder: Path, ports: Ports) -> Iterator[tuple[int, dict[str, str]]]:
    """Put this node's files of the checkpoints that its ranks declared whole, oldest first; the folders go.

    Yields the step and sha256 by name: the checkpoint is believed once somebody puts its marker.
    """
    for ready in sorted(folder.glob(f"{READY_PREFIX}*"), key=lambda path: int(path.name.removeprefix(READY_PREFIX))):
        checkpoint = Path(ready.read_text(encoding="utf-8"))
        step = int(ready.name.removeprefix(READY_PREFIX))
        yield step, put_checkpoint(ports.work, checkpoint, step)
        ready.unlink()
        shutil.rmtree(checkpoint)


def pass_progress(folder: Path, ports: Ports, told: bytes) -> bytes:
    """Pass on what the ranks report, unless it was told already; what is told now."""
    path = folder / PROGRESS_FILE
    data = path.read_bytes() if path.is_file() else told
    if data != told:
        state = json.loads(data)
        ports.progress.update(state["step"], state["total"], state["text"])
    return data
