"""What both trainers share: arguments, the loop's callback, divergence, and the result.

transformers' Trainer runs the loop (accumulation, clipping, schedule, mixed precision, state). Rows come in an order
that is decided beforehand, so one epoch over them is the whole training and a resumption knows where it stood from
the step alone.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback

from itrain_pipeline.errors import Interrupted, PermanentError
from itrain_pipeline.learn.adapter import save_adapter
from itrain_pipeline.learn.guards import guard_figures
from itrain_pipeline.learn.job import FitResult, Optimisation, TrainJob
from itrain_pipeline.learn.masters import hold_masters
from itrain_pipeline.learn.overflow import FP16_MAX
from itrain_pipeline.learn.supervision import Supervisor

log = logging.getLogger(__name__)

MAX_LOGGED_STEPS = 1000
NOT_LOGGED = {"step", "loss", "learning_rate", "epoch", "num_tokens"}
"""Named otherwise; of the one epoch over the order; started anew by a resumption."""


def training_arguments(base: type[Any], folder: Path, how: Optimisation, **extra: Any) -> Any:
    """TrainingArguments (or a subclass `base`) that say everything themselves: no default decides an outcome."""
    return base(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=how.plan.micro,
        gradient_accumulation_steps=how.plan.accumulation,
        train_sampling_strategy="sequential",
        learning_rate=how.learning_rate,
        lr_scheduler_type="constant_with_warmup" if how.schedule == "constant" else how.schedule,
        warmup_steps=math.ceil(how.warmup_ratio * how.steps),
        optim="adamw_torch",
        weight_decay=0.0,
        max_grad_norm=how.max_grad_norm,
        gradient_checkpointing=how.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if how.gradient_checkpointing else None,
        fp16=how.precision == "fp16",
        bf16=how.precision == "bf16",
        use_cpu=how.on_cpu,
        seed=how.seed,
        save_strategy="steps",
        save_steps=how.checkpoint_steps,
        save_total_limit=1,
        logging_strategy="steps",
        logging_steps=max(1, math.ceil(how.steps / MAX_LOGGED_STEPS)),
        logging_nan_inf_filter=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=not how.on_cpu,
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        deepspeed=how.deepspeed,
        accelerator_config={"use_configured_state": how.on_cpu and how.deepspeed is not None},
        **extra,
    )


class LoopCallback(TrainerCallback):
    """Progress, stop signal, checkpoints: between the loop and its supervisor."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.interrupted = False
        self.skipped_steps = 0
        self.loss = math.nan
        self.accelerator: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.accelerator is not None and self.accelerator.optimizer_step_was_skipped:
            self.skipped_steps += 1
        if self.supervisor.should_stop() and state.global_step < state.max_steps:
            self.interrupted = control.should_training_stop = control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            if not args.fp16:  # a loss scaler meets such gradients and skips their steps
                require_finite_gradient(logs.get("grad_norm"), state.global_step)
            self.supervisor.report(state.global_step, state.max_steps, f"loss {float(logs['loss']):.4f}")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.supervisor.saved(Path(args.output_dir) / f"checkpoint-{state.global_step}", state.global_step)


def require_finite(loss: Any, step: int, *, fp16: bool) -> None:
    """End a training whose loss is no number: one more step would poison the adapter.

    In `fp16` a loss scaler meets gradients that are too large, but nothing a forward pass beyond 65,504.
    """
    if not math.isfinite(float(loss)):
        remedy = f", or set precision to fp32: fp16 ends at {FP16_MAX:,}" if fp16 else ""
        raise PermanentError(
            f"the loss of step {step} is {float(loss)}: training diverged; lower the learning rate{remedy}"
        )


def require_finite_gradient(norm: Any, step: int) -> None:
    """End a training whose gradient is no number, before a checkpoint keeps the weights that it made."""
    if norm is not None and not math.isfinite(float(norm)):
        raise PermanentError(
            f"the gradient of step {step} is {float(norm)}: training diverged; lower the learning rate"
        )


def require_finite_weights(model: Any) -> None:
    """Refuse an adapter with a weight that is no number: the last step has no later loss that would show it."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not bool(parameter.isfinite().all()):
            raise PermanentError(f"{name} is not finite: training diverged; lower the learning rate")


def fit(trainer: Any, job: TrainJob, supervisor: Supervisor) -> FitResult:
    """Run the loop to its end; the adapter is saved below `job.folder`, by rank 0.

    Raises Interrupted after a checkpoint when asked to stop, PermanentError for a loss, a gradient or a weight that is
    no number, and what the trainer's other callbacks raise.
    """
    callback = LoopCallback(supervisor)
    trainer.add_callback(callback)
    trainer.remove_callback(PrinterCallback)
    callback.accelerator = trainer.accelerator
    trainer.train(resume_from_checkpoint=None if job.resume_from is None else str(job.resume_from))
    state = trainer.state
    if callback.interrupted:
        raise Interrupted(f"stopped after step {state.global_step} of {state.max_steps}; a checkpoint is saved")
    model = trainer.accelerator.unwrap_model(trainer.model)
    if job.how.deepspeed is not None:
        hold_masters(model)
    if trainer.is_world_process_zero():
        require_finite_weights(model)
        save_adapter(model, job.folder / "adapter")
    return FitResult(
        adapter=job.folder / "adapter",
        log=log_rows(state.log_history),
        steps=state.global_step,
        skipped_steps=callback.skipped_steps,
        figures=guard_figures(state.log_history),
    )


def log_rows(history: list[dict[str, Any]]) -> tuple[dict[str, float], ...]:
    """`{"step", "loss", "lr", …}` of the logged steps, from the Trainer's own history (which checkpoints carry)."""
    rows = []
    for entry in history:
        if "loss" not in entry:
            continue
        row = {"step": entry["step"], "loss": float(entry["loss"]), "lr": float(entry["learning_rate"])}
        row |= {key: float(entry[key]) for key in sorted(entry.keys() - NOT_LOGGED)}
        rows.append(row)
    return tuple(rows)
