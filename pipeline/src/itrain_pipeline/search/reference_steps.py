"""How the released code cuts a completion into steps: by text, at separators, blind to strings and to tokens.

Part of `search/reference.py`. Written from a description of what that code does; nothing of it is copied.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from itrain_pipeline.ports import Completion

SEPARATOR = re.compile(r"\. |, |[=(]")
LOST_PRIOR = 0.1
"""The prior of a step of which the released code has lost the tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A piece of a completion, and the ids that were sampled for it; a token across a boundary ends the step."""

    text: str
    ids: tuple[int, ...]
    prior: float


def cut_text(text: str, step_limit: int) -> Iterator[str]:
    """Pieces that join to the text. Separators are fragments of their own, `step_limit` fragments make a piece."""
    fragments, at = list[str](), 0
    for separator in SEPARATOR.finditer(text):
        fragments += [text[at : separator.start()], separator.group()]
        at = separator.end()
    fragments.append(text[at:])
    for start in range(0, len(fragments), step_limit):
        if piece := "".join(fragments[start : start + step_limit]):
            yield piece


def completion_steps(
    completion: Completion,
    decode: Callable[[Sequence[int]], str],
    *,
    step_limit: int,
    levels: int,
    spaces: bool,
    stuck_prior: bool,
) -> list[Step]:
    """At most `levels` steps of one completion; the last takes what remains, its pieces joined as the path's are.

    `spaces`: texts are the pieces themselves, else what the step's own tokens say. `stuck_prior`: behind the first
    token across a boundary every step has LOST_PRIOR.
    """
    ids, ends = completion.token_ids, _text_ends(completion.token_ids, decode)
    steps: list[Step] = []
    read = at = 0
    stuck = False
    for piece in cut_text(decode(ids), step_limit):
        read += len(piece)
        stop = next((n for n, end in enumerate(ends, 1) if end >= read), len(ids))
        if stop > at or spaces:
            prior = LOST_PRIOR if stuck else _prior(completion.logprobs[at:stop])
            steps.append(Step(text=piece if spaces else decode(ids[at:stop]), ids=ids[at:stop], prior=prior))
        stuck = stuck_prior and (stuck or ends[stop - 1] != read)
        at = max(at, stop)
    if not steps:
        return []
    if at < len(ids):  # the end-of-turn token, which stands for no text
        steps[-1] = Step(text=steps[-1].text, ids=(*steps[-1].ids, *ids[at:]), prior=steps[-1].prior)
    return [*steps[: levels - 1], _merged(steps[levels - 1 :], spaces)] if len(steps) > levels else steps


def joined(texts: Sequence[str], *, spaces: bool) -> str:
    """The texts of a path: with a blank before each where `spaces`."""
    return "".join(f" {text}" if spaces else text for text in texts)


def _merged(steps: Sequence[Step], spaces: bool) -> Step:
    ids = tuple(token for step in steps for token in step.ids)
    prior = sum(step.prior * len(step.ids) for step in steps) / max(len(ids), 1)
    return Step(text=joined([step.text for step in steps], spaces=spaces), ids=ids, prior=prior)


def _prior(logprobs: Sequence[float]) -> float:
    return math.exp(sum(logprobs) / len(logprobs)) if logprobs else LOST_PRIOR


def _text_ends(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[int]:
    """Length of the text behind every token."""
    return [len(decode(ids[:n])) for n in range(1, len(ids) + 1)]
