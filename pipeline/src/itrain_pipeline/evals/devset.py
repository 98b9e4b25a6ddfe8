"""The run's own dev set as a benchmark, in the categories `call` and `no_call`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from itrain_pipeline.evals.benchmark import Answer, Item, Judgement, judged
from itrain_pipeline.evals.errors import classify, exact_gold
from itrain_pipeline.evals.metrics import Rate, Score
from itrain_pipeline.records import Example
from itrain_pipeline.toolcalls.compare import exact_match
from itrain_pipeline.toolcalls.parse import ParseResult


@dataclass(frozen=True, slots=True, kw_only=True)
class DevSet:
    """Held-out examples as `prepare` rendered them, judged by exact match."""

    examples: Sequence[Example]
    name: str = "dev"

    def items(self) -> list[Item]:
        return [
            Item(
                category="call" if example.has_call else "no_call",
                id=example.id,
                messages=example.messages,
                tools=example.tools,
                gold=example,
                prompt_ids=example.prompt_ids,
            )
            for example in self.examples
        ]

    def judge(self, item: Item, answer: Answer) -> Judgement:
        return judge_dev(item.gold, answer.parsed)

    def groups(self, rates: Mapping[str, Rate]) -> Mapping[str, Score | None]:
        return {}

    def info(self) -> Mapping[str, str]:
        return {}


def judge_dev(example: Example, answer: ParseResult) -> Judgement:
    """Right with exactly the gold calls in any order, each name and value equal; without gold calls, right iff none.

    An unreadable call is no call and no right answer: a format error in either category.
    """
    if answer.error is None and exact_match(answer.calls, example.calls):
        return Judgement(correct=True)
    gold = exact_gold(example.calls, example.tools)
    return judged(classify(answer.calls, gold, well_formed=answer.error is None))
