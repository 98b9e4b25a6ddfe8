"""One dialogue with whoever answers: turn by turn, step by step, as BFCL's runner has it.

In each turn the model answers until it makes no call; its calls are run, and what they return is shown to it. The
prompt of a step begins with that of the step before, so an engine that keeps prefixes computes only what is new.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from itrain_pipeline.evals.benchmark import Judgement
from itrain_pipeline.evals.errors import ErrorClass
from itrain_pipeline.evals.scripts import Script, World, WorldError
from itrain_pipeline.records import Message, ToolCall
from itrain_pipeline.toolcalls.parse import ParseResult
from itrain_pipeline.toolcalls.serialise import serialise

MAX_STEPS: Final = 20
"""Of a turn. A model that still calls then is stopped, and the turns after it are not asked."""
ResultsAs = Literal["tool", "user"]
"""A tool turn for each result (BFCL's handlers of local models and of native calls), or all in one user turn (those of
prompted models behind an API)."""


class NoRoomError(Exception):
    """Prompt and answer do not fit into the model's context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    text: str
    note: str = ""
    """`cut after 512 tokens`"""


Say = Callable[[Sequence[Message], Sequence[Mapping[str, Any]]], Awaitable[Said]]
"""(dialogue so far, its tools) -> the next answer. Raises NoRoomError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How a dialogue is held. `clean` makes a text fit to stand in a later prompt."""

    native: bool = False
    results: ResultsAs = "tool"
    clean: Callable[[str], str] = field(default=lambda text: text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """`texts[turn][step]` is what the model wrote; `judgement` the verdict on it."""

    texts: list[list[str]]
    judgement: Judgement
    note: str = ""

    @property
    def output(self) -> str:
        """What is kept: BFCL's own `result` of a dialogue, as JSON."""
        return json.dumps(self.texts, ensure_ascii=False)


async def converse(
    script: Script, tools: Sequence[dict[str, Any]], say: Say, read: Callable[[str], ParseResult], manner: Manner
) -> Conversation:
    """Hold the dialogue to its end and judge it. Raises what `say` raises, but for NoRoomError."""
    held = _Held(script, list(tools), script.world(), read, manner)
    failed: Judgement | None = None
    try:
        for number in range(len(script.turns)):
            held.open_turn(number)
            if not await held.hold_turn(say):
                break
        judgement = await held.world.judge(held.calls, frozenset(held.unreadable))
    except NoRoomError as error:
        asked = any(held.texts)
        failed = Judgement(
            correct=False,
            error_class=ErrorClass.CONTEXT_OVERFLOW if asked else ErrorClass.NOT_ASKED,
            detail=f"turn {len(held.texts) - 1}, step {len(held.texts[-1])}: {error}",
        )
    except WorldError as error:
        failed = Judgement(correct=False, error_class=ErrorClass.BACKEND_LIMIT, detail=str(error))
    return Conversation(texts=held.texts, judgement=failed or judgement, note=held.note())


class _Held:
    """A dialogue under way."""

    def __init__(
        self,
        script: Script,
        tools: list[dict[str, Any]],
        world: World,
        read: Callable[[str], ParseResult],
        manner: Manner,
    ) -> None:
        self._script, self._tools, self._read, self._manner = script, tools, read, manner
        self.world = world
        self._messages: list[Message] = [] if manner.native else list(script.system())
        self.texts: list[list[str]] = []
        self.calls: list[list[tuple[ToolCall, ...]]] = []
        self.unreadable: set[int] = set()
        self._notes: list[str] = []

    def open_turn(self, number: int) -> None:
        self.texts.append([])
        self.calls.append([])
        added = self._script.added.get(number)
        if added:
            shown = "" if self._manner.native else f"{list(added)}\n"
            self._tools += added if self._manner.native else ()
            self._messages.append(Message(role="user", content=f"{shown}{self._script.again}"))
        self._messages += self._script.turns[number]

    async def hold_turn(self, say: Say) -> bool:
        """False where the turn was stopped."""
        steps, made = self.texts[-1], self.calls[-1]
        while True:
            said = await say(self._messages, self._tools)
            steps.append(said.text)
            self._notes += [said.note] if said.note else []
            self._messages.append(Message(role="assistant", content=self._manner.clean(said.text)))
            found = self._read(said.text)
            if not found.calls:
                if found.error is not None:
                    self.unreadable.add(len(self.texts) - 1)
                return True
            made.append(found.calls)
            results = [self._manner.clean(text) for text in await self.world.run(self.calls)]
            self._messages += result_messages(found.calls, results, self._manner.results)
            if len(made) == MAX_STEPS:
                return False

    def note(self) -> str:
        return f"{self._notes[0]} ({len(self._notes)} answers)" if self._notes else ""


def result_messages(calls: Sequence[ToolCall], results: Sequence[str], shown: ResultsAs) -> list[Message]:
    """What calls returned, as the turns that follow them."""
    if shown == "tool":
        return [Message(role="tool", content=result) for result in results]
    listed = [
        {"role": "tool", "name": _written(call), "content": result} for call, result in zip(calls, results, strict=True)
    ]
    return [Message(role="user", content=repr(listed))]


def _written(call: ToolCall) -> str:
    try:
        return serialise([call], "pythonic")[1:-1]
    except ValueError:  # a number that no text holds
        return call.name
