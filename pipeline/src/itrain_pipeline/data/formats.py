"""Raw rows in four formats to dialogues: tools, and turns whose calls are parsed. Pure (evaluation document, "Input
formats").

A row that cannot be read raises `RowError` with a short machine reason. An assistant turn that cannot be used carries
its own reason: the turns before it are still good.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from itrain_pipeline.data.bfcl_rows import read_bfcl
from itrain_pipeline.data.dialogue import (
    ALLOWED_ROLES,
    ROLES,
    Dialogue,
    Row,
    RowError,
    Turn,
    check_text,
    id_of,
    json_list_of,
    list_of,
    read_tools,
    shown,
    text_of,
)
from itrain_pipeline.records import Role
from itrain_pipeline.toolcalls.literals import LiteralError
from itrain_pipeline.toolcalls.parse import json_call, parse

MAX_TRIES: Final = 100
"""Places of a system text at which a list of tools is looked for."""
_TOOLS: Final = re.compile(r"\[(?=\s*+[{\]])")


def read_dialogue(row: object, data_format: str) -> Dialogue:
    """One row as a dialogue; raises `RowError`, and `KeyError` for a format that does not exist."""
    reader = _READERS[data_format]
    if not isinstance(row, Mapping):
        raise RowError("not_an_object", f"the row is a {type(row).__name__}, expected an object")
    check_text(row)
    return reader(row)


def _toolace(row: Row) -> Dialogue:
    """`{"system": text that holds the tools JSON, "conversations": [{"from", "value"}, …]}`; calls are pythonic.

    Of the system text only the tools are kept: how to call is said by our own prompt.
    """
    turns = []
    for at, said in enumerate(list_of(row, "conversations")):
        if not isinstance(said, Mapping) or not isinstance(said.get("value"), str):
            raise RowError("bad_turn", f"conversations[{at}] is not {{from, value}} with a text value")
        role = ROLES.get(str(said.get("from")))
        if role is None:
            raise RowError("bad_role", f"conversations[{at}].from is {said.get('from')!r}, allowed: {ALLOWED_ROLES}")
        turns.append(_assistant_text(said["value"]) if role == "assistant" else Turn(role=role, content=said["value"]))
    return Dialogue(tools=read_tools(find_tools(text_of(row, "system"))), turns=tuple(turns), id=id_of(row))


def find_tools(system: str) -> list[Any]:
    """The first JSON list of objects in a system text; an empty list where `[]` stands alone."""
    for opening in itertools.islice(_TOOLS.finditer(system), MAX_TRIES):
        try:
            found, _ = json.JSONDecoder().raw_decode(system, opening.start())
        except (ValueError, RecursionError):
            continue
        if all(isinstance(tool, dict) for tool in found):
            check_text({"tools": found})
            return list(found)
    raise RowError("bad_tools", "the system text holds no JSON list of tools")


def _assistant_text(text: str) -> Turn:
    """A ToolACE answer: a list of calls, or plain text."""
    result = parse(text, "pythonic")
    if result.error is not None:
        return Turn(role="assistant", content=text, error=RowError("bad_call", f"{result.error} in {shown(text)}"))
    if result.calls:
        return Turn(role="assistant", calls=result.calls)
    return _plain_answer(text)


def _plain_answer(text: str) -> Turn:
    if text.strip() in ("", "[]"):
        return Turn(role="assistant", content=text, error=RowError("empty_answer", f"the answer is {text!r}"))
    return Turn(role="assistant", content=text)


def _xlam(row: Row) -> Dialogue:
    """`{"id", "query", "tools", "answers"}`, the last two JSON, as text or not; tools list parameters flat."""
    tools = [_xlam_tool(tool) for tool in json_list_of(row, "tools", "bad_tools")]
    answer = _calls_turn(json_list_of(row, "answers", "bad_call"))
    return Dialogue(
        tools=read_tools(tools), turns=(Turn(role="user", content=text_of(row, "query")), answer), id=id_of(row)
    )


def _xlam_tool(tool: Any) -> Any:
    """Parameters as a JSON schema, as every other format has them; `str, optional` and a default are not required."""
    flat = tool.get("parameters") if isinstance(tool, Mapping) else None
    if not isinstance(flat, Mapping) or "properties" in flat:
        return tool
    known = {name: schema for name, schema in flat.items() if isinstance(schema, Mapping)}
    required = [n for n, s in known.items() if "default" not in s and "optional" not in str(s.get("type", ""))]
    return {**tool, "parameters": {"type": "object", "properties": dict(flat), "required": required}}


def _messages(row: Row) -> Dialogue:
    """OpenAI chat: `messages` with `tool_calls`, `tools` as functions. A leading system text stays the row's own."""
    turns = []
    for at, message in enumerate(list_of(row, "messages")):
        if not isinstance(message, Mapping):
            raise RowError("bad_turn", f"messages[{at}] is a {type(message).__name__}, expected an object")
        role = ROLES.get(str(message.get("role")))
        if role is None:
            got = message.get("role")
            raise RowError("bad_role", f"messages[{at}].role is {got!r}, allowed: {ALLOWED_ROLES}")
        if role == "system" and at:
            raise RowError("bad_role", f"messages[{at}] is a system message; it is allowed in the first place only")
        turns.append(_message_turn(role, message, at))
    raw = row.get("tools") or []
    tools = json_list_of(row, "tools", "bad_tools") if raw else []
    return Dialogue(tools=read_tools([_unwrapped(tool) for tool in tools]), turns=tuple(turns), id=id_of(row))


def _message_turn(role: Role, message: Row, at: int) -> Turn:
    content = _content(message.get("content"), at)
    if role != "assistant":
        return Turn(role=role, content=content)
    calls = message.get("tool_calls") or []
    return _calls_turn([_unwrapped(call) for call in calls]) if calls else _plain_answer(content)


def _unwrapped(value: Any) -> Any:
    """`{"type": "function", "function": {…}}` without its envelope."""
    return value["function"] if isinstance(value, Mapping) and isinstance(value.get("function"), Mapping) else value


def _content(content: Any, at: int) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list) else [content]
    if all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in parts):
        return "".join(part["text"] for part in parts)
    raise RowError("bad_turn", f"messages[{at}].content has parts that are no text")


def _calls_turn(values: Sequence[Any]) -> Turn:
    if not values:
        return Turn(role="assistant", error=RowError("empty_answer", "the list of calls is empty"))
    try:
        return Turn(role="assistant", calls=tuple(json_call(value) for value in values))
    except LiteralError as error:
        return Turn(role="assistant", error=RowError("bad_call", str(error)))


_READERS: Final[Mapping[str, Callable[[Row], Dialogue]]] = {
    "toolace": _toolace,
    "xlam": _xlam,
    "messages": _messages,
    "bfcl": read_bfcl,
}
