"""rollout: step-level tree search on the hardest samples of this shard; preference pairs come out.

Each finished sample is put into the work area, so a restarted attempt loses only the trees in flight. How many are in
flight follows the engine's free memory; which pairs come out does not depend on it, but for what the batch does to the
model's last bits. With `treesInFlight: 1` every tree's numbers depend on nothing but the tree, to the bit.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from itrain_contract.spec import DataSpec, ModelSpec
from itrain_contract.stageio import StageInput, StageResult
from itrain_contract.stages import StageKind
from itrain_contract.stagespec import RolloutStage
from itrain_pipeline.data.rendering import Renderer
from itrain_pipeline.data.selection import select_hardest, shard_of
from itrain_pipeline.engine import open_engine
from itrain_pipeline.errors import DataError
from itrain_pipeline.learn.inputs import newest_adapter, prepare_result
from itrain_pipeline.ports import Engine, Ports, StageOutput
from itrain_pipeline.records import Example, PreferencePair, ScoredExample, from_dict, read_jsonl, write_jsonl
from itrain_pipeline.search.baselines import method_settings
from itrain_pipeline.search.budget import Budget, PairQuota
from itrain_pipeline.search.counters import forest_counters, tree_counters
from itrain_pipeline.search.forest import Forest
from itrain_pipeline.search.levers import Levers
from itrain_pipeline.search.order import neighbours
from itrain_pipeline.search.pace import plan_trees, tree_blocks
from itrain_pipeline.search.sample import Language, SampleSearch, SearchedSample
from itrain_pipeline.search.treerecord import tree_record
from itrain_pipeline.search.vocabulary import TokenBytes
from itrain_pipeline.stages.compute import choose_compute
from itrain_pipeline.stages.journal import Journal
from itrain_pipeline.stages.rendered import check_template, load_renderer, stop_token_ids
from itrain_pipeline.toolcalls.steps import cut_steps

log = logging.getLogger(__name__)

ENGINE_TOKENS = ("prefill_computed", "prefill_cached", "decoded")
EngineOpener = Callable[..., Engine]


def run(stage_input: StageInput, ports: Ports, *, engine_opener: EngineOpener = open_engine) -> StageOutput:
    """Search this shard's samples. Raises PermanentError when more than maxFailedTrees of them fail."""
    settings = RolloutStage.model_validate(stage_input.spec["stage"])
    model = ModelSpec.model_validate(stage_input.spec["model"])
    data = DataSpec.model_validate(stage_input.spec["data"])
    prepare = prepare_result(ports.upstream)
    model_dir = ports.upstream.fetch_folder(prepare, "model/")
    renderer = load_renderer(model_dir, data.call_format, trust_remote_code=model.trust_remote_code)
    check_template(ports.upstream.fetch(prepare.outputs["manifest.json"]), renderer)
    examples = select_examples(stage_input, prepare, ports)
    adapter = newest_adapter(ports.upstream)
    levers = Levers()
    if levers.neighbours:
        examples = neighbours(examples)
    done, spent = read_finished(Journal(ports.work, "trees"))
    compute = choose_compute(stage_input, model_dir)
    search = SampleSearch(
        settings=settings,
        engine=engine_opener(
            settings.engine,
            model_dir,
            dtype=compute.precision,
            trust_remote_code=model.trust_remote_code,
        ),
        language=build_language(model_dir, renderer, data.call_format, settings),
        run_seed=int(stage_input.spec["seed"]),
        iteration=stage_input.iteration,
        adapter_sha256="" if adapter is None else adapter.sha256,
        template_sha256=renderer.template_sha256,
        levers=levers,
        budget=Budget([example.id for example in examples]),
    )
    search.engine.load_adapter(f"iteration-{stage_input.iteration}", None if adapter is None else adapter.folder)
    quota = shard_part(settings.max_pairs, ports.shard, stage_input.shards or 1)
    asyncio.run(search_all(search, examples, done, ports, quota=quota, spent=spent))
    return build_output(examples, done, search, ports.scratch, quota=quota, spent=spent, info=compute.record())


