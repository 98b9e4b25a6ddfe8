"""`[Name(key=value, …), …]`: calls as ToolACE, BFCL and API-Bank write them.

Names are whatever stands before their parenthesis: with spaces, dots, commas, apostrophes and parentheses of their own
("Vehicle Identification Number (VIN) Lookup"). A parenthesis opens arguments when a readable argument list closes
before a comma or the end of the list.
"""

from __future__ import annotations

import re
from typing import Any, Final

from itrain_pipeline.records import ToolCall
from itrain_pipeline.toolcalls.literals import LiteralError, join_surrogates, read_escape, read_value, skip_space

_NAME: Final = re.compile(r"[^()\[\]{}=\"\n]*")
_PARAMETER: Final = re.compile(r"\s*+([^\s=,(){}\"'][^=,(){}\"'\n]*+)\s*+=(?!=)")
_IDENTIFIER_CALL: Final = re.compile(r"[A-Za-z_][\w.]*\(")
_ATTEMPT: Final = re.compile(r"\[\s*+[^()\[\]{}=\"\n]++\((?:\s*+\)\s*+[,\]]|[^()\"'\n]*?=)")
_CLOSED: Final = re.compile(r"\s*\)\s*(?:[,;\]]|$)")
_NEXT_PARAMETER: Final = re.compile(r"\s*,\s*[^\s=,(){}\"'][^=,(){}\"'\n]*?=")


def read_call_list(text: str, at: int) -> tuple[list[ToolCall], int]:
    """The calls of the list that opens at `at` and the position behind its `]`; raises `LiteralError`."""
    return _read_calls(text, at + 1, closing="]")


def read_bare_calls(text: str) -> list[ToolCall]:
    """Calls without brackets when they are the whole text and their names are identifiers, else nothing.

    Raises `LiteralError` for a text that is one such call but for its arguments.
    """
    if not _IDENTIFIER_CALL.match(text):
        return []
    try:
        calls, _ = _read_calls(text, 0, closing="")
    except LiteralError:
        if text.endswith(")") and "\n" not in text:
            raise
        return []
    return calls if all(_IDENTIFIER_CALL.match(f"{call.name}(") for call in calls) else []


def looks_like_calls(text: str, at: int) -> bool:
    """Whether the bracket at `at` opens what was meant as calls; prose such as `[1]` or `[see](url)` does not."""
    return _ATTEMPT.match(text, at) is not None or (
        at == 0 and re.match(r"\[\s*+[^()\[\]{}\"\n]++\(", text) is not None
    )


def _read_calls(text: str, at: int, closing: str) -> tuple[list[ToolCall], int]:
    calls: list[ToolCall] = []
    at = skip_space(text, at)
    while not _ends(text, at, closing):
        call, at = _read_call(text, at)
        calls.append(call)
        at = skip_space(text, at)
        if text[at : at + 1] in (",", ";"):
            at = skip_space(text, at + 1)
        elif not _ends(text, at, closing):
            seen = text[at : at + 20]
            raise LiteralError(f"expected ',' or ']' after a call but found {seen!r}" if seen else "']' is missing", at)
    return calls, at + len(closing)


def _ends(text: str, at: int, closing: str) -> bool:
    return text.startswith(closing, at) if closing else at >= len(text)


def _read_call(text: str, at: int) -> tuple[ToolCall, int]:
    """One call. The reason for the first parenthesis is the one told: later ones are rarely part of a name."""
    first: LiteralError | None = None
    opening = at
    while True:
        opening = _next_opening(text, opening)
        name = text[at:opening].strip()
        if opening < 0 or not name:
            raise first or LiteralError(f"{text[at : at + 20]!r} is no call: no name before '('", at)
        try:
            arguments, end = _read_arguments(text, opening + 1)
        except LiteralError as error:
            first = first or LiteralError(f"{name}: {error}", error.at)
        else:
            if _CLOSED.match(text, end - 1):
                return ToolCall(name=name, arguments=arguments), end
            first = first or LiteralError(f"expected ',' or ']' after {name}(…)", end)
        opening += 1


def _next_opening(text: str, at: int) -> int:
    """The next `(` that a name may reach: over word characters, commas and whole parentheses, or -1."""
    if text[at - 1 : at] == "(":
        inner = text.find(")", at)
        if inner < 0 or not _NAME.fullmatch(text, at, inner):
            return -1
        at = inner + 1
    found = _NAME.match(text, at)
    end = found.end() if found else at
    return end if text.startswith("(", end) else -1


def _read_arguments(text: str, at: int) -> tuple[dict[str, Any], int]:
    """`key=value, …)`: the arguments and the position behind `)`."""
    arguments: dict[str, Any] = {}
    at = skip_space(text, at)
    while not text.startswith(")", at):
        found = _PARAMETER.match(text, at)
        if not found:
            seen = text[at : at + 20]
            raise LiteralError(
                f"positional argument {seen!r}, expected parameter=value" if seen else "')' is missing", at
            )
        name = found.group(1).rstrip()
        if name in arguments:
            raise LiteralError(f"parameter {name!r} is given twice", at)
        arguments[name], at = _read_argument(text, found.end())
        at = skip_space(text, at)
        if text.startswith(",", at):
            at = skip_space(text, at + 1)
    return arguments, at + 1


def _read_argument(text: str, at: int) -> tuple[Any, int]:
    """A literal that ends at `,` or `)`; failing that, a string whose inner quotes nobody escaped (API-Bank)."""
    at = skip_space(text, at)
    try:
        value, end = read_value(text, at)
        after = skip_space(text, end)
        if text[after : after + 1] in (",", ")"):
            return value, after
        raise LiteralError(f"expected ',' or ')' but found {text[after : after + 20]!r}", after)
    except LiteralError:
        if text[at : at + 1] not in ("'", '"'):
            raise
        loose = _read_loose_string(text, at)
        if loose is None:
            raise
        return loose


def _read_loose_string(text: str, at: int) -> tuple[str, int] | None:
    """A string that ends at the first quote before `, parameter=` or the end of the call."""
    quote, start = text[at], at
    parts: list[str] = []
    at += 1
    while at < len(text):
        if text[at] == quote and (_NEXT_PARAMETER.match(text, at + 1) or _CLOSED.match(text, at + 1)):
            return join_surrogates("".join(parts), start), at + 1
        if text[at] == "\\":
            part, at = read_escape(text, at)
        else:
            part, at = text[at], at + 1
        parts.append(part)
    return None
