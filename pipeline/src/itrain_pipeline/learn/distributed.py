"""The process group of a training with several ranks, on GPUs (NCCL) or on CPU (gloo)."""

from __future__ import annotations

import os
from datetime import timedelta

from itrain_pipeline.learn.job import TrainJob

TIMEOUT = timedelta(minutes=10)


def open_process_group(job: TrainJob) -> None:
    """Join the other ranks at a file in the job's folder; accelerate and DeepSpeed take the group over.

    accelerate drives DeepSpeed on accelerators only. On CPU its state is made for gloo first and then told that
    DeepSpeed does the sharding; everything behind that (the engine, its checkpoints) is DeepSpeed's own CPU support.
    """
    import torch

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if not job.how.on_cpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group(
        "gloo" if job.how.on_cpu else "nccl",
        init_method=f"file://{job.folder / 'rendezvous'}",
        rank=rank,
        world_size=world,
        timeout=TIMEOUT,
    )


def close_process_group() -> None:
    import torch

    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
