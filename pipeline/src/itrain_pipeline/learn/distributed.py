"""The process group of a training with several ranks: NCCL on GPUs, gloo on CPU."""

from __future__ import annotations

import os
from datetime import timedelta

from itrain_pipeline.learn.job import TrainJob

TIMEOUT = timedelta(minutes=10)


def open_process_group(job: TrainJob) -> None:
    """Join the other ranks at a file in the job's folder; accelerate and DeepSpeed take the group over."""
    import torch

    if not job.how.on_cpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group(
        "gloo" if job.how.on_cpu else "nccl",
        init_method=f"file://{job.folder / 'rendezvous'}",
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=TIMEOUT,
    )
    if job.how.on_cpu and job.how.deepspeed is not None:
        _deepspeed_on_cpu()


def _deepspeed_on_cpu() -> None:
    """DeepSpeed's CPU accelerator under accelerate, which drives DeepSpeed on GPUs only.

    accelerate's state is made for gloo first and then told who shards; the training arguments take it over
    (`use_configured_state`). DeepSpeed's C++ operators, which it would probe a compiler for and build on first use,
    are all declared unavailable: gloo and torch do their work.
    """
    import deepspeed
    from accelerate import DistributedType, PartialState

    deepspeed.ops.__compatible_ops__ = {}
    state = PartialState(cpu=True, backend="gloo")
    state.distributed_type = DistributedType.DEEPSPEED


def close_process_group() -> None:
    import torch

    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
