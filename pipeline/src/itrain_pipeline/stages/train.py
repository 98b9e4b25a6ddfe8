"""train: SimPO on the step pairs of this iteration's rollouts; it continues the run's one adapter.

Pairs of all completed shards are merged in the order of (sample, pair), so the result does not depend on which shard
finished first (method document, section 4).
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from itrain_contract.spec import AdapterSpec, ModelSpec
from itrain_contract.stageio import StageInput, StageResult
from itrain_contract.stages import StageKind
from itrain_contract.stagespec import TrainStage
from itrain_pipeline.errors import ConfigError, DataError
from itrain_pipeline.learn.guards import Guards, plan_guards
from itrain_pipeline.learn.inputs import Adapter, newest_adapter, prepare_result
from itrain_pipeline.learn.job import (
    FitResult,
    Optimisation,
    TrainJob,
    deepspeed_config,
    write_log,
    write_rows,
)
from itrain_pipeline.learn.order import count_steps, plan_batches, plan_tree_order
from itrain_pipeline.ports import Ports, StageOutput, Upstream, folder_outputs
from itrain_pipeline.records import Example, PreferencePair, read_jsonl
from itrain_pipeline.search.treerecord import read_trees
from itrain_pipeline.stages.compute import Compute, choose_compute

log = logging.getLogger(__name__)

SHOWN = ("reward_margin", "reward_accuracy", "chosen_logprob", "answer_logprob")


Answers = Mapping[str, Sequence[int]]
"""Right answers by sample, as token ids; none where only steps are trained on."""
PlanGuards = Callable[[Iterable[Example]], Guards]
"""Guards by prepare's training examples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """The pairs that fit, merged, and the number of rows that do not.

    `answers` are the right answers to train on, `missed` the samples of which only the answer is.
    """

    fitting: tuple[PreferencePair, ...]
    too_long: int
    answers: Answers
    missed: tuple[Example, ...]
    guards: Guards | None = None


def run(stage_input: StageInput, ports: Ports) -> StageOutput:
    """Train on the pairs; without any the adapter goes on as it is. Raises PermanentError for a training that diverged
    or that a guard ended: then nothing of it is kept.

    On several nodes the outputs are node 0's; the others return nothing.
    """
    stage = TrainStage.model_validate(stage_input.spec["stage"])
    if stage.nodes != ports.nodes.count:
        raise ConfigError(f"train.nodes: got {stage.nodes}, allowed is {ports.nodes.count} here")
    before = newest_adapter(ports.upstream)
    plan = functools.partial(
        plan_guards,
        stage.guards,
        call_format=stage_input.spec.get("callFormat", "pythonic"),
        seed=int(stage_input.spec["seed"]),  # the same prompts in every iteration
    )
    pairs = merge_pairs(stage_input.iteration, stage, ports.upstream, plan)
    check_lineage(pairs, before)
    if not pairs.fitting and not pairs.missed:
        if ports.nodes.rank:
            return StageOutput()
        return unchanged(stage_input, before, pairs, ports)

    from itrain_pipeline.learn.launch import run_job

    model_dir = ports.upstream.fetch_folder(prepare_result(ports.upstream), "model/")
    compute = choose_compute(stage_input, model_dir)
    job = build_job(stage_input, stage, pairs, before, compute, model_dir, ports)
    result = run_job(job, ports)
    if result is None:
        return StageOutput()
    return build_output(job, result, pairs, before, compute, ports)


def merge_pairs(iteration: int, stage: TrainStage, upstream: Upstream, plan: PlanGuards | None = None) -> Pairs:
    """All pairs of the completed shards by (sample, pair id), and the samples that only have an answer to teach, by id.

    Those longer than `maxLength` are counted, never cut. Guards are there where `plan` is.
    """
    results = upstream.results(StageKind.ROLLOUT, iteration)
    if not results:
        raise DataError(f"train of iteration {iteration} has no rollout result upstream")
    merged = [
        pair for result in results for pair in read_jsonl(upstream.fetch(result.outputs["pairs.jsonl"]), PreferencePair)
    ]
    merged.sort(key=lambda pair: (pair.lineage.sample_id, pair.id))
    for pair in merged:
        if not pair.chosen_ids or not pair.rejected_ids or not pair.prompt_ids:
            raise DataError(f"pairs.jsonl: pair {pair.id} has an empty prompt or step; both steps need a token")
    missed = missed_samples(results, upstream) if stage.answer_nll_weight and stage.answers == "missed" else ()
    wanted = {pair.lineage.sample_id for pair in merged} | set(missed) if stage.answer_nll_weight else set()
    examples, guards = read_examples(wanted, upstream, plan)
    return dataclasses.replace(fitting_rows(merged, missed, examples, stage.max_length), guards=guards)


def fitting_rows(
    pairs: Sequence[PreferencePair], missed: Sequence[str], examples: Mapping[str, Example], max_length: int
) -> Pairs:
    """Pairs and missed samples of which no row is longer than `max_length`, with the answers of `examples`."""
    answers = {name: example.answer_ids for name, example in examples.items()}
    fitting = [pair for pair in pairs if pair_length(pair, answers) <= max_length]
    short = [examples[name] for name in missed if row_length(examples[name]) <= max_length]
    too_long = len(pairs) - len(fitting) + len(missed) - len(short)
    return Pairs(fitting=tuple(fitting), too_long=too_long, answers=answers, missed=tuple(short))


def missed_samples(results: Sequence[StageResult], upstream: Upstream) -> list[str]:
    """Samples of which the search could tell a right answer and sampled none, by id."""
    trees = (upstream.fetch(result.outputs["trees.jsonl"]) for result in results)
    return sorted(record.sample_id for path in trees for record in read_trees(path) if record.reached is False)


def read_examples(
    wanted: Set[str], upstream: Upstream, plan: PlanGuards | None
) -> tuple[dict[str, Example], Guards | None]:
    """Samples by id as prepare wrote them, and the guards, in one reading of a file that is larger than memory may be.

    DataError for a sample that prepare did not write.
    """
    found: dict[str, Example] = {}

    def passing() -> Iterator[Example]:
        for row in read_jsonl(upstream.fetch(prepare_result(upstream).outputs["train.jsonl"]), Example):
            if row.id in wanted:
                found[row.id] = row
            yield row

    rows = passing()
    guards = None if plan is None else plan(rows)
    if wanted:
        collections.deque(rows, maxlen=0)  # guards that probe nothing have read nothing
    if unknown := sorted(wanted - found.keys()):
        raise DataError(f"the rollouts name {len(unknown)} samples that train.jsonl lacks, the first is {unknown[0]}")
    return found, guards


def check_lineage(pairs: Pairs, before: Adapter | None) -> None:
    """Pairs teach the policy that they were sampled from; DataError for those of another adapter."""
    wanted = "" if before is None else before.sha256
    for pair in pairs.fitting:
        if pair.lineage.adapter_sha256 != wanted:
            raise DataError(
                f"pairs.jsonl: pair {pair.id} was sampled from the adapter {pair.lineage.adapter_sha256[:16]!r}, "
                f"the one to continue is {wanted[:16]!r}"
            )


def pair_length(pair: PreferencePair, answers: Answers) -> int:
    """Tokens of the longest of the pair's rows."""
    step = len(pair.shared_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids))
    return len(pair.prompt_ids) + max(step, len(answers.get(pair.lineage.sample_id, ())))


