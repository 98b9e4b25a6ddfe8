"""An answer's token ids, cut into steps: the actions of the search (method document, section 3).

A step ends at its `step_limit`-th boundary. Boundaries are those of the paper's code, found by a cursor that knows the
syntax, so that none lies inside a string:

    calls in brackets    behind every `,`, behind `(` and `=` of a pythonic call and `:` of a JSON one
    text outside them    behind `.`, `!`, `?`, `,` before a blank, and behind a line end

A blank after a boundary begins the next step, as it begins the next word in every tokenizer. Everything works on bytes,
since a byte-level token may hold a part of a character. A boundary inside a token moves to the token's end, two in one
token are one; the steps joined give the ids back exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

BLANKS = b" \t\r\n"
OPENERS = b"([{"
CLOSERS = b")]}"
BEFORE_STRING = b"=,([{:"
"""A quote opens a string behind these (blanks aside); elsewhere it belongs to a name: `Get Agent's Listings(`."""


@dataclass(slots=True)
class Cursor:
    """Reads bytes one by one and says behind which of them a boundary lies."""

    outer: int = 0
    """The bracket that is open outermost, `[` or `{`; 0 in text."""
    depth: int = 0
    quote: int = 0
    escaped: bool = False
    last: int = 0
    """The last byte that was no blank."""

    def boundary(self, byte: int, following: int | None) -> bool:
        """Whether a boundary lies behind this byte; `following` is the next one, None at the end."""
        if self.quote:
            self._inside_string(byte)
            return False
        last, self.last = self.last, self.last if byte in BLANKS else byte
        if not self.depth:
            if byte in b"[{":
                self.outer, self.depth = byte, 1
            return byte == ord("\n") or (byte in b".!?," and following is not None and following in BLANKS)
        if byte in b"'\"" and last in BEFORE_STRING:
            self.quote = byte
            return False
        self.depth += (byte in OPENERS) - (byte in CLOSERS)
        return byte == ord(",") or byte in (b"(=" if self.outer == ord("[") else b":")

    def _inside_string(self, byte: int) -> None:
        if self.escaped:
            self.escaped = False
        elif byte == ord("\\"):
            self.escaped = True
        elif byte == self.quote:
            self.quote, self.last = 0, byte


def boundaries(text: bytes) -> Iterator[int]:
    """Lengths of the beginnings of an answer that end at a boundary, ascending."""
    cursor = Cursor()
    for at, byte in enumerate(text, 1):
        if cursor.boundary(byte, text[at] if at < len(text) else None):
            yield at


def cut_steps(
    token_ids: Sequence[int], token_bytes: Sequence[bytes], *, step_limit: int, max_step_tokens: int
) -> tuple[tuple[int, ...], ...]:
    """Steps of one answer, each a non-empty tuple of at most `max_step_tokens` token ids.

    `token_bytes[i]` are the bytes of `token_ids[i]`, empty for special tokens. A cut depends on the tokens before it
    and on one byte behind it, so answers that begin alike are cut alike. Raises `ValueError` for unequal lengths.
    """
    if len(token_ids) != len(token_bytes):
        raise ValueError(f"{len(token_ids)} tokens with the bytes of {len(token_bytes)}")
    marks = list(boundaries(b"".join(token_bytes)))
    steps: list[tuple[int, ...]] = []
    start = fragments = end = passed = 0
    for at, piece in enumerate(token_bytes, 1):
        end += len(piece)
        before = passed
        while passed < len(marks) and marks[passed] <= end:
            passed += 1
        fragments += passed > before
        if fragments == step_limit or at - start == max_step_tokens:
            steps.append(tuple(token_ids[start:at]))
            start, fragments = at, 0
    if start < len(token_ids):
        steps.append(tuple(token_ids[start:]))
    return tuple(steps)
