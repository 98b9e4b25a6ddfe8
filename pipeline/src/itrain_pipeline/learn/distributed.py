"""The process group of a training with several ranks: NCCL on GPUs, gloo on CPU."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from itrain_pipeline.learn.job import TrainJob

TIMEOUT = timedelta(minutes=10)


def open_process_group(job: TrainJob) -> None:
    """Join the other ranks; accelerate and DeepSpeed take the group over.

    On one node they meet at a file in the job's folder, so that no port has to be free; on several at the store that
    node 0's stage process serves (`itrain_pipeline.learn.nodelink`).
    """
    import torch

    if not job.how.on_cpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    stores: Any = torch.distributed  # exports its stores at run time only
    rank, world, port = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    if port:
        tcp = stores.TCPStore(os.environ["MASTER_ADDR"], port, is_master=False, timeout=TIMEOUT)
        met = stores.PrefixStore("ranks", tcp)
    else:
        met = stores.FileStore(str(job.folder / "rendezvous"), world)
    torch.distributed.init_process_group(
        "gloo" if job.how.on_cpu else "nccl", store=met, rank=rank, world_size=world, timeout=TIMEOUT
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


def shards_of(model: Any) -> list[Any]:
    """The trainable parameters of which this process holds a part only (ZeRO-3); none in any other training."""
    return [p for p in model.parameters() if p.requires_grad and hasattr(p, "ds_id")]


def close_process_group() -> None:
    import torch

    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
