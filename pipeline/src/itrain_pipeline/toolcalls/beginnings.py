"""Beginnings of answers: can what was written so far still become exactly these calls?

`parse` reads whole answers; a step of the search is rarely one. Here the calls lead: the text is read beside them, in
any order of calls and arguments and in every spelling that `parse` accepts for a value, and whoever reaches the end of
the text without a difference has not been contradicted. Where prose stands before the calls nothing is decided.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from itrain_pipeline.records import ToolCall
from itrain_pipeline.toolcalls.compare import value_key
from itrain_pipeline.toolcalls.literals import LiteralError, read_escape, read_value, skip_space

_NUMBER: Final = re.compile(r"[-+.\deE]+")
_BEFORE_JSON_CALL: Final = re.compile(r"""(?=\{\s*["'](?:name|arguments|parameters)["']\s*:)""")
OPENERS: Final[Mapping[str, str]] = {"pythonic": "[", "hermes": "<tool_call>", "llama": "{"}
_WORDS: Final[Mapping[Any, tuple[str, ...]]] = {
    True: ("True", "true"),
    False: ("False", "false"),
    None: ("None", "null"),
}
Matcher = Callable[[str, int, ToolCall], int]
NameMatcher = Callable[[str, int, str], int]


class _EndedError(Exception):
    """The text ended before it differed."""


class _DiffersError(Exception):
    """No right answer goes on like this."""


def may_become(text: str, calls: Sequence[ToolCall], call_format: str) -> bool:
    """Whether an answer that begins with `text` can make exactly these calls; True where that cannot be told."""
    opener = OPENERS[call_format]
    start = skip_space(text, 0)
    if not text.startswith(opener, start):
        return opener.startswith(text[start:]) or not _attempts(text[start:], call_format)
    try:
        if call_format == "pythonic":
            return _any_order(text, start + 1, list(calls), _pythonic_call, ",;", "]")
        if call_format == "hermes":
            return _any_order(text, start, list(calls), _hermes_block, "", "")
        return _any_order(text, start, list(calls), _json_object, "", "")
    except _EndedError:
        return True


def opens_call(text: str, call_format: str) -> bool:
    """Whether a beginning has gone so far towards a call that it is no plain text any more."""
    start = text.lstrip()
    if call_format == "pythonic":
        return re.match(r"\[\s*+[^()\[\]{}\"\n]++\(", start) is not None
    if call_format == "hermes":
        return start.startswith(OPENERS["hermes"])
    return re.match(r"""\{\s*["'](?:name|arguments|parameters)["']\s*:""", start) is not None


def _attempts(text: str, call_format: str) -> bool:
    """Calls in another format than the run's: an error to `parse`, which takes the two of JSON for each other."""
    others = ("hermes", "llama") if call_format == "pythonic" else ("pythonic",)
    return any(opens_call(text, other) for other in others)


def _any_order(
    text: str, at: int, left: list[ToolCall], match: Matcher, separators: str, closing: str, *, first: bool = True
) -> bool:
    """Match the calls that are left, whichever comes next; raises _EndedError where the text ends undecided."""
    at = skip_space(text, at)
    if not first and text[at : at + 1] and text[at] in separators:
        at = skip_space(text, at + 1)
    if at >= len(text):
        raise _EndedError
    if not left:
        if closing and not text.startswith(closing, at):
            return False
        return not any(opener in text[at + len(closing) :] for opener in OPENERS.values())  # more calls than wanted
    for number, call in enumerate(left):
        try:
            end = match(text, at, call)
        except _DiffersError:
            continue
        if _any_order(text, end, left[:number] + left[number + 1 :], match, separators, closing, first=False):
            return True
    return False


def _pythonic_call(text: str, at: int, call: ToolCall) -> int:
    at = _literal(text, at, call.name)
    at = _literal(text, skip_space(text, at), "(")
    left = dict(call.arguments)
    while True:
        at = skip_space(text, at)
        if at >= len(text):
            raise _EndedError
        if text[at] == ")":
            if left:
                raise _DiffersError
            return at + 1
        name, at = _next_key(text, at, left, _literal, "=")
        at = _value(text, at, left.pop(name))
        at = skip_space(text, at)
        if text.startswith(",", at):
            at += 1


def _hermes_block(text: str, at: int, call: ToolCall) -> int:
    at = _behind(re.compile("<tool_call>"), text, at)
    at = _json_call(text, skip_space(text, at), call)
    return _literal(text, skip_space(text, at), "</tool_call>")


def _json_object(text: str, at: int, call: ToolCall) -> int:
    return _json_call(text, _behind(_BEFORE_JSON_CALL, text, at), call)


def _behind(mark: re.Pattern[str], text: str, at: int) -> int:
    """The position behind the next mark: what stands between two JSON calls means nothing to `parse`."""
    found = mark.search(text, at)
    if not found:
        raise _EndedError
    return found.end()


def _json_call(text: str, at: int, call: ToolCall) -> int:
    for key in ("arguments", "parameters"):
        try:
            return _value(text, at, {"name": call.name, key: call.arguments})
        except _DiffersError:
            continue
    raise _DiffersError


def _value(text: str, at: int, wanted: Any) -> int:
    """The position behind a literal equal to `wanted`."""
    at = skip_space(text, at)
    if at >= len(text):
        raise _EndedError
    if isinstance(wanted, bool) or wanted is None:
        return _one_of(text, at, _WORDS[wanted])
    if isinstance(wanted, int | float):
        return _number(text, at, wanted)
    if isinstance(wanted, dict):
        return _dict(text, at, wanted)
    if isinstance(wanted, list | tuple):
        return _list(text, at, wanted)
    return _string(text, at, str(wanted))


def _number(text: str, at: int, wanted: float) -> int:
    found = _NUMBER.match(text, at)
    if not found:
        raise _DiffersError
    digits, end = found.group(), found.end()
    spellings = {str(wanted), f"+{wanted}"}
    if abs(wanted) < 1e308:
        spellings.add(str(float(wanted)))
    if end == len(text) and any(spelling.startswith(digits) for spelling in spellings):
        raise _EndedError
    try:
        value, stop = read_value(digits, 0)
    except LiteralError:
        raise _DiffersError from None
    if stop != len(digits) or value_key(value) != value_key(wanted):
        raise _DiffersError
    return end


def _string(text: str, at: int, wanted: str) -> int:
    quote = text[at]
    if quote not in "'\"":
        raise _DiffersError
    at, known = at + 1, 0
    while at < len(text):
        if text[at] == quote and known == len(wanted):
            return at + 1
        try:
            part, end = read_escape(text, at) if text[at] == "\\" else (text[at], at + 1)
        except LiteralError:
            if len(text) - at < 10:  # the longest escape is \UXXXXXXXX: this one may be unfinished
                raise _EndedError from None
            raise _DiffersError from None
        if not wanted.startswith(part, known):
            if part == "\\" and end >= len(text):
                raise _EndedError
            raise _DiffersError
        at, known = end, known + len(part)
    raise _EndedError


def _list(text: str, at: int, wanted: Sequence[Any]) -> int:
    if text[at] not in "[(":
        raise _DiffersError
    closing = "]" if text[at] == "[" else ")"
    at += 1
    for number, item in enumerate(wanted):
        if number:
            at = _literal(text, skip_space(text, at), ",")
        at = _value(text, at, item)
    at = skip_space(text, at)
    if text.startswith(",", at):
        at = skip_space(text, at + 1)
    return _literal(text, at, closing)


def _dict(text: str, at: int, wanted: Mapping[str, Any]) -> int:
    at = _literal(text, at, "{")
    left = {str(key): value for key, value in wanted.items()}
    while True:
        at = skip_space(text, at)
        if text.startswith(",", at):
            at = skip_space(text, at + 1)
        if at >= len(text):
            raise _EndedError
        if not left:
            return _literal(text, at, "}")
        name, at = _next_key(text, at, left, _string, ":")
        at = _value(text, at, left.pop(name))


def _next_key(text: str, at: int, left: Mapping[str, Any], match_name: NameMatcher, sign: str) -> tuple[str, int]:
    """Which of the names that are left stands here, and the position behind the sign after it."""
    ended = False
    for name in left:
        try:
            end = match_name(text, at, name)
            return name, _literal(text, skip_space(text, end), sign)
        except _EndedError:
            ended = True
        except _DiffersError:
            continue
    raise _EndedError if ended else _DiffersError


def _one_of(text: str, at: int, words: Sequence[str]) -> int:
    for word in words:
        if text.startswith(word, at):
            return at + len(word)
    raise _EndedError if any(word.startswith(text[at:]) for word in words) else _DiffersError


def _literal(text: str, at: int, expected: str) -> int:
    if text.startswith(expected, at):
        return at + len(expected)
    raise _EndedError if expected.startswith(text[at:]) else _DiffersError