async def search_all(
    search: SampleSearch,
    examples: Sequence[Example],
    done: dict[str, SearchedSample],
    ports: Ports,
    *,
    quota: int,
    spent: Counter[str],
) -> None:
    """Search what is not in `done` yet, and put it there and into the work area. Closes the engine.

    `spent` comes with the engine's tokens of earlier attempts and leaves with those of all.
    """
    journal = Journal(ports.work, "trees")
    settings, engine = search.settings, search.engine
    recall_finished(search.budget, examples, done)
    pairs = PairQuota([example.id for example in examples], quota)
    for sample_id, sample in done.items():
        pairs.add(sample_id, len(sample.pairs))
    before = engine_tokens(engine)

    def work() -> dict[str, int]:
        """What the engine did since this was asked last."""
        nonlocal before
        now = engine_tokens(engine)
        new, before = now - before, now
        spent.update(new)
        return dict(new)

    def finished(example: Example, sample: SearchedSample) -> None:
        done[example.id] = sample
        pairs.add(example.id, len(sample.pairs))
        journal.add({**dataclasses.asdict(sample), "engine": work()})
        ports.progress.update(len(done), len(examples), f"{pairs.pairs} pairs, {search.stats.failed} failed trees")

    left = [example for example in examples if example.id not in done]
    forest = Forest(
        search.run,
        in_flight=Pace(search, left),
        max_failed=int(settings.max_failed_trees * len(examples)),
        stats=search.stats,
        stop=ports.stop,
    )
    ports.progress.update(len(done), len(examples), f"{pairs.pairs} pairs")
    try:
        await forest.grow(
            left,
            on_result=finished,
            on_failure=lambda example: pairs.add(example.id, 0),
            enough=pairs.enough,
            needed=lambda example: pairs.needed(example.id),
        )
    finally:
        try:
            await journal.flush()
        finally:
            work()
            await engine.aclose()
    ports.progress.update(len(examples), len(examples), f"{pairs.pairs} pairs, {search.stats.failed} failed trees")


class Pace:
    """How many trees may run, from the engine's free blocks; also holds back the requests of the youngest ones."""

    def __init__(self, search: SampleSearch, examples: Sequence[Example]) -> None:
        self._search = search
        self._longest = max((len(example.prompt_ids) for example in examples), default=1)

    def __call__(self, in_flight: int) -> int:
        settings, capacity = self._search.settings, self._search.engine.kv_capacity()
        actions = method_settings(settings).actions
        plan = plan_trees(
            total_blocks=capacity.total_blocks,
            free_blocks=capacity.free_blocks,
            blocks_per_tree=tree_blocks(
                self._longest,
                actions=actions,
                max_answer_tokens=settings.max_answer_tokens,
                block_tokens=capacity.block_tokens,
            ),
            in_flight=in_flight,
            cap=settings.trees_in_flight,
        )
        self._search.turns.set_limit(plan.trees)
        return plan.trees


def build_output(
    examples: Sequence[Example],
    done: Mapping[str, SearchedSample],
    search: SampleSearch,
    folder: Path,
    *,
    quota: int,
    spent: Mapping[str, int],
    info: Mapping[str, str],
) -> StageOutput:
    """Pairs and tree records in the order of the samples, whatever the order in which they ended."""
    samples = [done[example.id] for example in examples if example.id in done]
    pairs = [pair for sample in samples for pair in sample.pairs][:quota]
    records = [sample.record for sample in samples]
    write_jsonl(folder / "pairs.jsonl", pairs)
    write_jsonl(folder / "trees.jsonl", records)
    stats = search.stats
    if stats.failed:
        log.warning("%d of %d trees failed: %s", stats.failed, len(examples), stats.top_reasons())
    counters = {**tree_counters(records), **forest_counters(stats, len(examples), len(records)), **spent}
    counters |= {"pairs": len(pairs), "held_requests": search.turns.waits}
    return StageOutput(
        outputs={name: folder / name for name in ("pairs.jsonl", "trees.jsonl")},
        counters={name: float(value) for name, value in counters.items()},
        info={
            **info,
            "method": search.settings.method,
            "adapter_sha256": search.adapter_sha256,
            "template_sha256": search.template_sha256,
            "most_trees_in_flight": str(stats.most_in_flight),
            **({"failures": stats.top_reasons()} if stats.failed else {}),
        },
        message=f"{len(pairs)} pairs from {len(records)} trees, {stats.failed} failed",
    )


