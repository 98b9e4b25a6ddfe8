"""Work that is counted and not timed: how many instructions Python carries out, the same on every machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def counted_instructions() -> Iterator[list[int]]:
    """A list of one number: the instructions of this thread in frames that are entered from here on."""
    count, before = [0], sys.gettrace()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        frame.f_trace_opcodes = True
        count[0] += event == "opcode"
        return trace

    sys.settrace(trace)
    try:
        yield count
    finally:
        sys.settrace(before)
