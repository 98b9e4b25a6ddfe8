"""A training job in this process, or in several: `python -m itrain_pipeline.learn.launch JOB`, one per rank.

With several, the stage process trains nothing: it starts the ranks, uploads the checkpoints that they have written,
passes the stop signal on through a file, and turns the first failure into its own, exit code and message kept.
Several nodes are several stage processes that do this together (`itrain_pipeline.learn.multinode`).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from itrain_contract.names import ExitCode
from itrain_pipeline.errors import ConfigError, Interrupted, StageError
from itrain_pipeline.files import write_atomic
from itrain_pipeline.learn.checkpoints import mark_checkpoint, restore_checkpoint
from itrain_pipeline.learn.job import FitResult, TrainJob, job_from_json, result_from_json, result_to_json
from itrain_pipeline.learn.loading import set_threads
from itrain_pipeline.learn.ranks import (
    FAILURE_GRACE_S,
    POLL_INTERVAL_S,
    STOP_GRACE_S,
    Rank,
    ask_to_stop,
    first_cause,
    pass_progress,
    put_ready_checkpoints,
    rank_failures,
    started_ranks,
)
from itrain_pipeline.learn.supervision import PortsSupervisor, RankSupervisor
from itrain_pipeline.ports import Ports

log = logging.getLogger(__name__)

RESULT_FILE = "fit.json"


def process_count(requested: int, global_batch: int, nodes: int = 1) -> int:
    """Processes of a training on all its nodes: as asked for on each, or one per GPU as far as all of them share the
    global batch evenly, or one per node."""
    import torch

    gpus = torch.cuda.device_count()
    if requested:
        if gpus and requested > gpus:
            raise ConfigError(f"train.processesPerNode: got {requested}, allowed on this node are 1 to {gpus} (GPUs)")
        return requested * nodes
    return nodes * max((n for n in range(1, gpus + 1) if global_batch % (n * nodes) == 0), default=1)


def run_job(job: TrainJob, ports: Ports) -> FitResult | None:
    """Train from the newest whole checkpoint of the work area on, or from the start.

    None on a node other than 0: the outputs are node 0's. Raises what the training raises; with several processes an
    error of the same class as that of the rank that failed first for a reason of its own.
    """
    if ports.nodes.count > 1:
        from itrain_pipeline.learn.multinode import run_nodes

        run_nodes(job, ports)
        return None if ports.nodes.rank else result_from_json((job.folder / RESULT_FILE).read_bytes())
    job = replace(job, resume_from=restore_checkpoint(ports.work, ports.scratch / "resume"))
    if job.how.plan.processes > 1:
        return run_ranks(job, ports)
    from itrain_pipeline.learn.fitting import fit_job

    set_threads()
    return fit_job(job, PortsSupervisor(ports))


def run_ranks(job: TrainJob, ports: Ports) -> FitResult:
    """One child process per rank; every one of them is gone when this returns or raises."""
    with started_ranks(job, ports.nodes) as ranks:
        _watch(ranks, job.folder, ports)
    return result_from_json((job.folder / RESULT_FILE).read_bytes())


def _watch(ranks: list[Rank], folder: Path, ports: Ports) -> None:
    """Until every rank ended well; raises the first failure, or after the grace times."""
    stopping_since = failing_since = None
    told = b""
    while any(rank.poll() is None for rank in ranks):
        now = time.monotonic()
        _upload_ready(folder, ports)
        told = pass_progress(folder, ports, told)
        if ports.stop.is_set() and stopping_since is None:
            stopping_since = now
            ask_to_stop(folder)
        if failing_since is None and any(rank.poll() for rank in ranks):
            failing_since = now
        if failing_since is not None and now - failing_since > FAILURE_GRACE_S:
            break
        if stopping_since is not None and now - stopping_since > STOP_GRACE_S:
            break
        time.sleep(POLL_INTERVAL_S)
    _upload_ready(folder, ports)
    failures = rank_failures(folder, ranks)
    if failures:
        raise first_cause(failures).error()
    if any(rank.poll() is None for rank in ranks):
        raise Interrupted(f"stopped; the ranks did not save within {STOP_GRACE_S:.0f} s")


def _upload_ready(folder: Path, ports: Ports) -> None:
    for step, files in put_ready_checkpoints(folder, ports):
        mark_checkpoint(ports.work, step, files)


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
        return _report(job.folder, str(error), error.exit_code)
    except Exception as error:
        log.exception("rank %d failed in a way that nobody foresaw", rank)
        return _report(job.folder, f"rank {rank}: {type(error).__name__}: {error}", ExitCode.RETRYABLE)
    return 0


def _report(folder: Path, text: str, code: int) -> int:
    write_atomic(folder / f"error-{os.environ['LOCAL_RANK']}.txt", text.encode())
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
