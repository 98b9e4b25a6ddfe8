"""The guards at work in a training loop: they read its log, ask the probe's questions, and end it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback

from itrain_pipeline.data.rendering import Renderer
from itrain_pipeline.errors import PermanentError
from itrain_pipeline.learn.distributed import shards_of
from itrain_pipeline.learn.guards import VALIDITY, Guards, check_guards, probe_is_due
from itrain_pipeline.learn.job import TrainJob
from itrain_pipeline.learn.loading import load_tokenizer
from itrain_pipeline.learn.probe import probe_validity


class GuardCallback(TrainerCallback):
    """Probes before the first step, every `probe_steps` and after the last; judges every row of the log.

    A row is judged before the checkpoint of its step is written, so none holds what a guard refused. All processes
    probe the same prompts and take the lowest share, so that they come to the same end.
    """

    def __init__(self, trainer: Any, guards: Guards, renderer: Renderer | None) -> None:
        self._trainer = trainer
        self._guards = guards
        self._renderer = renderer
        self._measured: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._guards.probe is not None and not any(VALIDITY in row for row in state.log_history):
            state.log_history.append({"step": state.global_step, VALIDITY: self._probe()})

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if probe_is_due(state.global_step, state.max_steps, self._guards):
            self._measured = self._probe()
            control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        newest = state.log_history[-1]
        if "loss" not in newest:
            return
        if self._measured is not None:
            newest[VALIDITY], self._measured = self._measured, None
        verdict = check_guards(state.log_history, self._guards)
        if verdict is not None:
            raise PermanentError(verdict.text(state.max_steps))

    def _probe(self) -> float:
        probe, renderer = self._guards.probe, self._renderer
        if probe is None or renderer is None:
            raise AssertionError("nothing to ask")
        model = self._trainer.model
        share = probe_validity(model, renderer, probe, lockstep=bool(shards_of(model)))
        accelerator = self._trainer.accelerator
        if accelerator.num_processes > 1:
            found = torch.tensor([share], dtype=torch.float64, device=accelerator.device)
            share = float(accelerator.gather(found).min())
        return share


def add_guards(trainer: Any, job: TrainJob) -> None:
    """Guard this training as the job says."""
    if job.guards is None:
        return
    renderer = None
    if job.guards.probe is not None:
        tokenizer = load_tokenizer(job.model, trust_remote_code=job.trust_remote_code)
        renderer = Renderer(tokenizer, job.guards.probe.call_format)
    trainer.add_callback(GuardCallback(trainer, job.guards, renderer))
