"""Calls as text, in the call format of the run. `parse` reads every one of them back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from itrain_pipeline.records import ToolCall


def serialise(calls: Sequence[ToolCall], call_format: str) -> str:
    """One answer that makes these calls; no call at all is the empty text.

    pythonic: `[Name(k='v', n=3), …]`, values as Python literals, names as they are, spaces and dots included.
    hermes: one `<tool_call>` block a call, joined by newlines. llama: JSON objects joined by `; `, which is what
    BFCL's own Llama prompt asks for. JSON keeps every character readable (no `\\u` escapes).
    Raises `ValueError` for another format or a value that is not JSON.
    """
    if call_format == "pythonic":
        return f"[{', '.join(map(_pythonic_call, calls))}]" if calls else ""
    if call_format == "hermes":
        return "\n".join(f"<tool_call>\n{_json_call(call, 'arguments')}\n</tool_call>" for call in calls)
    if call_format == "llama":
        return "; ".join(_json_call(call, "parameters") for call in calls)
    raise ValueError(f"call format {call_format!r}, allowed are pythonic, hermes, llama")


def _pythonic_call(call: ToolCall) -> str:
    arguments = ", ".join(f"{name}={python_literal(value)}" for name, value in call.arguments.items())
    return f"{call.name}({arguments})"


def python_literal(value: Any) -> str:
    """A JSON value as a Python literal on one line. Raises `ValueError` for anything else, NaN and infinity too."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{str(key)!r}: {python_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(python_literal, value)) + "]"
    if value is None or isinstance(value, bool | int | str):
        return repr(value)
    if isinstance(value, float) and abs(value) < float("inf"):
        return repr(value)
    raise ValueError(f"an argument is {value!r} ({type(value).__name__}), allowed are JSON values")


def _json_call(call: ToolCall, key: str) -> str:
    return json.dumps(
        {"name": call.name, key: call.arguments}, ensure_ascii=False, separators=(", ", ": "), allow_nan=False
    )
