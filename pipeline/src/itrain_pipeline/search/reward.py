"""The reward of a finished answer in [-1, 1]: the exact rule where there is a call, self-evaluation for free text."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from itrain_pipeline.errors import ConfigError
from itrain_pipeline.records import Example
from itrain_pipeline.search.judge import Judge
from itrain_pipeline.toolcalls.compare import fragment_score
from itrain_pipeline.toolcalls.parse import ParseResult, parse

RewardKind = Literal["rule", "judge", "mixed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """`rule` never asks the model, `judge` always does, `mixed` only where truth and answer both are free text."""

    kind: RewardKind
    call_format: str
    judge: Judge | None = None

    async def value(self, example: Example, answer: str) -> float:
        """The reward of an answer's text (its end-of-turn token removed) to the example."""
        parsed = parse(answer, self.call_format)
        free_text = parsed.is_text and not example.has_call
        if self.kind == "rule" or (self.kind == "mixed" and not free_text):
            return rule_reward(example, parsed, answer)
        if self.judge is None:
            raise ConfigError(f"reward {self.kind!r} needs a judge")
        return await self.judge.value(example.answer, answer)


def rule_reward(example: Example, parsed: ParseResult, answer: str) -> float:
    """-1 where one side calls and the other does not, or the call cannot be read; else by fragments or by words."""
    if example.has_call:
        return fragment_score(parsed.calls, example.calls) if parsed.calls else -1.0
    return 2 * word_f1(answer, example.answer) - 1 if parsed.is_text else -1.0


def word_f1(first: str, second: str) -> float:
    """Harmonic mean of precision and recall over words in lower case, 1.0 for two empty texts."""
    a, b = Counter(first.lower().split()), Counter(second.lower().split())
    total = a.total() + b.total()
    return 2 * (a & b).total() / total if total else 1.0
