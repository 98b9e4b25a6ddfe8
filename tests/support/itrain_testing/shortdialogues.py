"""Dialogues that the shipped model can hold: two questions of the tool world over the tools of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from itrain_pipeline.data.dialogue import Dialogue
from itrain_pipeline.data.formats import read_dialogue
from itrain_pipeline.data.sources import read_rows
from itrain_pipeline.evals.benchmark import Answer, Item, Judgement, Opening
from itrain_pipeline.evals.errors import ErrorClass
from itrain_pipeline.evals.metrics import Rate, Score
from itrain_pipeline.evals.scripts import Script, Turns
from itrain_pipeline.records import Message

ROWS = "builtin://toolworld?split=dev&rows=40&seed=2"


@dataclass(frozen=True)
class Counting:
    """Each call returns its number in the dialogue."""

    async def run(self, turns: Turns) -> list[str]:
        *before, last = [step for turn in turns for step in turn]
        first = sum(map(len, before)) + 1
        return [f'{{"ticket": {first + at}}}' for at in range(len(last))]

    async def judge(self, turns: Turns, unreadable: frozenset[int]) -> Judgement:
        right = len(turns) == 2 and all(turns)
        return Judgement(correct=right, error_class=None if right else ErrorClass.MISSED_CALL)


def question(row: Dialogue) -> str:
    return next(turn.content for turn in row.turns if turn.role == "user")


class ShortDialogues:
    name = "short"

    def __init__(self, opening: Opening) -> None:
        self._opening = opening

    def items(self) -> Sequence[Item]:
        rows = list(read_rows(ROWS, "toolace", store=None, scratch=None))  # type: ignore[arg-type]
        found = [read_dialogue(row, "toolace") for row in rows]
        asked = [row for row in found if all(str(tool["name"]).isidentifier() for tool in row.tools)]
        pairs = zip(asked[::2], asked[1::2], strict=False)
        made = []
        for at, (one, two) in enumerate(pairs):
            turns = tuple((Message(role="user", content=question(row)),) for row in (one, two))
            tools = {tool["name"]: tool for row in (one, two) for tool in row.tools}
            script = Script(turns=turns, world=Counting, instruction="Today is Monday.")
            made.append(
                Item(
                    category="pair",
                    id=str(at),
                    messages=script.opening(),
                    tools=tuple(tools.values()),
                    gold=None,
                    script=script,
                )
            )
        return self._opening.first(made)

    def judge(self, item: Item, answer: Answer) -> Judgement:
        raise AssertionError("a dialogue's world judges it")

    def groups(self, rates: Mapping[str, Rate]) -> Mapping[str, Score | None]:
        return {}

    def info(self) -> Mapping[str, str]:
        return {}
