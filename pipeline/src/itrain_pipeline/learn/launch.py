"""A training job in this process, or in several: `python -m itrain_pipeline.learn.launch JOB`, one per rank.

With several, the stage process trains nothing: it starts the ranks, uploads the checkpoints that they have written,
passes the stop signal on through a file, and turns the first failure into its own, exit code and message kept.
The ranks meet at a file store in the job's folder, so no port has to be free.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from itrain_contract.names import ExitCode
from itrain_pipeline.errors import (
    ConfigError,
    DataError,
    Interrupted,
    PermanentError,
    RetryableError,
    StageError,
)
from itrain_pipeline.files import write_atomic
from itrain_pipeline.learn.checkpoints import restore_checkpoint, upload_checkpoint
from itrain_pipeline.learn.job import FitResult, TrainJob, job_from_json, job_to_json, result_from_json, result_to_json
from itrain_pipeline.learn.loading import ENV_THREADS, set_threads
from itrain_pipeline.learn.supervision import (
    PROGRESS_FILE,
    READY_PREFIX,
    STOP_FILE,
    PortsSupervisor,
    RankSupervisor,
)
from itrain_pipeline.ports import Ports

log = logging.getLogger(__name__)

POLL_INTERVAL_S = 0.2
STOP_GRACE_S = 90.0
"""Time that ranks have to save after a stop, and to end after one of them failed."""
FAILURE_GRACE_S = 5.0
RESULT_FILE = "fit.json"
ERRORS: dict[int, type[StageError]] = {
    error.exit_code: error for error in (ConfigError, DataError, PermanentError, RetryableError, Interrupted)
}


def process_count(requested: int, global_batch: int) -> int:
    """Processes of a training: as asked for, or one per GPU as far as they share the global batch evenly, or one."""
    import torch

    gpus = torch.cuda.device_count()
    if requested:
        if gpus and requested > gpus:
            raise ConfigError(f"train.processesPerNode: got {requested}, allowed on this node are 1 to {gpus} (GPUs)")
        return requested
    return max((n for n in range(1, gpus + 1) if global_batch % n == 0), default=1)


def run_job(job: TrainJob, ports: Ports) -> FitResult:
    """Train from the newest whole checkpoint of the work area on, or from the start.

    Raises what the training raises; with several processes an error of the same class as the first rank's that failed.
    """
    job = replace(job, resume_from=restore_checkpoint(ports.work, ports.scratch / "resume"))
    if job.how.plan.processes > 1:
        return run_ranks(job, ports)
    from itrain_pipeline.learn.fitting import fit_job

    set_threads()
    return fit_job(job, PortsSupervisor(ports))


def run_ranks(job: TrainJob, ports: Ports) -> FitResult:
    """One child process per rank; every one of them is gone when this returns or raises."""
    job.folder.mkdir(parents=True, exist_ok=True)
    path = job.folder / "job.json"
    write_atomic(path, job_to_json(job))
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "itrain_pipeline.learn.launch", str(path)],
            env=rank_environment(os.environ, rank, job.how.plan.processes),
        )
        for rank in range(job.how.plan.processes)
    ]
    try:
        _watch(ranks, job.folder, ports)
    finally:
        for rank in ranks:
            rank.kill()
        for rank in ranks:
            rank.wait()
    return result_from_json((job.folder / RESULT_FILE).read_bytes())


def rank_environment(environ: Mapping[str, str], rank: int, processes: int) -> dict[str, str]:
    """What torch.distributed, accelerate and DeepSpeed read; threads are shared out over the ranks."""
    threads = max(1, int(environ.get(ENV_THREADS) or os.cpu_count() or 1) // processes)
    return {
        **environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "LOCAL_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
        "OMP_NUM_THREADS": str(threads),
        ENV_THREADS: str(threads),
    }


def _watch(ranks: list[subprocess.Popen[bytes]], folder: Path, ports: Ports) -> None:
    """Until every rank ended well; raises the first failure, or after the grace times."""
    stopping_since = failing_since = None
    while any(rank.poll() is None for rank in ranks):
        now = time.monotonic()
        _upload_ready(folder, ports)
        _pass_progress(folder, ports)
        if ports.stop.is_set() and stopping_since is None:
            stopping_since = now
            write_atomic(folder / STOP_FILE, b"")
        if failing_since is None and any(rank.poll() for rank in ranks):
            failing_since = now
        if failing_since is not None and now - failing_since > FAILURE_GRACE_S:
            break
        if stopping_since is not None and now - stopping_since > STOP_GRACE_S:
            break
        time.sleep(POLL_INTERVAL_S)
    _upload_ready(folder, ports)
    for number, rank in enumerate(ranks):
        if rank.poll():
            raise _failure(folder, number, rank.returncode)
    if any(rank.poll() is None for rank in ranks):
        raise Interrupted(f"stopped; the ranks did not save within {STOP_GRACE_S:.0f} s")


def _failure(folder: Path, number: int, code: int) -> StageError:
    """The stage's error for a rank's exit code; its message where the rank could still write one."""
    message = folder / f"error-{number}.txt"
    text = message.read_text(encoding="utf-8") if message.is_file() else f"rank {number} ended with code {code}"
    return ERRORS.get(code, RetryableError)(text)


def _upload_ready(folder: Path, ports: Ports) -> None:
    """Upload the checkpoints that the ranks declared whole, oldest first, and remove them here."""
    for marker in sorted(folder.glob(f"{READY_PREFIX}*"), key=lambda path: int(path.name.removeprefix(READY_PREFIX))):
        checkpoint = Path(marker.read_text(encoding="utf-8"))
        upload_checkpoint(ports.work, checkpoint, int(marker.name.removeprefix(READY_PREFIX)))
        marker.unlink()
        shutil.rmtree(checkpoint)


def _pass_progress(folder: Path, ports: Ports) -> None:
    path = folder / PROGRESS_FILE
    if path.is_file():
        state = json.loads(path.read_text())
        ports.progress.update(state["step"], state["total"], state["text"])


def main(argv: list[str]) -> int:
    """One rank. The stage process decides when it stops, so it ignores the signals that reach both."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(levelname)-7s %(name)s: %(message)s")
    job = job_from_json(Path(argv[0]).read_bytes())
    rank = int(os.environ["RANK"])
    set_threads()
    from itrain_pipeline.learn.distributed import close_process_group, open_process_group
    from itrain_pipeline.learn.fitting import fit_job

    try:
        open_process_group(job)
        result = fit_job(job, RankSupervisor(job.folder, os.getppid()))
        if rank == 0:
            write_atomic(job.folder / RESULT_FILE, result_to_json(result))
        close_process_group()
    except StageError as error:
        return _report(job.folder, rank, str(error), error.exit_code)
    except Exception as error:
        log.exception("rank %d failed in a way that nobody foresaw", rank)
        return _report(job.folder, rank, f"rank {rank}: {type(error).__name__}: {error}", ExitCode.RETRYABLE)
    return 0


def _report(folder: Path, rank: int, text: str, code: int) -> int:
    write_atomic(folder / f"error-{rank}.txt", text.encode())
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
