"""Literals in model output: read, never evaluated.

A recursive-descent reader of the value grammar that tool calls use: strings of either quote, numbers, booleans and nulls in
Python's and JSON's spelling, lists, tuples, dicts. Names without quotes are read as text, as the official BFCL decoder does.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 64
NUMBER = re.compile(r"[-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.:/-])")
WORD = re.compile(r"[^\s,()\[\]{}'\"=:][^,()\[\]{}'\"\n=]*")
WORDS: dict[str, Any] = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0", "a": "\a", "v": "\v", "\n": ""}
HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
ENDS_VALUE = re.compile(r"\s*(?:\)|,\s*[^\s,()\[\]{}'\"=][^,()\[\]{}'\"=\n]*=)")


class LiteralError(ValueError):
    """The text is no literal; the message says where and why."""


@dataclass(slots=True)
class Reader:
    """A cursor over text. `loose` reads a quote as the end of a string only where an argument can end."""

    text: str
    at: int = 0
    loose: bool = False

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def skip_blanks(self) -> None:
        while self.peek() and self.peek().isspace():
            self.at += 1

    def take(self, char: str) -> bool:
        self.skip_blanks()
        if self.peek() != char:
            return False
        self.at += 1
        return True

    def fail(self, expected: str) -> LiteralError:
        found = repr(self.text[self.at : self.at + 12]) if self.peek() else "the end"
        return LiteralError(f"expected {expected} at character {self.at}, found {found}")

    def value(self, depth: int = 0) -> Any:
        """The JSON value at the cursor; tuples become lists."""
        if depth > MAX_DEPTH:
            raise LiteralError(f"values are nested deeper than {MAX_DEPTH}")
        self.skip_blanks()
        char = self.peek()
        if char in ("'", '"') and char:
            return self.string()
        if char == "[":
            return self.items("]", depth)
        if char == "(":
            return self.items(")", depth)
        if char == "{":
            return self.mapping(depth)
        return self.scalar()

    def items(self, end: str, depth: int) -> list[Any]:
        self.at += 1
        found: list[Any] = []
        while not self.take(end):
            found.append(self.value(depth + 1))
            if not self.take(",") and self._next() != end:
                raise self.fail(f"',' or '{end}'")
        return found

    def mapping(self, depth: int) -> dict[str, Any]:
        self.at += 1
        found: dict[str, Any] = {}
        while not self.take("}"):
            key = self.value(depth + 1)
            if not self.take(":"):
                raise self.fail("':'")
            found[key if isinstance(key, str) else json.dumps(key)] = self.value(depth + 1)
            if not self.take(",") and self._next() != "}":
                raise self.fail("',' or '}'")
        return found

    def _next(self) -> str:
        self.skip_blanks()
        return self.peek()

    def scalar(self) -> Any:
        number = NUMBER.match(self.text, self.at)
        if number:
            self.at = number.end()
            return _number(number[0])
        word = WORD.match(self.text, self.at)
        if not word:
            raise self.fail("a value")
        self.at = word.end()
        text = word[0].rstrip()
        return WORDS.get(text, text)

    def string(self) -> str:
        quote = self.peek()
        if self.text.startswith(quote * 3, self.at):
            end = self.text.find(quote * 3, self.at + 3)
            if end >= 0:
                inner, self.at = self.text[self.at + 3 : end], end + 3
                return inner
        self.at += 1
        parts: list[str] = []
        while self.peek():
            char = self.peek()
            if char == quote and self._ends_string():
                self.at += 1
                return "".join(parts)
            parts.append(self._escape() if char == "\\" else char)
            self.at += char != "\\"
        raise self.fail(f"the closing {quote}")

    def _ends_string(self) -> bool:
        return not self.loose or bool(ENDS_VALUE.match(self.text, self.at + 1))

    def _escape(self) -> str:
        """The character that an escape stands for; a backslash that escapes nothing known stays."""
        kind = self.text[self.at + 1 : self.at + 2]
        self.at += 1 + len(kind)
        if kind in HEX_DIGITS:
            digits = self.text[self.at : self.at + HEX_DIGITS[kind]]
            if re.fullmatch(rf"[0-9a-fA-F]{{{HEX_DIGITS[kind]}}}", digits) and int(digits, 16) <= 0x10FFFF:
                self.at += len(digits)
                return chr(int(digits, 16))
        if kind in ("'", '"', "\\", "/"):
            return kind
        return ESCAPES.get(kind, "\\" + kind)


def _number(text: str) -> int | float:
    digits = text.replace("_", "")
    if len(digits) > 400:
        raise LiteralError(f"a number of {len(digits)} digits")
    if re.fullmatch(r"[-+]?\d+", digits):
        return int(digits)
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise LiteralError(f"{text} is no finite number")
    return value
