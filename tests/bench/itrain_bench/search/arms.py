"""The arms: the released search in three forms, ours, and the two baselines; each gives the same figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from itrain_bench.search.checker import Checker
from itrain_bench.search.engines import BenchEngine, Spent
from itrain_contract.stagespec import RolloutStage
from itrain_pipeline.data.rendering import Renderer
from itrain_pipeline.records import Example, PreferencePair
from itrain_pipeline.search.bounds import Bounded, limit_tokens
from itrain_pipeline.search.budget import Budget
from itrain_pipeline.search.forest import Forest
from itrain_pipeline.search.levers import Levers
from itrain_pipeline.search.order import neighbours
from itrain_pipeline.search.reference import RELEASED, Quirks, ReferenceSettings
from itrain_pipeline.search.reference_forest import grow_reference
from itrain_pipeline.search.sample import SampleSearch, SearchedSample
from itrain_pipeline.stages.rollout import Pace, build_language

R2 = Quirks(expand_twice=False, one_seed=False, spaces=False)
"""R1 without duplicates and spaces; everything else as released."""
RUN_SEED = 42


def rollout_settings(**changes: object) -> RolloutStage:
    return RolloutStage.model_validate({"max_answer_tokens": 128, "reward": "mixed", **changes})


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The model as the search sees it. All arms sample alike, by default as the release and our spec's defaults do."""

    folder: Path
    renderer: Renderer
    temperature: float = 1.5
    top_p: float = 1.0

    def settings(self, **changes: object) -> RolloutStage:
        """Ours: the released script's actions, simulations, depth and step limit, by default."""
        return rollout_settings(temperature=self.temperature, top_p=self.top_p, **changes)

    def reference(self, **changes: object) -> ReferenceSettings:
        fields = {"temperature": self.temperature, "top_p": self.top_p, "seed": RUN_SEED, **changes}
        return ReferenceSettings(**fields)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What an arm did. `pairs` by whether both sides agree with what they claim."""

    trees: int
    requests: int
    judge_requests: int
    duplicates: int
    lost: int
    limit: int
    spent: Spent
    wall_s: float
    pairs: int
    valid: int
    unsampled: int
    """Pairs of which a side is no beginning of anything that was sampled."""
    peak_in_flight: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    def figures(self) -> dict[str, float]:
        trees, valid = max(self.trees, 1), self.valid
        found = {
            "trees": self.trees,
            "tokens_over_limit": self.spent.tokens / max(self.limit, 1),
            "limit_per_tree": self.limit / trees,
            "engine_tokens_per_tree": self.spent.tokens / trees,
            "requests_per_tree": self.requests / trees,
            "judge_requests_per_tree": self.judge_requests / trees,
            "duplicate_share": self.duplicates / max(self.requests, 1),
            "duplicates": self.duplicates,
            "lost_trees": self.lost,
            "pairs_per_tree": self.pairs / trees,
            "valid_pairs": valid,
            "wall_s_per_tree": self.wall_s / trees,
            "prefill_computed_per_tree": self.spent.computed / trees,
            "decoded_per_tree": self.spent.decoded / trees,
            "unsampled_pairs": self.unsampled,
        }
        if self.pairs:
            found["pair_precision"] = valid / self.pairs
            found["requests_per_any_pair"] = (self.requests + self.judge_requests) / self.pairs
            found["decoded_per_any_pair"] = self.spent.decoded / self.pairs
            found["wall_per_any_pair"] = self.wall_s / self.pairs
        if valid:
            found |= {
                "requests_per_pair": self.requests / valid,
                "judge_requests_per_pair": self.judge_requests / valid,
                "engine_tokens_per_pair": self.spent.tokens / valid,
                "decoded_per_pair": self.spent.decoded / valid,
                "wall_per_pair": self.wall_s / valid,
            }
        return found


async def run_reference(
    engine: BenchEngine,
    model: Model,
    examples: Sequence[Example],
    *,
    quirks: Quirks = RELEASED,
    remember: bool,
    settings: ReferenceSettings | None = None,
) -> Outcome:
    """The released search; R0 is `RELEASED` with `remember` False."""
    language = build_language(model.folder, model.renderer, "pythonic", model.settings())
    engine.begin(remember=remember)
    begun = time.perf_counter()
    forest = await grow_reference(
        examples, engine=engine, language=language, settings=settings or model.reference(), quirks=quirks
    )
    wall_s = time.perf_counter() - begun
    return outcome(
        engine,
        model,
        examples,
        pairs=forest.pairs,
        records=forest.records,
        requests=sum(record.requests for record in forest.records),
        judge_requests=sum(record.judge_calls for record in forest.records),
        duplicates=sum(record.duplicate_requests for record in forest.records),
        lost=len(forest.lost),
        wall_s=wall_s,
    )


class NoStop:
    def is_set(self) -> bool:
        return False


async def run_ours(
    engine: BenchEngine,
    model: Model,
    examples: Sequence[Example],
    *,
    settings: RolloutStage | None = None,
    levers: Levers | None = None,
    remember: bool = True,
    in_flight: int = 0,
    seen: Callable[[SearchedSample], None] = lambda _: None,
) -> Outcome:
    """Our forest as the rollout stage grows it, without the work area. `in_flight` 0: the engine's blocks decide."""
    settings, levers = settings or model.settings(), levers or Levers()
    ordered = neighbours(examples) if levers.neighbours else list(examples)
    search = SampleSearch(
        settings=settings,
        engine=engine,
        language=build_language(model.folder, model.renderer, "pythonic", settings),
        run_seed=RUN_SEED,
        iteration=1,
        adapter_sha256="",
        template_sha256=model.renderer.template_sha256,
        levers=levers,
        budget=Budget([example.id for example in ordered]),
    )
    done: list[SearchedSample] = []

    def finished(_: Example, sample: SearchedSample) -> None:
        done.append(sample)
        seen(sample)

    forest = Forest(
        search.run,
        in_flight=in_flight or Pace(search, ordered),
        max_failed=len(ordered),
        stats=search.stats,
        stop=NoStop(),
    )
    engine.begin(remember=remember)
    begun = time.perf_counter()
    await forest.grow(ordered, on_result=finished)
    wall_s = time.perf_counter() - begun
    records = [sample.record for sample in done]
    reasons: dict[str, int] = {}
    for record in records:
        reasons[record.reason] = reasons.get(record.reason, 0) + 1
    return outcome(
        engine,
        model,
        examples,
        pairs=[pair for sample in done for pair in sample.pairs],
        records=records,
        requests=sum(record.requests for record in records),
        judge_requests=sum(record.judge_calls for record in records),
        duplicates=sum(record.duplicate_requests for record in records),
        lost=len(ordered) - len(done),
        wall_s=wall_s,
        peak_in_flight=search.stats.most_in_flight,
        reasons=reasons,
    )


