"""Answers that are calls and nothing else.

`parse` finds the calls among whatever a model writes around them, since an evaluation asks what was meant. Who teaches
an answer asks for more: nothing before, between, inside or behind the calls that is none of theirs. Values may be
spelled in every way that `parse` accepts.
"""

from __future__ import annotations

from typing import Any, Final

from itrain_pipeline.records import ToolCall
from itrain_pipeline.toolcalls.literals import LiteralError, read_value, skip_space
from itrain_pipeline.toolcalls.pythonic import read_call_list

_BLOCK: Final = "<tool_call>"
_BLOCK_END: Final = "</tool_call>"
_JSON_SHAPES: Final = ({"name", "arguments"}, {"name", "parameters"})


def read_bare_answer(text: str, call_format: str) -> tuple[ToolCall, ...]:
    """The calls of an answer in `pythonic | hermes | llama` that consists of them; empty for every other text."""
    text = text.strip()
    try:
        if call_format == "pythonic":
            return _read_list(text)
        return _read_blocks(text) if call_format == "hermes" else _read_objects(text)
    except LiteralError:
        return ()


def _read_list(text: str) -> tuple[ToolCall, ...]:
    calls, end = read_call_list(text, _behind(text, 0, "[") - 1)
    return tuple(calls) if end == len(text) else ()


def _read_blocks(text: str) -> tuple[ToolCall, ...]:
    calls: list[ToolCall] = []
    at = 0
    while at < len(text):
        call, at = _read_object(text, _behind(text, at, _BLOCK))
        calls.append(call)
        at = skip_space(text, _behind(text, skip_space(text, at), _BLOCK_END))
    return tuple(calls)


def _read_objects(text: str) -> tuple[ToolCall, ...]:
    """One JSON object a call, with `;` or `,` or blanks between."""
    calls: list[ToolCall] = []
    at = 0
    while at < len(text) or not calls:
        call, at = _read_object(text, at)
        calls.append(call)
        at = skip_space(text, at)
        if text[at : at + 1] in (";", ",") and at + 1 < len(text):
            at = skip_space(text, at + 1)
    return tuple(calls)


def _read_object(text: str, at: int) -> tuple[ToolCall, int]:
    value, end = read_value(text, at)
    if not isinstance(value, dict) or set(value) not in _JSON_SHAPES:
        raise LiteralError("a call is an object with a name and its arguments, and nothing else", at)
    name: Any = value.pop("name")
    (arguments,) = value.values()
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise LiteralError("a call's name is a text and its arguments are an object", at)
    return ToolCall(name=name, arguments=arguments), end


def _behind(text: str, at: int, mark: str) -> int:
    """The position behind the mark that must stand here."""
    if not text.startswith(mark, at):
        raise LiteralError(f"expected {mark} but found {text[at : at + 20]!r}", at)
    return at + len(mark)
