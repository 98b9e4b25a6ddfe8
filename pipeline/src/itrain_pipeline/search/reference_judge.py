"""The rewards of the released code: words shared with the truth, and a judge that writes its verdict.

Part of `search/reference.py`. Written from a description of what that code does; nothing of it is copied.
"""

from __future__ import annotations

from collections.abc import Sequence

from itrain_pipeline.search.judge import RUBRIC
from itrain_pipeline.search.pairs import word_overlap

JUDGE_TOKENS = 7
JUDGE_TEMPERATURE = 0.6
SYSTEM = "You judge answers of an assistant.\n"
CUE = "\nThe option of overall quality is"
OPTIONS = (("(a)", "excellent", 1.0), ("(b)", "acceptable", 0.1), ("(c)", "fair", -1.0), ("(d)", "poor", -2.0))


def fast_reward(answer: str, truth: str) -> float:
    """Of every node at once: a tenth for ending or not ending like a call as the truth does, and the shared words."""
    alike = answer.rstrip().endswith(")]") == truth.rstrip().endswith(")]")
    return (0.1 if alike else -0.1) + word_overlap(answer, truth) - 0.5


def judge_text(truth: str, answer: str, *, rubric_last: bool, rubric: str = RUBRIC) -> str:
    """`rubric_last`: truth and answer, different in every request, stand before what is always the same."""
    said = f"Ground truth:\n{truth}\nResponse:\n{answer}\n"
    return f"{SYSTEM}{said}{rubric}{CUE}" if rubric_last else f"{SYSTEM}{rubric}{said}{CUE}"


def written_verdict(tokens: Sequence[str]) -> float:
    """A quarter of an option's value for every token that is part of its letter or name, A's looked at first.

    So brackets, `c` and the empty text speak for A, and a clean (C) is worth as much as a clean (A). The released code
    counts the next likely tokens as well, which the Engine port does not tell.
    """
    return sum(_option_value(token.lower()) for token in tokens) / 4


def _option_value(token: str) -> float:
    return next((value for letter, name, value in OPTIONS if token in letter or token in name), 0.0)
