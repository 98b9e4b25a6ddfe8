"""Literals in model text: numbers, strings, lists, dictionaries, true/false/null. Nothing is ever evaluated.

One reader for Python and JSON spelling, since models mix them. The result holds JSON values only.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final

MAX_DEPTH: Final = 64
MAX_DIGITS: Final = 400
"""Characters of a number; every float has fewer, and Python's own limit for integers lies above."""

_NUMBER: Final = re.compile(r"[+-]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_WORD: Final = re.compile(r"[^\W\d]\w*")
_WORDS: Final = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}
_SPACE: Final = re.compile(r"\s*")
_ESCAPES: Final = dict(zip("ntrbfav0\\'\"/", "\n\t\r\b\f\a\v\0\\'\"/", strict=True)) | {"\n": ""}
_CODE_POINT_DIGITS: Final = {"x": 2, "u": 4, "U": 8}


class LiteralError(ValueError):
    """The text is no literal; `str(error)` says what stands there, in a few words, and `at` where."""

    def __init__(self, message: str, at: int) -> None:
        super().__init__(message)
        self.at = at


def skip_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def read_value(text: str, at: int, depth: int = 0) -> tuple[Any, int]:
    """The JSON value that starts at `at` (spaces allowed) and the position behind it; raises `LiteralError`.

    Tuples become lists, keys that are no strings take their JSON spelling.
    """
    at = skip_space(text, at)
    if depth > MAX_DEPTH:
        raise LiteralError(f"values are nested deeper than {MAX_DEPTH}", at)
    start = text[at : at + 1]
    if start in ("'", '"'):
        return read_string(text, at)
    if start == "[":
        return _read_items(text, at, "]", depth)
    if start == "(":
        return _read_items(text, at, ")", depth)
    if start == "{":
        return _read_dict(text, at, depth)
    number = _NUMBER.match(text, at)
    if number:
        return _number(number.group(), at), number.end()
    word = _WORD.match(text, at)
    if word and word.group() in _WORDS:
        return _WORDS[word.group()], word.end()
    raise LiteralError(f"{text[at : at + 20]!r} is not a literal" if start else "the text ends before a value", at)


def _number(digits: str, at: int) -> int | float:
    if len(digits) > MAX_DIGITS:
        raise LiteralError(f"a number has {len(digits)} characters, allowed are {MAX_DIGITS}", at)
    if re.fullmatch(r"[+-]?\d+", digits):
        return int(digits)
    value = float(digits)
    if math.isinf(value):
        raise LiteralError(f"the number {digits[:20]} is out of range", at)
    return value


def read_string(text: str, at: int) -> tuple[str, int]:
    """A quoted string, single, double or triple quotes, Python's and JSON's escapes; raw line breaks are kept."""
    quote = text[at] * 3 if text[at : at + 3] in ("'''", '"""') else text[at]
    start = at
    parts: list[str] = []
    at += len(quote)
    while at < len(text):
        if text.startswith(quote, at):
            return join_surrogates("".join(parts), start), at + len(quote)
        if text[at] == "\\":
            part, at = read_escape(text, at)
        else:
            part, at = text[at], at + 1
        parts.append(part)
    raise LiteralError("a string is not closed", start)


def read_escape(text: str, at: int) -> tuple[str, int]:
    """What the escape at `at` stands for; an unknown one stays as it is, as in Python."""
    kind = text[at + 1 : at + 2]
    digits = _CODE_POINT_DIGITS.get(kind)
    if digits:
        code = text[at + 2 : at + 2 + digits]
        if not re.fullmatch(rf"[0-9a-fA-F]{{{digits}}}", code) or int(code, 16) > 0x10FFFF:
            raise LiteralError(f"the escape {text[at : at + 2 + digits]!r} is no character", at)
        return chr(int(code, 16)), at + 2 + digits
    if kind in _ESCAPES:
        return _ESCAPES[kind], at + 2
    return text[at : at + 2], at + 2


def join_surrogates(text: str, at: int) -> str:
    """JSON's escaped UTF-16 pairs as the characters they mean; raises `LiteralError` for half a pair."""
    try:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        raise LiteralError("a string holds half a UTF-16 surrogate pair", at) from None


def _read_items(text: str, at: int, end: str, depth: int) -> tuple[Any, int]:
    items: list[Any] = []
    commas = 0
    at = skip_space(text, at + 1)
    while not text.startswith(end, at):
        value, at = read_value(text, at, depth + 1)
        items.append(value)
        at, comma = _separator(text, at, end)
        commas += comma
    if end == ")" and len(items) == 1 and not commas:
        return items[0], at + 1  # parentheses around one value, no tuple
    return items, at + 1


def _read_dict(text: str, at: int, depth: int) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    at = skip_space(text, at + 1)
    while not text.startswith("}", at):
        key, at = read_value(text, at, depth + 1)
        if isinstance(key, list | dict):
            raise LiteralError("a key is a list or a dictionary", at)
        at = skip_space(text, at)
        if not text.startswith(":", at):
            raise LiteralError("a dictionary key has no ':'", at)
        value, at = read_value(text, at + 1, depth + 1)
        found[key if isinstance(key, str) else json.dumps(key)] = value
        at, _ = _separator(text, at, "}")
    return found, at + 1


def _separator(text: str, at: int, end: str) -> tuple[int, int]:
    """The position of the next item or of `end`, and the commas skipped (0 or 1)."""
    at = skip_space(text, at)
    if text.startswith(",", at):
        return skip_space(text, at + 1), 1
    if text.startswith(end, at):
        return at, 0
    seen = text[at : at + 20]
    raise LiteralError(f"expected ',' or '{end}' but found {seen!r}" if seen else f"'{end}' is missing", at)
