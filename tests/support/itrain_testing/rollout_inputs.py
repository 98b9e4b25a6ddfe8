"""What a rollout shard reads: a prepared toolworld, its scores and an adapter, in plain folders."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from itrain_contract.stageio import StageInput, StageResult
from itrain_contract.stages import StageKind
from itrain_pipeline.data.rendering import Renderer
from itrain_pipeline.quickstart import model_path
from itrain_pipeline.records import Example, ScoredExample, write_jsonl
from itrain_testing.stageports import folder_files, stage_input, stage_result
from itrain_testing.toolworld_rows import toolworld_rows


@cache
def quickstart_renderer() -> Renderer:
    from transformers import AutoTokenizer

    return Renderer(AutoTokenizer.from_pretrained(model_path(), local_files_only=True), "pythonic")


def toolworld_examples(count: int, *, seed: int = 3) -> list[Example]:
    return list(toolworld_rows(quickstart_renderer(), "train", count, seed))


def upstream_results(
    folder: Path, examples: Sequence[Example], *, iteration: int = 1, score_shards: int = 2, adapter: Path | None = None
) -> list[StageResult]:
    """prepare, the score shards of one iteration (perplexity falls along the rows), and a warm-up with an adapter."""
    write_jsonl(folder / "train.jsonl", examples)
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps({"template_sha256": quickstart_renderer().template_sha256}))
    files = {"train.jsonl": folder / "train.jsonl", "manifest.json": manifest, **folder_files(model_path(), "model/")}
    results = [stage_result(StageKind.PREPARE, files=files)]
    for shard in range(score_shards):
        path = folder / f"scores-{shard}.jsonl"
        rows = [
            ScoredExample(id=e.id, perplexity=100.0 - n, tokens=len(e.answer_ids), has_call=e.has_call)
            for n, e in enumerate(examples)
            if n % score_shards == shard
        ]
        write_jsonl(path, rows)
        results.append(stage_result(StageKind.SCORE, iteration, {"scores.jsonl": path}, shard=shard))
    if adapter is not None:
        results.append(stage_result(StageKind.WARMUP, files=folder_files(adapter, "adapter/")))
    return results


def rollout_input(rollout: dict[str, Any], *, iteration: int = 1, shards: int = 1, fraction: float = 1.0) -> StageInput:
    made = stage_input(
        StageKind.ROLLOUT, iteration, stages={"rollout": rollout, "score": {"fraction": fraction, "stratify": False}}
    )
    return made.model_copy(update={"shards": shards})


def with_answer(example: Example, **changes: Any) -> Example:
    return dataclasses.replace(example, **changes)
