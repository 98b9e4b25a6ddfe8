"""What a learning stage reads from the stages before it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from itrain_contract.stageio import StageResult
from itrain_contract.stages import StageKind
from itrain_pipeline.errors import DataError
from itrain_pipeline.learn.adapter import adapter_sha256
from itrain_pipeline.ports import Upstream
from itrain_pipeline.records import Example, read_jsonl


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A local PEFT folder; `sha256` is that of its weights file, by which pairs name it too."""

    folder: Path
    sha256: str


def prepare_result(upstream: Upstream) -> StageResult:
    results = upstream.results(StageKind.PREPARE)
    if not results:
        raise DataError("there is no prepare result upstream")
    return results[0]


def newest_adapter(upstream: Upstream) -> Adapter | None:
    """Of the newest train, else of the warm-up, else what prepare resumed from; None for the bare base model."""
    for kind in (StageKind.TRAIN, StageKind.WARMUP, StageKind.PREPARE):
        found = next((result for result in upstream.results(kind) if result.has_adapter), None)
        if found is not None:
            folder = upstream.fetch_folder(found, "adapter/")
            return Adapter(folder=folder, sha256=adapter_sha256(folder))
    return None


def train_examples(prepare: StageResult, upstream: Upstream) -> list[Example]:
    """All training rows, each with ids; DataError names the first that has none."""
    examples = list(read_jsonl(upstream.fetch(prepare.outputs["train.jsonl"]), Example))
    for example in examples:
        if not example.prompt_ids or not example.answer_ids:
            raise DataError(f"train.jsonl: row {example.id} has no prompt_ids or answer_ids; prepare writes both")
    return examples
