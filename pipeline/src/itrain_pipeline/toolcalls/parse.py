"""Model text to calls. Literals only: no input is ever evaluated, and none raises.

An answer is one of three: calls, plain text, or an attempt at calls that cannot be read (with the reason). Reasoning
before the answer, code fences, prose around the calls and special marks are tolerated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from itrain_pipeline.records import ToolCall
from itrain_pipeline.toolcalls.literals import LiteralError, read_value, skip_space
from itrain_pipeline.toolcalls.pythonic import looks_like_calls, read_bare_calls, read_call_list

_THOUGHT: Final = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
_FENCE: Final = re.compile(r"^[ \t]*```[\w+-]*[ \t]*$", re.MULTILINE)
_INLINE_FENCE: Final = re.compile(r"^```(?:\w+[ \t\n])?(.*)```$", re.DOTALL)
_MARKS: Final = re.compile(r"<\|(?:python_tag|eom_id|eot_id|im_end|end)\|>|</s>")
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")
_JSON_CALL: Final = re.compile(r"""\{\s*["'](?:name|arguments|parameters)["']\s*:""")
MAX_CHARACTERS: Final = 1 << 18
"""Of an answer: more than any model writes, and what the slowest text is still read of in seconds."""
_BLOCK: Final = "<tool_call>"
_BLOCK_END: Final = "</tool_call>"


@dataclass(frozen=True, slots=True, kw_only=True)
class ParseResult:
    """`calls`, or a reason in `error`, or neither: then the answer is plain text (`is_text`)."""

    calls: tuple[ToolCall, ...] = ()
    error: str | None = None

    @property
    def is_text(self) -> bool:
        return not self.calls and self.error is None


def parse(text: str, call_format: str) -> ParseResult:
    """Read an answer in one call format (`pythonic | hermes | llama`); `ValueError` for a format that does not exist.

    An empty list of calls is plain text. Calls in another format than the run's are an error, not text.
    """
    if call_format not in _READERS:
        raise ValueError(f"call format {call_format!r}, allowed are {', '.join(_READERS)}")
    if len(text) > MAX_CHARACTERS:
        return ParseResult(error=f"the answer has {len(text)} characters, allowed are {MAX_CHARACTERS}")
    if _SURROGATE.search(text):
        return ParseResult(error="the text holds half a UTF-16 surrogate pair")
    if text.lstrip().startswith("<think>") and "</think>" not in text:
        return ParseResult(error="the reasoning is not closed with </think>")
    try:
        return ParseResult(calls=tuple(_READERS[call_format](strip_wrapping(text))))
    except LiteralError as error:
        return ParseResult(error=str(error))


def strip_wrapping(text: str) -> str:
    """The answer without reasoning before it, code fences around it and end marks."""
    text = _MARKS.sub("", _THOUGHT.sub("", text))
    text = _FENCE.sub("", text).strip()
    inline = _INLINE_FENCE.match(text)
    return inline.group(1).strip() if inline else text


def _read_pythonic(text: str) -> list[ToolCall]:
    bare = read_bare_calls(text)
    if bare:
        return bare
    calls: list[ToolCall] = []
    at = text.find("[")
    while at >= 0:
        try:
            found, end = read_call_list(text, at)
            calls += found
        except LiteralError:
            if looks_like_calls(text, at):
                raise
            end = at + 1
        at = text.find("[", end)
    if not calls and (_BLOCK in text or _JSON_CALL.match(text)):
        raise LiteralError("calls are written as JSON, expected [name(key=value, …)]", 0)
    return calls


def _read_hermes(text: str) -> list[ToolCall]:
    calls: list[ToolCall] = []
    at = text.find(_BLOCK)
    if at < 0:
        return _read_objects(text)
    while at >= 0:
        value, end = read_value(text, at + len(_BLOCK))
        end = skip_space(text, end)
        if end < len(text) and not text.startswith(_BLOCK_END, end):
            raise LiteralError(f"expected {_BLOCK_END} but found {text[end : end + 20]!r}", end)
        calls += _calls_of(value, at)
        at = text.find(_BLOCK, end)
    return calls


def _read_objects(text: str) -> list[ToolCall]:
    """JSON calls that stand free in the text, one after another or in one list, with prose or `;` between."""
    calls: list[ToolCall] = []
    found = _JSON_CALL.search(text)
    if not found and looks_like_calls(text, skip_space(text, 0)):
        raise LiteralError("calls are written as [name(key=value, …)], expected JSON", 0)
    while found:
        value, end = read_value(text, found.start())
        calls += _calls_of(value, found.start())
        found = _JSON_CALL.search(text, end)
    return calls


def _calls_of(value: Any, at: int) -> list[ToolCall]:
    values = value if isinstance(value, list) else [value]
    return [json_call(item, at) for item in values]


def json_call(value: Any, at: int = 0) -> ToolCall:
    """`{"name": …, "arguments" | "parameters": {…}}` as a call; `LiteralError` for another shape.

    Arguments may be absent, null, or an object written as a string (the OpenAI shape).
    """
    if not isinstance(value, Mapping):
        raise LiteralError(f"a call is a {type(value).__name__}, expected an object with name and arguments", at)
    name = value.get("name")
    if not isinstance(name, str) or not name.strip():
        raise LiteralError(f"a call has the name {name!r}, expected a text", at)
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        arguments = read_value(arguments, 0)[0] if arguments.strip() else None
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise LiteralError(f"the arguments of {name!r} are a {type(arguments).__name__}, expected an object", at)
    return ToolCall(name=name.strip(), arguments=arguments)


_READERS: Final[Mapping[str, Callable[[str], list[ToolCall]]]] = {
    "pythonic": _read_pythonic,
    "hermes": _read_hermes,
    "llama": _read_objects,
}
