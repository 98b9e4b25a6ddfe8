"""What a dialogue with tools says from its side: the turns of its user, tools that come later, and a world that runs
calls. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from itrain_pipeline.records import Message, ToolCall

if TYPE_CHECKING:
    from itrain_pipeline.evals.benchmark import Judgement

Steps = Sequence[Sequence[ToolCall]]
"""[step][call]: the steps of a turn in which a call was made."""
Turns = Sequence[Steps]


class WorldError(Exception):
    """The world could not run the calls: the dialogue ends there and is wrong."""


class World(Protocol):
    """One dialogue's tools. Nothing is kept between calls: each is given everything so far."""

    async def run(self, turns: Turns) -> list[str]:
        """What the calls of the last step return, one text a call. Raises WorldError where they cannot be run."""

    async def judge(self, turns: Turns, unreadable: frozenset[int]) -> Judgement:
        """The verdict on a whole dialogue; `unreadable` are the turns that end in a call which cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """`turns[i]` is what the user says; before turn i the model is shown `added[i]` as well, with the words `again`.

    `instruction` is system text where tools stand as text.
    """

    turns: tuple[tuple[Message, ...], ...]
    world: Callable[[], World]
    instruction: str = ""
    added: Mapping[int, tuple[dict[str, Any], ...]] = field(default_factory=dict)
    again: str = ""

    def opening(self) -> tuple[Message, ...]:
        """The first prompt's messages where tools stand as text."""
        return (*self.system(), *self.turns[0])

    def system(self) -> tuple[Message, ...]:
        return (Message(role="system", content=self.instruction),) if self.instruction else ()
