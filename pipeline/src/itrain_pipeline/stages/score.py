"""score: perplexity of this shard's ground-truth answers under the newest adapter.

Finished batches lie in the work area. From iteration 2 on only a pool is scored again: the hardest rows of last time
and a random audit of the others (method document, section 2).
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from itrain_contract.spec import ModelSpec
from itrain_contract.stageio import StageInput, StageResult
from itrain_contract.stages import StageKind
from itrain_contract.stagespec import ScoreStage
from itrain_pipeline.data.selection import AuditedTop, Pool, audit_top, plan_pool, shard_of
from itrain_pipeline.errors import DataError, Interrupted
from itrain_pipeline.files import write_atomic
from itrain_pipeline.learn.inputs import newest_adapter, prepare_result, train_examples
from itrain_pipeline.ports import Ports, StageOutput, Upstream
from itrain_pipeline.records import Example, ScoredExample, from_dict, read_jsonl, to_json, write_jsonl
from itrain_pipeline.stages.compute import choose_compute

log = logging.getLogger(__name__)

FLUSH_INTERVAL_S = 10.0
"""Finished batches wait at most this long for a durable write."""
SCORES = "scores.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The rows of this shard that are to be scored, and what was left out; `pool` None means every row."""

    examples: tuple[Example, ...]
    too_long: int
    population: Mapping[bool, int]
    pool: Pool | None


@dataclass(slots=True, kw_only=True)
class Found:
    """Scored rows by id, and the ids whose perplexity is no finite number."""

    rows: dict[str, ScoredExample] = field(default_factory=dict)
    not_finite: set[str] = field(default_factory=set)

    def __contains__(self, row_id: str) -> bool:
        return row_id in self.rows or row_id in self.not_finite

    def __len__(self) -> int:
        return len(self.rows) + len(self.not_finite)


def run(stage_input: StageInput, ports: Ports) -> StageOutput:
    """Score this shard. Raises DataError when none of its rows has a finite perplexity."""
    stage = ScoreStage.model_validate(stage_input.spec["stage"])
    prepare = prepare_result(ports.upstream)
    work = plan_work(stage_input, stage, prepare, ports)
    found = read_finished(ports)
    info: dict[str, str] = {}
    if any(example.id not in found for example in work.examples):
        info = score_all(stage_input, stage, prepare, work, found, ports)
    return build_output(stage, work, found, ports.scratch, info)


def plan_work(stage_input: StageInput, stage: ScoreStage, prepare: StageResult, ports: Ports) -> Work:
    """Which rows this shard scores; rows longer than `maxLength` are left out and counted, never cut."""
    shards = stage_input.shards or 1
    everything = train_examples(prepare, ports.upstream)
    pool = plan_rescoring(stage_input, stage, everything, ports.upstream)
    own = [example for example in everything if shard_of(example.id, shards) == ports.shard]
    wanted = [example for example in own if pool is None or example.id in pool.ids]
    fitting = [e for e in wanted if len(e.prompt_ids) + len(e.answer_ids) <= stage.max_length]
    return Work(examples=tuple(fitting), too_long=len(wanted) - len(fitting), population=count_calls(own), pool=pool)


def plan_rescoring(
    stage_input: StageInput, stage: ScoreStage, everything: Sequence[Example], upstream: Upstream
) -> Pool | None:
    """The pool of this iteration, equal in every shard; None where all rows are scored."""
    before = upstream.results(StageKind.SCORE, stage_input.iteration - 1)
    if stage.rescore == "all" or not before:
        return None
    last = [row for result in before for row in read_jsonl(upstream.fetch(result.outputs[SCORES]), ScoredExample)]
    return plan_pool(
        last,
        [example.id for example in everything],
        pool_fraction=stage.pool_fraction,
        audit_fraction=stage.audit_fraction,
        stratify=stage.stratify,
        population=count_calls(everything),
        seed=f"{stage_input.spec['seed']}/{stage_input.iteration}",
    )


def count_calls(examples: Sequence[Example]) -> dict[bool, int]:
    calls = sum(example.has_call for example in examples)
    return {True: calls, False: len(examples) - calls}


