"""warmup: curriculum LoRA fine-tuning, easy to hard; it creates the run's one adapter (method document, section 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from itrain_contract.spec import AdapterSpec, ModelSpec
from itrain_contract.stageio import StageInput
from itrain_contract.stagespec import WarmupStage
from itrain_pipeline.errors import DataError
from itrain_pipeline.learn.inputs import newest_adapter, prepare_result, train_examples
from itrain_pipeline.learn.job import Optimisation, TrainJob, plan_training, write_log, write_rows
from itrain_pipeline.learn.order import plan_order
from itrain_pipeline.ports import Ports, StageOutput, folder_outputs
from itrain_pipeline.records import Bucket, Example
from itrain_pipeline.stages.compute import choose_compute

BUCKETS: tuple[Bucket, ...] = ("easy", "medium", "hard")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The rows that fit, bucket by bucket in the order of training, and the number of those that do not."""

    examples: tuple[Example, ...]
    sizes: tuple[int, ...]
    too_long: int


def run(stage_input: StageInput, ports: Ports) -> StageOutput:
    """Train the adapter. Raises DataError when no row fits, PermanentError when the loss is no number."""
    stage = WarmupStage.model_validate(stage_input.spec["stage"])
    model = ModelSpec.model_validate(stage_input.spec["model"])
    prepare = prepare_result(ports.upstream)
    rows = arrange(train_examples(prepare, ports.upstream), stage)

    from itrain_pipeline.learn.launch import process_count, run_job

    model_dir = ports.upstream.fetch_folder(prepare, "model/")
    compute = choose_compute(stage_input, model_dir)
    seed = int(stage_input.spec["seed"])
    order, plan, steps = plan_training(
        plan_order(
            rows.sizes, epochs=stage.epochs, max_steps=stage.max_steps, global_batch=stage.global_batch, seed=seed
        ),
        global_batch=stage.global_batch,
        micro_batch=stage.micro_batch,
        processes=process_count(0, stage.global_batch),
    )
    how = Optimisation(
        learning_rate=stage.learning_rate,
        warmup_ratio=stage.warmup_ratio,
        schedule="cosine",
        checkpoint_steps=stage.checkpoint_steps,
        seed=seed,
        precision=compute.precision,
        on_cpu=compute.device.kind == "cpu",
        plan=plan,
        steps=steps,
        gradient_checkpointing=stage.gradient_checkpointing,
    )
    before = newest_adapter(ports.upstream)
    job = TrainJob(
        kind="sft",
        model=model_dir,
        adapter=None if before is None else before.folder,
        adapter_spec=AdapterSpec.model_validate(stage_input.spec["adapter"]),
        rows=write_rows(ports.scratch / "rows.jsonl", [(e.prompt_ids, e.answer_ids) for e in rows.examples]),
        order=order,
        folder=ports.scratch / "train",
        how=how,
        trust_remote_code=model.trust_remote_code,
    )
    result = run_job(job, ports)
    if result is None:
        raise AssertionError("a warm-up runs on one node")
    losses = [row["loss"] for row in result.log]
    return StageOutput(
        metrics={"warmup/loss_first": losses[0], "warmup/loss": losses[-1]} if losses else {},
        outputs={
            **folder_outputs(result.adapter, "adapter/"),
            "log.jsonl": write_log(ports.scratch / "log.jsonl", result.log),
        },
        counters={
            "rows": float(len(rows.examples)),
            "too_long": float(rows.too_long),
            "steps": float(result.steps),
            "skipped_steps": float(result.skipped_steps),
            **{f"rows_{name}": float(size) for name, size in zip(BUCKETS, rows.sizes, strict=False)},
        },
        info={
            **compute.record(),
            "order": stage.order,
            "processes": str(plan.processes),
        },
        message=f"{result.steps} steps over {len(rows.examples)} rows, {rows.too_long} longer than {stage.max_length}",
    )


def arrange(examples: Sequence[Example], stage: WarmupStage) -> Rows:
    """Rows by bucket (`curriculum`), or as one bucket (`shuffled`). A row that is too long is left out, never cut."""
    fitting = [e for e in examples if len(e.prompt_ids) + len(e.answer_ids) <= stage.max_length]
    if not fitting:
        raise DataError(f"warmup.maxLength: none of {len(examples)} rows fits into {stage.max_length} tokens")
    parts = [fitting]
    if stage.order == "curriculum":
        parts = [[e for e in fitting if e.bucket == bucket] for bucket in BUCKETS]
    return Rows(
        examples=tuple(example for part in parts for example in part),
        sizes=tuple(map(len, parts)),
        too_long=len(examples) - len(fitting),
    )