def row_length(example: Example) -> int:
    return len(example.prompt_ids) + len(example.answer_ids)


def answer_row(example: Example) -> tuple[Sequence[int], ...]:
    """A row that prefers nothing."""
    return (), (), (), example.prompt_ids, example.answer_ids


def training_row(pair: PreferencePair, answers: Answers = MappingProxyType({})) -> tuple[Sequence[int], ...]:
    """(context, chosen, rejected), and where answers are trained on (…, prompt, answer). The shared steps are context
    and not scored (trap 2); a step stays as it was sampled, without an end of turn after it (trap 3)."""
    row = ((*pair.prompt_ids, *pair.shared_ids), pair.chosen_ids, pair.rejected_ids)
    return (*row, pair.prompt_ids, answers[pair.lineage.sample_id]) if answers else row


def build_job(
    stage_input: StageInput,
    stage: TrainStage,
    pairs: Pairs,
    before: Adapter | None,
    compute: Compute,
    model_dir: Path,
    ports: Ports,
) -> TrainJob:
    from itrain_pipeline.learn.launch import process_count

    seed = int(stage_input.spec["seed"]) + stage_input.iteration
    rows, trees = job_rows(pairs)
    order = plan_tree_order(
        trees, epochs=stage.epochs, max_steps=stage.max_steps, global_batch=stage.global_batch, seed=seed
    )
    plan = plan_batches(
        global_batch=stage.global_batch,
        micro_batch=stage.micro_batch,
        processes=process_count(stage.processes_per_node, stage.global_batch, stage.nodes),
    )
    how = Optimisation(
        learning_rate=stage.learning_rate,
        warmup_ratio=stage.warmup_ratio,
        schedule=stage.schedule,
        checkpoint_steps=stage.checkpoint_steps,
        seed=seed,
        precision=compute.precision,
        on_cpu=compute.device.kind == "cpu",
        plan=plan,
        steps=count_steps(len(order), stage.global_batch),
        max_grad_norm=stage.max_grad_norm,
        gradient_checkpointing=stage.gradient_checkpointing,
        deepspeed=deepspeed_config(
            stage.deepspeed,
            plan=plan,
            precision=compute.precision,
            quantization=stage.quantization,
            max_grad_norm=stage.max_grad_norm,
        ),
    )
    return TrainJob(
        kind="simpo",
        model=model_dir,
        adapter=None if before is None else before.folder,
        adapter_spec=AdapterSpec.model_validate(stage_input.spec["adapter"]),
        rows=write_rows(ports.scratch / "rows.jsonl", rows),
        order=order,
        folder=ports.scratch / "train",
        how=how,
        loss=loss_settings(stage, pairs),
        quantization=stage.quantization,
        trust_remote_code=ModelSpec.model_validate(stage_input.spec["model"]).trust_remote_code,
        trees=trees,
        form=stage.rows,
        pass_tokens=stage.batch_tokens,
        guards=pairs.guards,
    )


