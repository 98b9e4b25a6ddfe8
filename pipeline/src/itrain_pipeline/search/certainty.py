"""What the ground truth alone decides about a step, whatever the reward says: `certainty` of the spec.

The better step of a certain pair lies on a sampled answer that is right; the worse one begins no right answer: not in
another order of calls or arguments, nor in another spelling. In between (a right beginning that was only continued
wrongly, prose before a call) a step is neither, and makes no pair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from itrain_pipeline.records import Example
from itrain_pipeline.toolcalls.bare import read_bare_answer
from itrain_pipeline.toolcalls.beginnings import may_become, opens_call
from itrain_pipeline.toolcalls.compare import exact_match
from itrain_pipeline.toolcalls.parse import parse

Certainty = Literal["calls", "all", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroundTruth:
    """An example's truth as the search asks for it (`mcts.Truth`)."""

    example: Example
    call_format: str
    decode: Callable[[Sequence[int]], str]

    def reached(self, answer_ids: tuple[int, ...]) -> bool:
        """Whether an answer is right as it stands: what the parser overlooks around calls, no step must teach."""
        answer = self.decode(answer_ids)
        if self.example.has_call:
            return exact_match(read_bare_answer(answer, self.call_format), self.example.calls)
        parsed = parse(answer, self.call_format)
        return parsed.is_text and plain(answer) == plain(self.example.answer)

    def excluded(self, beginning_ids: tuple[int, ...]) -> bool:
        beginning = self.decode(beginning_ids).rstrip("\ufffd")  # a character of which the last bytes are missing
        if self.example.has_call:
            return not may_become(beginning, self.example.calls, self.call_format)
        if opens_call(beginning, self.call_format):
            return True
        return not plain(self.example.answer).startswith(plain(beginning))


def certain_truth(
    certainty: Certainty, example: Example, *, call_format: str, decode: Callable[[Sequence[int]], str]
) -> GroundTruth | None:
    """The truth where it decides alone: for answers that call (`calls`), for all, or for none."""
    if certainty == "none" or (certainty == "calls" and not example.has_call):
        return None
    return GroundTruth(example=example, call_format=call_format, decode=decode)


def plain(text: str) -> str:
    """A text by its words, in lower case: blanks and capitals make no difference."""
    return " ".join(text.lower().split())
