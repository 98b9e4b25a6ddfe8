"""A TrainJob done: the model loaded, its adapter created or continued, the loop of its kind run."""

from __future__ import annotations

from pathlib import Path

from itrain_contract.spec import AdapterSpec
from itrain_pipeline.learn.adapter import check_rank, continue_adapter, new_adapter, save_adapter
from itrain_pipeline.learn.job import FitResult, TrainJob, read_rows
from itrain_pipeline.learn.loading import load_model, load_tokenizer
from itrain_pipeline.learn.masters import start_from_fp32
from itrain_pipeline.learn.overflow import check_activations
from itrain_pipeline.learn.supervision import Supervisor


def fit_job(job: TrainJob, supervisor: Supervisor) -> FitResult:
    """Train in this process (one of `job.how.plan.processes`). Raises what the loop raises."""
    base = load_model(
        job.model,
        precision=job.how.precision,
        quantization=job.quantization,
        trust_remote_code=job.trust_remote_code,
    )
    if job.adapter is None:
        model = new_adapter(base, job.adapter_spec, seed=job.how.seed)
    else:
        check_rank(job.adapter, job.adapter_spec)
        model = continue_adapter(base, job.adapter, trainable=True)
    if job.how.gradient_checkpointing:
        model.enable_input_require_grads()
    rows = read_rows(job.rows)
    if job.how.precision == "fp16":
        check_activations(model, (*rows[0][0], *rows[0][1]))
    if job.kind == "sft":
        from itrain_pipeline.learn.sft import SftRow, fit_sft

        tokenizer = load_tokenizer(job.model, trust_remote_code=job.trust_remote_code)
        sft_rows = [SftRow(prompt_ids=prompt, answer_ids=answer) for prompt, answer in rows]
        return fit_sft(model, tokenizer, sft_rows, job, supervisor)
    from itrain_pipeline.learn.collate import PairRow
    from itrain_pipeline.learn.preference import fit_simpo
    from itrain_pipeline.learn.simpo import SimpoSettings

    pairs = [
        PairRow(context_ids=context, chosen_ids=chosen, rejected_ids=rejected, prompt_ids=prompt, truth_ids=truth)
        for context, chosen, rejected, prompt, truth in (row if len(row) == 5 else (*row, (), ()) for row in rows)
    ]
    if job.how.deepspeed is not None and job.resume_from is None:
        start_from_fp32(model)
    return fit_simpo(model, pairs, job, SimpoSettings(**job.loss), supervisor)


def write_new_adapter(
    model: Path, folder: Path, spec: AdapterSpec, *, seed: int, trust_remote_code: bool = False
) -> Path:
    """An untrained adapter for a model folder: the model's function is unchanged under it."""
    base = load_model(model, precision="fp32", trust_remote_code=trust_remote_code)
    return save_adapter(new_adapter(base, spec, seed=seed), folder)