def score_all(
    stage_input: StageInput, stage: ScoreStage, prepare: StageResult, work: Work, found: Found, ports: Ports
) -> dict[str, str]:
    """Score what is not in `found` yet, into it and into the work area; returns what computed it.

    Batches are planned over all rows, so a restarted attempt computes each row in the batch that it would have had.
    """
    from itrain_pipeline.learn.adapter import continue_adapter
    from itrain_pipeline.learn.loading import load_model, set_threads
    from itrain_pipeline.learn.overflow import check_activations
    from itrain_pipeline.learn.perplexity import batch_budget, plan_token_batches, score_batch

    set_threads()
    settings = ModelSpec.model_validate(stage_input.spec["model"])
    model_dir = ports.upstream.fetch_folder(prepare, "model/")
    compute = choose_compute(stage_input, model_dir)
    model = load_model(model_dir, precision=compute.precision, trust_remote_code=settings.trust_remote_code)
    adapter = newest_adapter(ports.upstream)
    if adapter is not None:
        model = continue_adapter(model, adapter.folder, trainable=False)
    if compute.precision == "fp16":
        check_activations(model, (*work.examples[0].prompt_ids, *work.examples[0].answer_ids))
    flusher = Flusher(ports)
    for batch in plan_token_batches(work.examples, batch_budget(stage.batch_tokens, model.device.type)):
        if all(example.id in found for example in batch):
            continue
        if ports.stop.is_set():
            flusher.flush()
            raise Interrupted(f"stopped; {len(found)} of {len(work.examples)} rows are scored and saved")
        scored = score_batch(model, batch)
        found.rows.update({row.id: row for row in scored.rows})
        found.not_finite.update(scored.not_finite)
        flusher.add(scored.rows, scored.not_finite)
        ports.progress.update(len(found), len(work.examples), "rows scored")
    flusher.flush()
    return {**compute.record(), "adapter_sha256": "" if adapter is None else adapter.sha256}


class Flusher:
    """Finished rows to the work area, some batches to a file: `scores/part-N.jsonl`, lines of a row or of a bad id."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._lines: list[str] = []
        self._next = len(ports.work.names("scores/"))
        self._flushed_at = ports.clock()

    def add(self, rows: Sequence[ScoredExample], not_finite: Sequence[str]) -> None:
        self._lines += [to_json(row) for row in rows]
        self._lines += [json.dumps({"not_finite": row_id}) for row_id in not_finite]
        if self._ports.clock() - self._flushed_at >= FLUSH_INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        if not self._lines:
            return
        name = f"scores/part-{self._next:06d}.jsonl"
        path = self._ports.work.local / name
        write_atomic(path, "".join(line + "\n" for line in self._lines).encode())
        self._ports.work.put(name, path)
        self._next += 1
        self._lines = []
        self._flushed_at = self._ports.clock()


def read_finished(ports: Ports) -> Found:
    """What earlier attempts scored."""
    found = Found()
    for name in ports.work.names("scores/"):
        path = ports.work.get(name)
        if path is None:
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            data: dict[str, Any] = json.loads(line)
            if "not_finite" in data:
                found.not_finite.add(data["not_finite"])
            else:
                row = from_dict(ScoredExample, data)
                found.rows[row.id] = row
    return found


def build_output(stage: ScoreStage, work: Work, found: Found, folder: Path, info: Mapping[str, str]) -> StageOutput:
    """Scores by id, whatever the batches were; counts of everything that was left out."""
    rows = sorted(found.rows.values(), key=lambda row: row.id)
    if work.examples and not rows:
        raise DataError(f"none of {len(work.examples)} rows has a finite perplexity; is the adapter damaged?")
    path = folder / SCORES
    write_jsonl(path, rows)
    tokens = sum(row.tokens for row in rows)
    metrics: dict[str, float] = {}
    if rows:
        metrics["score/mean_nll"] = -math.fsum(math.fsum(row.logprobs) for row in rows) / tokens
    top = AuditedTop()
    if work.pool is not None:
        top = audit_top(rows, work.pool, fraction=stage.fraction, stratify=stage.stratify, population=work.population)
    audited = ""
    if top.recall is not None:
        metrics["score/audited_recall"] = top.recall
        audited = f", audited recall of the hardest {stage.fraction:.0%}: {top.recall:.0%}"
    if found.not_finite:
        log.warning("%d rows have no finite perplexity and are excluded", len(found.not_finite))
    return StageOutput(
        metrics=metrics,
        outputs={SCORES: path},
        counters={
            "rows": float(sum(work.population.values())),
            "scored": float(len(rows)),
            "not_finite": float(len(found.not_finite)),
            "too_long": float(work.too_long),
            "audited": float(sum(row.id in work.pool.audit for row in rows) if work.pool else 0),
            "audited_top": top.rows,
            "audited_top_found": top.found,
            "answer_tokens": float(tokens),
        },
        info={"rescored": "all" if work.pool is None else "pool", **info},
        message=f"{len(rows)} rows scored, {len(found.not_finite)} not finite, {work.too_long} too long{audited}",
    )