def select_examples(stage_input: StageInput, prepare: StageResult, ports: Ports) -> list[Example]:
    """This shard's part of the selected samples, hardest first."""
    scored = [
        row
        for result in ports.upstream.results(StageKind.SCORE, stage_input.iteration)
        for row in read_jsonl(ports.upstream.fetch(result.outputs["scores.jsonl"]), ScoredExample)
    ]
    examples = {e.id: e for e in read_jsonl(ports.upstream.fetch(prepare.outputs["train.jsonl"]), Example)}
    unknown = sorted(row.id for row in scored if row.id not in examples)
    if unknown:
        raise DataError(f"scores.jsonl names {len(unknown)} samples that train.jsonl lacks, the first is {unknown[0]}")
    selection = stage_input.spec["selection"]
    calls = sum(example.has_call for example in examples.values())
    chosen = select_hardest(
        scored,
        selection["fraction"],
        stratify=selection["stratify"],
        population={True: calls, False: len(examples) - calls},  # later iterations score a pool, not everything
    )
    if not chosen.ids:
        raise DataError(f"nothing to search: no sample was selected from {len(scored)} scored ones")
    return [examples[row_id] for row_id in chosen.ids if shard_of(row_id, stage_input.shards or 1) == ports.shard]


def build_language(model_dir: Path, renderer: Renderer, call_format: Any, settings: RolloutStage) -> Language:
    """The tokenizer as the search sees it."""
    tokenizer: Any = renderer.tokenizer
    table = TokenBytes(json.loads(tokenizer.backend_tokenizer.to_str()), tokenizer.get_vocab())

    def cut(answer_ids: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        return cut_steps(
            answer_ids,
            table.of(answer_ids),
            step_limit=settings.step_limit,
            max_step_tokens=settings.max_step_tokens,
        )

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    bos = tokenizer.bos_token_id
    return Language(
        decode=renderer.answer_text,
        encode=encode,
        cut=cut,
        bos_ids=() if bos is None else (bos,),
        stop_token_ids=stop_token_ids(model_dir, renderer),
        call_format=call_format,
    )


def read_finished(journal: Journal) -> tuple[dict[str, SearchedSample], Counter[str]]:
    """What earlier attempts finished, by sample, and the tokens that the engine spent on it."""
    done: dict[str, SearchedSample] = {}
    spent: Counter[str] = Counter(dict.fromkeys(ENGINE_TOKENS, 0))
    for row in journal.rows():
        record = tree_record(row["record"])
        pairs = tuple(from_dict(PreferencePair, pair) for pair in row["pairs"])
        done[record.sample_id] = SearchedSample(record=record, pairs=pairs)
        spent.update(row.get("engine", {}))
    return done, spent


def recall_finished(budget: Budget | None, examples: Sequence[Example], done: Mapping[str, SearchedSample]) -> None:
    """Tell the budget what the trees of earlier attempts left and were given."""
    if budget is None:
        return
    for example in examples:
        if example.id in done:
            record = done[example.id].record
            budget.recall(example.id, freed=record.freed_simulations, given=record.extra_simulations)


def engine_tokens(engine: Engine) -> Counter[str]:
    counters = engine.counters()
    return Counter({name: getattr(counters, name) for name in ENGINE_TOKENS})


def shard_part(total: int, shard: int, shards: int) -> int:
    """This shard's part of a total: parts differ by one at most and add up."""
    return total // shards + (shard < total % shards)
