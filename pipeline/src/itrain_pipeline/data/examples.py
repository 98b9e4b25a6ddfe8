"""Dialogues to examples: one for each assistant turn with a target, its history as context. Pure."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from itrain_contract.stagespec import Curriculum
from itrain_pipeline.data.curriculum import bucket_of, tools_text
from itrain_pipeline.data.dialogue import Dialogue, RowError, Turn
from itrain_pipeline.data.formats import read_dialogue
from itrain_pipeline.errors import DataError
from itrain_pipeline.records import Example, Message, RejectedRow
from itrain_pipeline.toolcalls.parse import parse
from itrain_pipeline.toolcalls.serialise import serialise

_PLAIN_ID: Final = re.compile(r"[A-Za-z0-9._]+(?:-[A-Za-z0-9._]+)*", re.ASCII)
_ID_LENGTH: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """How rows of one source become examples."""

    source: str
    """Where the rows come from, for people (the URI)."""
    prefix: str
    """Short and unique among the sources of a run; every id begins with it."""
    data_format: str
    call_format: str
    turns: Literal["all", "last"]
    curriculum: Curriculum


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """`rows` tells the row number of each dialogue (`dialogue_of` an example's id)."""

    examples: tuple[Example, ...]
    rejected: tuple[RejectedRow, ...]
    rows: dict[str, int]


def convert(rows: Iterable[object], how: Conversion) -> Converted:
    """Every row in turn: its examples, or why there are none, or fewer.

    Ids are `<prefix>-<row>-<turn>`; a row's own id stands for its number where it is short and plain. The first
    assistant turn that cannot be used ends its dialogue: later ones would have it as their history.
    """
    examples: list[Example] = []
    rejected: list[RejectedRow] = []
    seen: dict[str, int] = {}
    for number, row in enumerate(rows):
        try:
            dialogue = read_dialogue(row, how.data_format)
            row_id = f"{how.prefix}-{_row_id(dialogue, number)}"
            if row_id in seen:
                raise RowError("duplicate_id", f"id {dialogue.id!r} was given to an earlier row")
            seen[row_id] = number
            made, error = _examples(dialogue, row_id, how)
        except RowError as found:
            made, error = [], found
        examples += made
        if error is not None:
            rejected.append(RejectedRow(source=how.source, row=number, reason=error.reason, detail=error.detail))
    return Converted(examples=tuple(examples), rejected=tuple(rejected), rows=seen)


def dialogue_of(example_id: str) -> str:
    """The part of an id that all turns of one dialogue share."""
    return example_id.rpartition("-")[0]


def _row_id(dialogue: Dialogue, number: int) -> str:
    own = dialogue.id
    return own if own and len(own) <= _ID_LENGTH and _PLAIN_ID.fullmatch(own) else f"{number:06d}"


def _examples(dialogue: Dialogue, row_id: str, how: Conversion) -> tuple[list[Example], RowError | None]:
    known = {str(tool["name"]) for tool in dialogue.tools}
    history: list[Message] = []
    made: list[Example] = []
    error: RowError | None = None
    for at, turn in enumerate(dialogue.turns):
        answer = turn.content
        if turn.role == "assistant":
            try:
                answer = _answer(turn, known, history, how.call_format)
            except RowError as found:
                error = RowError(found.reason, f"turn {at}: {found.detail}")
                break
            made.append(
                Example(
                    id=f"{row_id}-{at}",
                    messages=tuple(history),
                    tools=dialogue.tools,
                    answer=answer,
                    calls=turn.calls,
                    bucket=bucket_of(dialogue.tools, len(turn.calls), how.curriculum),
                    source=how.source,
                )
            )
        history.append(Message(role=turn.role, content=answer))
    if not made and error is None:
        error = RowError("no_target", "the dialogue has no assistant turn")
    if how.turns == "last":
        made = made[-1:] if error is None else []
    return made, error


def _answer(turn: Turn, known: set[str], history: Sequence[Message], call_format: str) -> str:
    """The target text; raises `RowError` where there is none to learn."""
    if turn.error is not None:
        raise turn.error
    if not any(message.role == "user" for message in history):
        raise RowError("no_question", "no user turn stands before the answer")
    if not turn.calls:
        return turn.content.strip()
    for call in turn.calls:
        if call.name not in known:
            raise RowError("unknown_tool", f"calls {call.name!r}, the row's tools are {', '.join(sorted(known))}"[:300])
    text = serialise(turn.calls, call_format)
    if parse(text, call_format).calls != turn.calls:
        raise RowError("not_expressible", f"{text[:100]} does not read back as the same calls in {call_format}")
    return text


def drop_duplicates(examples: Iterable[Example]) -> tuple[list[Example], int]:
    """Examples of equal context, tools and answer but once, the first one; and how many were dropped."""
    kept: dict[bytes, Example] = {}
    total = 0
    for example in examples:
        total += 1
        kept.setdefault(_content(example), example)
    return list(kept.values()), total - len(kept)


def _content(example: Example) -> bytes:
    said = [(message.role, message.content) for message in example.messages]
    text = json.dumps([said, tools_text(example.tools), example.answer], ensure_ascii=False)
    return hashlib.sha256(text.encode()).digest()


class RenderIds(Protocol):
    """The part of `data.rendering.Renderer` that examples need."""

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> tuple[int, ...]: ...
    def answer_ids(self, text: str) -> tuple[int, ...]: ...


def render(
    examples: Iterable[Example], renderer: RenderIds, max_length: int, rows: Mapping[str, int]
) -> tuple[list[Example], list[RejectedRow]]:
    """Examples with their token ids; those that cannot be rendered or exceed `max_length` tokens are rejected.

    `rows` are the row numbers of `Converted`.
    """
    kept: list[Example] = []
    rejected: list[RejectedRow] = []
    for example in examples:
        reason, prompt, answer = "", tuple[int, ...](), tuple[int, ...]()
        try:
            prompt, answer = renderer.prompt_ids(example.messages, example.tools), renderer.answer_ids(example.answer)
            reason = "too_long" if len(prompt) + len(answer) > max_length else ""
            detail = f"{len(prompt)} + {len(answer)} tokens of prompt and answer, allowed are {max_length}"
        except DataError as error:
            reason, detail = "not_renderable", str(error)
        if reason:
            row = rows[dialogue_of(example.id)]
            rejected.append(
                RejectedRow(source=example.source, row=row, reason=reason, detail=f"{example.id}: {detail}")
            )
        else:
            kept.append(dataclasses.replace(example, prompt_ids=prompt, answer_ids=answer))
    return kept, rejected
