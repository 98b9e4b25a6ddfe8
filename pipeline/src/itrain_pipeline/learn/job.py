"""One training as plain data, so that it can run in the stage process or in several others."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from itrain_contract.spec import AdapterSpec
from itrain_pipeline.errors import ConfigError
from itrain_pipeline.files import atomic_writer
from itrain_pipeline.learn.guards import Guards, guards_from_dict
from itrain_pipeline.learn.order import BatchPlan, count_steps, pad_order, plan_batches
from itrain_pipeline.learn.passes import RowForm
from itrain_pipeline.learn.precision import ChosenPrecision, Quantization

Schedule = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimisation:
    """How the loop steps, apart from its loss."""

    learning_rate: float
    warmup_ratio: float
    schedule: Schedule
    checkpoint_steps: int
    seed: int
    precision: ChosenPrecision
    on_cpu: bool
    plan: BatchPlan
    steps: int
    max_grad_norm: float = 1.0
    gradient_checkpointing: bool = False
    deepspeed: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """`rows` is a JSON-lines file: [prompt, answer] for `sft`, [context, chosen, rejected] for `simpo`, as ids,
    where right answers are trained on too [context, chosen, rejected, prompt, answer]: the first three empty where
    there is nothing to prefer.

    `adapter` None means that a new one is created by `adapter_spec` and the seed. `loss` are the keyword arguments of
    the loss. `folder` takes checkpoints and the finished adapter. For `simpo`, `trees` names the tree of each row
    (none: each its own), `form` says what a row of the model holds, `pass_tokens` is a forward pass's budget, and
    `guards` end a training that ruins the model (none: only a loss or a gradient that is no number does).
    """

    kind: Literal["sft", "simpo"]
    model: Path
    adapter: Path | None
    adapter_spec: AdapterSpec
    rows: Path
    order: tuple[int, ...]
    folder: Path
    how: Optimisation
    loss: dict[str, float] = field(default_factory=dict)
    quantization: Quantization = "none"
    trust_remote_code: bool = False
    resume_from: Path | None = None
    trees: tuple[int, ...] = ()
    form: RowForm = "separate"
    pass_tokens: int = 4096
    guards: Guards | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """A finished training: the saved adapter, one entry per logged step, optimiser steps and those skipped (fp16).

    Of preference training also the form that its rows had, the tokens computed in all of it, and those of two rows per
    pair, and what its guards saw.
    """

    adapter: Path
    log: tuple[dict[str, float], ...]
    steps: int
    skipped_steps: int = 0
    form: RowForm | None = None
    tokens: int = 0
    naive_tokens: int = 0
    figures: dict[str, float] = field(default_factory=dict)


def plan_training(
    order: Sequence[int], *, global_batch: int, micro_batch: int, processes: int
) -> tuple[tuple[int, ...], BatchPlan, int]:
    """The order filled up for the processes, the batch plan and the optimiser steps."""
    plan = plan_batches(global_batch=global_batch, micro_batch=micro_batch, processes=processes)
    return pad_order(order, plan), plan, count_steps(len(order), global_batch)


def deepspeed_config(
    stage: Literal["none", "zero2", "zero3"],
    *,
    plan: BatchPlan,
    precision: ChosenPrecision,
    quantization: Quantization,
    max_grad_norm: float,
) -> dict[str, Any] | None:
    """DeepSpeed's configuration; None with one process or `none`, where it would shard nothing.

    fp16 scales its loss dynamically from 2^16 (method document, "Precision and hardware"). Raises ConfigError for
    ZeRO-3 under nf4, whose packed weights it cannot shard.
    """
    if stage == "none" or plan.processes == 1:
        return None
    if stage == "zero3" and quantization == "nf4":
        raise ConfigError("train.deepspeed: got zero3 with quantization nf4, allowed with nf4 are zero2 and none")
    return {
        "train_micro_batch_size_per_gpu": plan.micro,
        "gradient_accumulation_steps": plan.accumulation,
        "train_batch_size": plan.global_batch,
        "gradient_clipping": max_grad_norm,
        "zero_optimization": {"stage": 2 if stage == "zero2" else 3, "contiguous_gradients": True},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "fp16": {"enabled": precision == "fp16", "loss_scale": 0, "initial_scale_power": 16},
        "bf16": {"enabled": precision == "bf16"},
    }


def with_batches(how: Optimisation, plan: BatchPlan) -> Optimisation:
    """The same optimisation with forward passes of another plan, DeepSpeed's counts included."""
    counts = {
        "train_micro_batch_size_per_gpu": plan.micro,
        "gradient_accumulation_steps": plan.accumulation,
        "train_batch_size": plan.global_batch,
    }
    deepspeed = None if how.deepspeed is None else {**how.deepspeed, **counts}
    return dataclasses.replace(how, plan=plan, deepspeed=deepspeed)


def write_rows(path: Path, rows: Sequence[Sequence[Sequence[int]]]) -> Path:
    with atomic_writer(path) as out:
        for row in rows:
            out.write((json.dumps([list(ids) for ids in row], separators=(",", ":")) + "\n").encode())
    return path


def read_rows(path: Path) -> list[tuple[tuple[int, ...], ...]]:
    with path.open(encoding="utf-8") as lines:
        return [tuple(tuple(ids) for ids in json.loads(line)) for line in lines]


def job_to_json(job: TrainJob) -> bytes:
    data = {name: getattr(job, name) for name in (f.name for f in dataclasses.fields(job))}
    data |= {
        "how": dataclasses.asdict(job.how),
        "adapter_spec": job.adapter_spec.model_dump(mode="json"),
        "guards": None if job.guards is None else dataclasses.asdict(job.guards),
    }
    return json.dumps({key: str(value) if isinstance(value, Path) else value for key, value in data.items()}).encode()


def job_from_json(data: bytes) -> TrainJob:
    fields = json.loads(data)
    for name in ("model", "adapter", "rows", "folder", "resume_from"):
        fields[name] = None if fields[name] is None else Path(fields[name])
    how = fields["how"]
    fields["how"] = Optimisation(**{**how, "plan": BatchPlan(**how["plan"])})
    fields["guards"] = guards_from_dict(fields["guards"])
    fields["adapter_spec"] = AdapterSpec.model_validate(fields["adapter_spec"])
    return TrainJob(**{**fields, "order": tuple(fields["order"]), "trees": tuple(fields["trees"])})


def result_to_json(result: FitResult) -> bytes:
    return json.dumps({**dataclasses.asdict(result), "adapter": str(result.adapter)}).encode()


def result_from_json(data: bytes) -> FitResult:
    fields = json.loads(data)
    return FitResult(**{**fields, "adapter": Path(fields["adapter"]), "log": tuple(fields["log"])})


def write_log(path: Path, rows: Sequence[dict[str, float]]) -> Path:
    with atomic_writer(path) as out:
        for row in rows:
            out.write((json.dumps(row, separators=(",", ":")) + "\n").encode())
    return path
