"""One lever off at a time, everything else as it is: what each of them is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from itrain_bench.search.arms import Model, Outcome, run_ours
from itrain_bench.search.engines import BenchEngine
from itrain_pipeline.records import Example
from itrain_pipeline.search.levers import ALL_OFF, Levers

ON = Levers()
FIXED_TREES = 30
"""The released script's workers, where the engine's blocks do not decide."""
TOLD = (
    "tokens_over_limit",
    "engine_tokens_per_tree",
    "engine_tokens_per_pair",
    "requests_per_tree",
    "requests_per_pair",
    "judge_requests_per_tree",
    "decoded_per_pair",
    "pairs_per_tree",
    "pair_precision",
    "duplicates",
    "wall_per_pair",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A variant of ours. `of` is what it is compared with: the judge's levers need a judge to be seen."""

    name: str
    text: str
    levers: Levers = ON
    remember: bool = True
    in_flight: int = 0
    changes: dict[str, object] = field(default_factory=dict)


JUDGE: dict[str, object] = {"reward": "judge"}
ROWS = (
    Row(name="none", text="ours, all levers on"),
    Row(name="prefix_cache", text="no prefix cache between requests", remember=False),
    Row(name="fork", text="a request for each completion", levers=replace(ON, fork=False)),
    Row(name="merge", text="identical actions stay apart", levers=replace(ON, merge=False)),
    Row(name="early_stop", text="every tree spends its budget", levers=replace(ON, early_stop=False)),
    Row(name="prune", text="decided branches stay candidates", levers=replace(ON, prune=False)),
    Row(name="hand_over", text="freed budget stays where it is", levers=replace(ON, hand_over=False)),
    Row(name="neighbours", text="samples in the given order", levers=replace(ON, neighbours=False)),
    Row(name="adaptive_concurrency", text=f"always {FIXED_TREES} trees in flight", in_flight=FIXED_TREES),
    Row(name="many_trees", text="one tree after the other", in_flight=1),
    Row(name="certainty", text="pairs by value alone", changes={"certainty": "none"}),
    Row(name="rule_first", text="every answer is judged by the model", changes=JUDGE),
    Row(name="memo", text="judge, equal texts judged again", levers=replace(ON, memo=False), changes=JUDGE),
    Row(
        name="judge_together",
        text="judge, siblings one after the other",
        levers=replace(ON, judge_together=False),
        changes=JUDGE,
    ),
    Row(name="all", text="all levers off", levers=ALL_OFF),
)


async def run_row(engine: BenchEngine, model: Model, examples: Sequence[Example], row: Row) -> Outcome:
    return await run_ours(
        engine,
        model,
        examples,
        settings=model.settings(**row.changes),
        levers=row.levers,
        remember=row.remember,
        in_flight=row.in_flight,
    )
