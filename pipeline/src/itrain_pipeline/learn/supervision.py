"""What a training loop tells and asks the process around it, without knowing whether it is alone or one of several."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Protocol

from itrain_pipeline.errors import RetryableError
from itrain_pipeline.files import write_atomic
from itrain_pipeline.learn.checkpoints import upload_checkpoint
from itrain_pipeline.ports import Ports

STOP_FILE = "stop"
PROGRESS_FILE = "progress.json"
READY_PREFIX = "ready-"
REPORT_INTERVAL_S = 1.0


class Supervisor(Protocol):
    """The outside of a training loop. All methods are called by every process after the same steps."""

    def report(self, step: int, total: int, text: str) -> None: ...
    def should_stop(self) -> bool:
        """The same answer in every process."""

    def saved(self, folder: Path, step: int) -> None:
        """A checkpoint folder is written, by this process as far as it writes."""


class PortsSupervisor:
    """A training loop inside the stage process: checkpoints go straight to the work area."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports

    def report(self, step: int, total: int, text: str) -> None:
        self._ports.progress.update(step, total, text)

    def should_stop(self) -> bool:
        return self._ports.stop.is_set()

    def saved(self, folder: Path, step: int) -> None:
        upload_checkpoint(self._ports.work, folder, step)


class RankSupervisor:
    """A training loop in one of several processes: files in a folder that the stage process watches.

    The stop file is read by every rank, and they agree on the answer: one that stopped alone would leave the others
    waiting in a collective operation.
    """

    def __init__(self, folder: Path, parent: int) -> None:
        self._folder = folder
        self._parent = parent
        self._reported_at = float("-inf")

    def report(self, step: int, total: int, text: str) -> None:
        now = time.monotonic()
        if _rank() == 0 and (step >= total or now - self._reported_at >= REPORT_INTERVAL_S):
            state = {"step": step, "total": total, "text": text}
            write_atomic(self._folder / PROGRESS_FILE, json.dumps(state).encode())
            self._reported_at = now

    def should_stop(self) -> bool:
        import torch

        if os.getppid() != self._parent:
            raise RetryableError("the stage process is gone")
        flag = torch.tensor([float((self._folder / STOP_FILE).exists())], device=_device())
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return bool(flag.item())

    def saved(self, folder: Path, step: int) -> None:
        import torch

        torch.distributed.barrier()
        if os.environ["LOCAL_RANK"] == "0":
            # Out of the way of the trainer, which deletes its older checkpoints while this one may be under way.
            folder = folder.rename(self._folder / f"outgoing-{step}")
            write_atomic(self._folder / f"{READY_PREFIX}{step}", str(folder).encode())


def _rank() -> int:
    import torch

    return torch.distributed.get_rank()


def _device() -> str:
    import torch

    return f"cuda:{torch.cuda.current_device()}" if torch.distributed.get_backend() == "nccl" else "cpu"
