"""Small inputs for the learning stages: rows of ids, pairs, and the results of stages that never ran."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from itrain_contract.spec import ITrainRunSpec
from itrain_contract.stageio import RunIdentity, StageInput, StageResult, build_stage_input
from itrain_contract.stages import StageKind, StageRef
from itrain_pipeline.ports import StageOutput
from itrain_pipeline.records import Bucket, Example, Lineage, Message, PreferencePair, ToolCall, write_jsonl
from itrain_testing.searchedtrees import record
from itrain_testing.stageports import Silent, folder_files, stage_result


class StopAfter(Silent):
    """A stop signal that is set once progress was told `updates` times."""

    def __init__(self, updates: int) -> None:
        super().__init__()
        self._wanted = updates

    def is_set(self) -> bool:
        return len(self.updates) >= self._wanted


END = 2
WORDS = range(7, 300)
BUCKETS: tuple[Bucket, ...] = ("easy", "medium", "hard")


def make_examples(count: int, *, seed: int = 0, longest: int = 30) -> list[Example]:
    """Rows of random ids whose answers end with the end-of-turn id; two of three have a call."""
    rng = random.Random(seed)
    return [
        Example(
            id=f"row-{number:03d}",
            messages=(Message(role="user", content="?"),),
            tools=(),
            answer="",
            calls=() if number % 3 == 2 else (ToolCall(name="f"),),
            bucket=BUCKETS[number % 3],
            source="test",
            prompt_ids=tuple(rng.choice(WORDS) for _ in range(rng.randrange(2, longest))),
            answer_ids=(*(rng.choice(WORDS) for _ in range(rng.randrange(1, 10))), END),
        )
        for number in range(count)
    ]


def make_pairs(count: int, *, seed: int = 0, adapter_sha256: str = "", iteration: int = 1) -> list[PreferencePair]:
    """Step pairs of random ids; two pairs of each sample, in an order that is not the sorted one."""
    rng = random.Random(seed)

    def ids(least: int, most: int) -> tuple[int, ...]:
        return tuple(rng.choice(WORDS) for _ in range(rng.randrange(least, most)))

    pairs = [
        PreferencePair(
            id=f"row-{number // 2:03d}/{number % 2}",
            prompt_ids=ids(3, 20),
            shared_ids=ids(0, 6),
            chosen_ids=ids(1, 8),
            rejected_ids=ids(1, 8),
            chosen_q=0.5,
            rejected_q=-0.5,
            chosen_visits=2,
            rejected_visits=2,
            lineage=Lineage(
                sample_id=f"row-{number // 2:03d}",
                iteration=iteration,
                adapter_sha256=adapter_sha256,
                template_sha256="0" * 64,
                sampling={"temperature": 1.5},
            ),
        )
        for number in range(count)
    ]
    rng.shuffle(pairs)
    return pairs


def prepare_result(folder: Path, model_dir: Path, examples: Sequence[Example]) -> StageResult:
    write_jsonl(folder / "train.jsonl", examples)
    files = {"train.jsonl": folder / "train.jsonl", **folder_files(model_dir, "model/")}
    return stage_result(StageKind.PREPARE, files=files)


def as_result(kind: StageKind, output: StageOutput, *, iteration: int = 0, shard: int | None = None) -> StageResult:
    """What a stage returned, as its consumers see it."""
    return stage_result(kind, iteration, files=output.outputs, shard=shard, metrics=output.metrics)


def rollout_results(
    folder: Path,
    pairs: Sequence[PreferencePair],
    *,
    shards: int = 2,
    iteration: int = 1,
    reached: Mapping[str, bool | None] | None = None,
) -> list[StageResult]:
    """The pairs dealt out over shards; with `reached` also trees that say so of their samples."""
    results = []
    for shard in range(shards):
        path = folder / f"shard-{shard}" / "pairs.jsonl"
        write_jsonl(path, pairs[shard::shards])
        files = {"pairs.jsonl": path}
        if reached is not None:
            files["trees.jsonl"] = path.with_name("trees.jsonl")
            write_jsonl(
                files["trees.jsonl"], [record(name, (), reached=reached[name]) for name in list(reached)[shard::shards]]
            )
        results.append(stage_result(StageKind.ROLLOUT, iteration, files=files, shard=shard))
    return results


def learning_input(
    kind: StageKind,
    stage: Mapping[str, Any],
    *,
    iteration: int = 0,
    shards: int | None = None,
    precision: str = "fp32",
    adapter: Mapping[str, Any] | None = None,
    seed: int = 42,
) -> StageInput:
    """The input of a learning stage; `stage` are its own fields in camelCase. Train prefers steps alone by default."""
    alone = {"answerNllWeight": 0} if kind is StageKind.TRAIN else {}
    spec = ITrainRunSpec.model_validate(
        {
            "model": {"uri": "builtin://toolworld"},
            "data": {"uri": "builtin://toolworld"},
            "storage": {"uri": "/storage"},
            "adapter": {"rank": 4, "alpha": 8, **(adapter or {})},
            "precision": precision,
            "seed": seed,
            "stages": {kind.value: {**alone, **stage}},
        }
    )
    return build_stage_input(
        run=RunIdentity(name="small", uid="12345678", storage="file:///storage"),
        spec=spec,
        ref=StageRef(kind=kind, iteration=iteration),
        attempt=1,
        shards=shards,
        upstream=(),
    )


def with_ids(example: Example, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> Example:
    return dataclasses.replace(example, prompt_ids=tuple(prompt_ids), answer_ids=tuple(answer_ids))


def without_padding(counters: Mapping[str, float]) -> dict[str, float]:
    """How rows are padded depends on who shares them out."""
    return {name: value for name, value in counters.items() if name != "tokens_computed"}