def loss_settings(stage: TrainStage, pairs: Pairs) -> dict[str, float]:
    """The keyword arguments of `SimpoSettings`."""
    names = ("beta", "gamma", "nll_weight", "answer_nll_weight")
    lengths = [len(ids) for ids in pairs.answers.values()]
    return {name: getattr(stage, name) for name in names} | {
        "answer_tokens": sum(lengths) / len(lengths) if lengths else 1.0
    }


def job_rows(pairs: Pairs) -> tuple[list[tuple[Sequence[int], ...]], tuple[int, ...]]:
    """The job's rows, those of pairs first, and their trees."""
    rows = [*(training_row(pair, pairs.answers) for pair in pairs.fitting), *map(answer_row, pairs.missed)]
    return rows, tree_numbers([*(pair.lineage.sample_id for pair in pairs.fitting), *(row.id for row in pairs.missed)])


def tree_numbers(samples: Sequence[str]) -> tuple[int, ...]:
    """The tree of each row, by its sample, numbered as they come: a sample has one."""
    numbers: dict[str, int] = {}
    return tuple(numbers.setdefault(sample, len(numbers)) for sample in samples)


def unchanged(stage_input: StageInput, before: Adapter | None, pairs: Pairs, ports: Ports) -> StageOutput:
    """The adapter as it was: an iteration without pairs is no failure. Where none was yet, a new one that does nothing
    (its B is zero)."""
    from itrain_pipeline.learn.adapter import adapter_sha256

    log.warning("no pairs to train on: the adapter stays as it is")
    if before is not None:
        folder = before.folder
    else:
        from itrain_pipeline.learn.fitting import write_new_adapter

        folder = write_new_adapter(
            ports.upstream.fetch_folder(prepare_result(ports.upstream), "model/"),
            ports.scratch / "adapter",
            AdapterSpec.model_validate(stage_input.spec["adapter"]),
            seed=int(stage_input.spec["seed"]),
            trust_remote_code=ModelSpec.model_validate(stage_input.spec["model"]).trust_remote_code,
        )
    sha256 = adapter_sha256(folder)
    return StageOutput(
        outputs={**folder_outputs(folder, "adapter/"), "log.jsonl": write_log(ports.scratch / "log.jsonl", ())},
        counters={"pairs": 0.0, "too_long": float(pairs.too_long), "steps": 0.0},
        info={"adapter_before": "" if before is None else sha256, "adapter_sha256": sha256},
        message=f"no pairs to train on ({pairs.too_long} too long): the adapter is unchanged",
    )


def build_output(
    job: TrainJob, result: FitResult, pairs: Pairs, before: Adapter | None, compute: Compute, ports: Ports
) -> StageOutput:
    from itrain_pipeline.learn.adapter import adapter_sha256

    metrics: dict[str, float] = {}
    if result.log:
        first, last = result.log[0], result.log[-1]
        metrics = {"train/loss_first": first["loss"], "train/loss": last["loss"]}
        for name in SHOWN:
            if values := [row[name] for row in result.log if name in row]:  # a step may have no pair in it
                metrics |= {f"train/{name}_first": values[0], f"train/{name}": values[-1]}
    metrics |= {f"train/{name}": value for name, value in result.figures.items()}
    return StageOutput(
        metrics=metrics,
        outputs={
            **folder_outputs(result.adapter, "adapter/"),
            "log.jsonl": write_log(ports.scratch / "log.jsonl", result.log),
        },
        counters={
            "pairs": float(len(pairs.fitting)),
            "missed": float(len(pairs.missed)),
            "too_long": float(pairs.too_long),
            "steps": float(result.steps),
            "skipped_steps": float(result.skipped_steps),
            "tokens_computed": float(result.tokens),
            "tokens_of_separate_rows": float(result.naive_tokens),
        },
        info={
            **compute.record(job.quantization),
            "rows": result.form or "",
            "processes": str(job.how.plan.processes),
            "nodes": str(ports.nodes.count),
            "sharding": "none"
            if job.how.deepspeed is None
            else f"zero{job.how.deepspeed['zero_optimization']['stage']}",
            "adapter_before": "" if before is None else before.sha256,
            "adapter_sha256": adapter_sha256(result.adapter),
        },
        message=f"{result.steps} steps over {len(pairs.fitting)} pairs"
        + (f" and {len(pairs.missed)} answers that no sample had" if pairs.missed else ""),
    )
