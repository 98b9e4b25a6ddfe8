"""Self-evaluation by one token: the model's own logprobs of the options A to D, matched by token id.

The prompt holds the rubric first, then the ground truth, then the answer: the rubric's keys and values are computed
once for all trees, the ground truth's once for a tree.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from itrain_pipeline.errors import ConfigError

OPTION_VALUES = {"A": 1.0, "B": 0.1, "C": -1.0, "D": -2.0}
"""Excellent, Acceptable, Fair, Poor: the paper's code."""
RUBRIC = """Grade the overall quality of a response by comparing it with the ground truth.
Consider whether it does what the ground truth does, whether every fact and value in it is right, and whether it is
complete and free of anything that does not belong.
(A) Excellent: as good as the ground truth; nothing is wrong or missing.
(B) Acceptable: right in what matters; small flaws that do no harm.
(C) Fair: partly right; a fact, value or part that matters is wrong or missing.
(D) Poor: wrong, irrelevant, unreadable or harmful.
"""
QUESTION = "\nThe option of overall quality is ("

Encode = Callable[[str], Sequence[int]]
OptionLogprobs = Callable[[tuple[int, ...], tuple[int, ...]], Awaitable[list[float]]]


def judge_value(logprobs: Sequence[float]) -> float:
    """Expected value over the four options, renormalised to them, scaled from [-2, 1] to [-1, 1].

    A straight line keeps the paper's order and distances: A 1.0, B 0.4, C -1/3, D -1.
    """
    top = max(logprobs)
    weights = [math.exp(value - top) for value in logprobs]
    mean = sum(w * v for w, v in zip(weights, OPTION_VALUES.values(), strict=True)) / sum(weights)
    low, high = min(OPTION_VALUES.values()), max(OPTION_VALUES.values())
    return 2 * (mean - low) / (high - low) - 1


def option_ids(encode: Encode) -> tuple[int, ...]:
    """One token id per option letter; raises ConfigError when a letter is not one token of its own."""
    ids = [tuple(encode(letter)) for letter in OPTION_VALUES]
    if any(len(one) != 1 for one in ids) or len(set(ids)) != len(ids):
        raise ConfigError(
            f"reward: the tokenizer has no single, distinct tokens for {', '.join(OPTION_VALUES)} (got {ids}); "
            "use reward: rule"
        )
    return tuple(one[0] for one in ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeForm:
    """What is the same in all judgements, as token ids: encoded once for all trees."""

    encode: Encode
    beginning: tuple[int, ...]
    """What every text of the model begins with, and the rubric."""
    question: tuple[int, ...]
    options: tuple[int, ...]


def judge_form(encode: Encode, bos_ids: Sequence[int] = ()) -> JudgeForm:
    """Raises ConfigError when a letter of an option is not one token of its own."""
    return JudgeForm(
        encode=encode,
        options=option_ids(encode),
        beginning=(*bos_ids, *encode(RUBRIC)),
        question=tuple(encode(QUESTION)),
    )


class Judge:
    """Values of free-text answers, remembered by (ground truth, answer) but for their blanks.

    One judge belongs to one tree: what it remembers must not depend on the trees before it. A text that is being
    judged is not asked about again: siblings with one text share the request.
    """

    def __init__(self, form: JudgeForm, *, ask: OptionLogprobs, remember: bool = True) -> None:
        self._form, self._ask, self._remember = form, ask, remember
        self._truths: dict[str, tuple[int, ...]] = {}
        self._known: dict[tuple[str, str], asyncio.Task[float]] = {}
        self._judged: set[tuple[str, str]] = set()
        self.calls = self.hits = 0
        self.truth_tokens = self.judged_tokens = self.judged = 0
        """Tokens of the different truths and answers that were judged, and how many answers those are."""

    def prompt(self, truth: str, answer: str) -> tuple[int, ...]:
        """Rubric, ground truth, answer, question; encoded apart, so that equal parts are equal ids."""
        form = self._form
        if truth not in self._truths:
            self._truths[truth] = tuple(form.encode(f"\nGround truth:\n{truth}\n"))
        said = form.encode(f"\nResponse:\n{answer}\n")
        return (*form.beginning, *self._truths[truth], *said, *form.question)

    async def value(self, truth: str, answer: str) -> float:
        """The value of an answer; raises what `ask` raised, which is not remembered."""
        key = (truth, " ".join(answer.split()))
        known = self._known.get(key) if self._remember else None
        if known is not None:
            self.hits += 1
            return await known
        self._count(key)
        self._known[key] = task = asyncio.ensure_future(self._value(*key))
        try:
            return await task
        except BaseException:
            del self._known[key]
            raise

    async def _value(self, truth: str, answer: str) -> float:
        return judge_value(await self._ask(self.prompt(truth, answer), self._form.options))

    def _count(self, key: tuple[str, str]) -> None:
        self.calls += 1
        if key not in self._judged:
            truth, answer = key
            if all(known != truth for known, _ in self._judged):
                self.truth_tokens += len(self._form.encode(truth))
            self.judged += 1
            self.judged_tokens += len(self._form.encode(answer))
            self._judged.add(key)