def outcome(
    engine: BenchEngine,
    model: Model,
    examples: Sequence[Example],
    *,
    pairs: Sequence[PreferencePair],
    records: Sequence[Bounded],
    requests: int,
    judge_requests: int,
    duplicates: int,
    lost: int,
    wall_s: float,
    peak_in_flight: int = 0,
    reasons: dict[str, int] | None = None,
) -> Outcome:
    """Figures of an arm; the engine's counters must reconcile with what was asked."""
    spent = engine.spent()
    if spent.computed + spent.cached != spent.prompt_tokens and not lost:
        raise AssertionError(
            f"{spent.computed} computed + {spent.cached} cached are not {spent.prompt_tokens} asked for"
        )
    ends = frozenset({model.renderer.end_of_turn_id})
    sampled = Sampled(engine.sampled, examples)
    checkers = {e.id: Checker(e, model.renderer.answer_text, ends) for e in examples}
    return Outcome(
        trees=len(records),
        requests=requests,
        judge_requests=judge_requests,
        duplicates=duplicates,
        lost=lost,
        limit=sum(map(limit_tokens, records)),
        spent=spent,
        wall_s=wall_s,
        pairs=len(pairs),
        valid=sum(checkers[pair.lineage.sample_id].valid(pair) for pair in pairs),
        unsampled=sum(
            not sampled.begins(pair.prompt_ids, (*pair.shared_ids, *side))
            for pair in pairs
            for side in (pair.chosen_ids, pair.rejected_ids)
        ),
        peak_in_flight=peak_in_flight,
        reasons=reasons or {},
    )


class Sampled:
    """What was sampled behind each example's prompt."""

    def __init__(self, sequences: Iterable[tuple[int, ...]], examples: Sequence[Example]) -> None:
        self._behind: dict[tuple[int, ...], list[tuple[int, ...]]] = {example.prompt_ids: [] for example in examples}
        lengths = sorted({len(prompt) for prompt in self._behind})
        for sequence in sequences:
            for length in lengths:
                if (found := self._behind.get(sequence[:length])) is not None:
                    found.append(sequence[length:])
                    break

    def begins(self, prompt_ids: tuple[int, ...], answer_ids: tuple[int, ...]) -> bool:
        """Whether a sampled answer to the prompt begins like this."""
        return any(answer[: len(answer_ids)] == answer_ids for answer in self._behind[prompt_ids])
