"""What every data format comes down to: tools, and turns whose calls are parsed. How fields of raw rows are read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from itrain_pipeline.records import Role, ToolCall

Row = Mapping[str, Any]
ROW_BYTES: Final = 16 << 20
"""Of one row as JSON: twice what the longest `maxLength` can hold."""


class RowError(ValueError):
    """A row, or one turn of it, is of no use: `reason` for machines, `detail` for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One message. An assistant turn makes `calls` or says `content`; `error` tells why it can do neither."""

    role: Role
    content: str = ""
    calls: tuple[ToolCall, ...] = ()
    error: RowError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialogue:
    """What every format comes down to. `id` is the row's own, if it has one."""

    tools: tuple[dict[str, Any], ...]
    turns: tuple[Turn, ...]
    id: str | None = None


def check_text(row: Row) -> None:
    """Every value must be JSON that UTF-8 can hold: no NaN, no infinity, no half surrogate pair; and not too much."""
    try:
        size = len(json.dumps(row, ensure_ascii=False, allow_nan=False).encode())
    except (ValueError, TypeError, RecursionError) as error:
        raise RowError("bad_value", str(error)[:200]) from error
    if size > ROW_BYTES:
        raise RowError("too_large", f"the row has {size} bytes, allowed are {ROW_BYTES}")


def read_tools(values: Sequence[Any]) -> tuple[dict[str, Any], ...]:
    for at, tool in enumerate(values):
        if not isinstance(tool, dict) or not isinstance(tool.get("name"), str) or not tool["name"].strip():
            raise RowError("bad_tools", f"tool {at} is {shown(str(tool))}, expected an object with a name")
    return tuple(values)


def json_list_of(row: Row, key: str, reason: str) -> list[Any]:
    value = row.get(key)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RowError(reason, f"{key} is no JSON: {error}") from error
        check_text({key: value})
    if not isinstance(value, list):
        raise RowError(reason, f"{key} is a {type(value).__name__}, expected a list or its JSON")
    return value


def list_of(row: Row, key: str) -> list[Any]:
    value = row.get(key)
    if not isinstance(value, list) or not value:
        raise RowError("missing_field", f"{key} is {shown(repr(value))}, expected a list with entries")
    return value


def text_of(row: Row, key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise RowError("missing_field", f"{key} is {shown(repr(value))}, expected a text")
    return value


def id_of(row: Row) -> str | None:
    value = row.get("id")
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


def shown(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


ROLES: Final[Mapping[str, Role]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
ALLOWED_ROLES: Final = ", ".join(ROLES)
