"""Raw rows in four formats to dialogues: tools, and turns whose calls are parsed. Pure (evaluation document, "Input
formats").

A row that cannot be read raises `RowError` with a short machine reason. An assistant turn that cannot be used carries
its own reason: the turns before it are still good.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from itrain_pipeline.records import Role, ToolCall
from itrain_pipeline.toolcalls.literals import LiteralError
from itrain_pipeline.toolcalls.parse import json_call, parse

Row = Mapping[str, Any]


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


def read_dialogue(row: object, data_format: str) -> Dialogue:
    """One row as a dialogue; raises `RowError`, and `KeyError` for a format that does not exist."""
    reader = _READERS[data_format]
    if not isinstance(row, Mapping):
        raise RowError("not_an_object", f"the row is a {type(row).__name__}, expected an object")
    check_text(row)
    return reader(row)


def check_text(row: Row) -> None:
    """Every value must be JSON that UTF-8 can hold: no NaN, no infinity, no half surrogate pair."""
    try:
        json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise RowError("bad_value", str(error)[:200]) from error


def _toolace(row: Row) -> Dialogue:
    """`{"system": text that holds the tools JSON, "conversations": [{"from", "value"}, …]}`; calls are pythonic.

    Of the system text only the tools are kept: how to call is said by our own prompt.
    """
    turns = []
    for at, said in enumerate(_list(row, "conversations")):
        if not isinstance(said, Mapping) or not isinstance(said.get("value"), str):
            raise RowError("bad_turn", f"conversations[{at}] is not {{from, value}} with a text value")
        role = _ROLES.get(str(said.get("from")))
        if role is None:
            raise RowError("bad_role", f"conversations[{at}].from is {said.get('from')!r}, allowed: {_ALLOWED_ROLES}")
        turns.append(_assistant_text(said["value"]) if role == "assistant" else Turn(role=role, content=said["value"]))
    return Dialogue(tools=_tools(find_tools(_text(row, "system"))), turns=tuple(turns), id=_id(row))


def find_tools(system: str) -> list[Any]:
    """The first JSON list of objects in a system text; an empty list where `[]` stands alone."""
    at = system.find("[")
    while at >= 0:
        try:
            found, _ = json.JSONDecoder().raw_decode(system, at)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, list) and all(isinstance(tool, dict) for tool in found):
            return found
        at = system.find("[", at + 1)
    raise RowError("bad_tools", "the system text holds no JSON list of tools")


def _assistant_text(text: str) -> Turn:
    """A ToolACE answer: a list of calls, or plain text."""
    result = parse(text, "pythonic")
    if result.error is not None:
        return Turn(role="assistant", content=text, error=RowError("bad_call", f"{result.error} in {_shown(text)}"))
    if result.calls:
        return Turn(role="assistant", calls=result.calls)
    return _plain_answer(text)


def _plain_answer(text: str) -> Turn:
    if text.strip() in ("", "[]"):
        return Turn(role="assistant", content=text, error=RowError("empty_answer", f"the answer is {text!r}"))
    return Turn(role="assistant", content=text)


def _xlam(row: Row) -> Dialogue:
    """`{"id", "query", "tools", "answers"}`, the last two JSON, as text or not; tools list parameters flat."""
    tools = [_xlam_tool(tool) for tool in _json_list(row, "tools", "bad_tools")]
    answer = _calls_turn(_json_list(row, "answers", "bad_call"))
    return Dialogue(tools=_tools(tools), turns=(Turn(role="user", content=_text(row, "query")), answer), id=_id(row))


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
    for at, message in enumerate(_list(row, "messages")):
        if not isinstance(message, Mapping):
            raise RowError("bad_turn", f"messages[{at}] is a {type(message).__name__}, expected an object")
        role = _ROLES.get(str(message.get("role")))
        if role is None:
            got = message.get("role")
            raise RowError("bad_role", f"messages[{at}].role is {got!r}, allowed: {_ALLOWED_ROLES}")
        if role == "system" and at:
            raise RowError("bad_role", f"messages[{at}] is a system message; it is allowed in the first place only")
        turns.append(_message_turn(role, message, at))
    raw = row.get("tools") or []
    tools = _json_list(row, "tools", "bad_tools") if raw else []
    return Dialogue(tools=_tools([_unwrapped(tool) for tool in tools]), turns=tuple(turns), id=_id(row))


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


def _bfcl(row: Row) -> Dialogue:
    """`{"id", "question": [[{role, content}, …]], "function": […], "ground_truth": […]}`, single-turn.

    Gold are call strings (retired exec sets) or `{name: {parameter: [allowed, …]}}` (scored sets, first allowed value).
    """
    question = _list(row, "question")
    if len(question) != 1 or not isinstance(question[0], list):
        raise RowError("multi_turn", f"question has {len(question)} turns, one is supported")
    turns = []
    for at, message in enumerate(question[0]):
        role = _ROLES.get(str(message.get("role"))) if isinstance(message, Mapping) else None
        if role is None or not isinstance(message.get("content"), str):
            raise RowError("bad_turn", f"question[0][{at}] is not {{role, content}} with a known role and a text")
        turns.append(Turn(role=role, content=message["content"]))
    functions = row.get("function") or []
    tools = _tools(functions if isinstance(functions, list) else [functions])
    gold = row.get("ground_truth")
    if not gold or not isinstance(gold, list):
        raise RowError("no_answer", "the row has no ground_truth: it asks without an answer to learn")
    return Dialogue(tools=tools, turns=(*turns, _gold_turn(gold, tools)), id=_id(row))


def _gold_turn(gold: Sequence[Any], tools: Sequence[Mapping[str, Any]]) -> Turn:
    calls: list[ToolCall] = []
    for entry in gold:
        if isinstance(entry, str):
            result = parse(entry, "pythonic")
            if not result.calls:
                error = RowError("bad_call", f"{result.error or 'no call'} in {_shown(entry)}")
                return Turn(role="assistant", error=error)
            calls += result.calls
        elif isinstance(entry, Mapping):
            calls += [_allowed_call(name, allowed, tools) for name, allowed in entry.items()]
        else:
            error = RowError("bad_call", f"ground_truth holds a {type(entry).__name__}, expected texts or objects")
            return Turn(role="assistant", error=error)
    return Turn(role="assistant", calls=tuple(calls))


def _allowed_call(name: str, allowed: Any, tools: Sequence[Mapping[str, Any]]) -> ToolCall:
    """The first allowed value of every parameter that must be given; `""` among them marks one that may be left out."""
    if not isinstance(allowed, Mapping):
        raise RowError("bad_call", f"the gold of {name!r} is a {type(allowed).__name__}, expected an object")
    schema = next((tool.get("parameters") for tool in tools if tool.get("name") == name), None)
    known = schema.get("properties") if isinstance(schema, Mapping) else None
    needed = schema.get("required") or [] if isinstance(schema, Mapping) else []
    arguments = {}
    for key, values in allowed.items():
        choices = values if isinstance(values, list) else [values]
        if not choices or (isinstance(known, Mapping) and key not in known):
            continue
        if choices[0] == "" and key not in needed:
            continue
        arguments[key] = _first_allowed(choices[0])
    return ToolCall(name=name, arguments=arguments)


def _first_allowed(value: Any) -> Any:
    """Inside objects every entry lists its own allowed values."""
    if isinstance(value, Mapping):
        first = {key: items[0] if isinstance(items, list) and items else items for key, items in value.items()}
        return {key: _first_allowed(item) for key, item in first.items() if item != ""}
    return [_first_allowed(item) for item in value] if isinstance(value, list) else value


def _calls_turn(values: Sequence[Any]) -> Turn:
    if not values:
        return Turn(role="assistant", error=RowError("empty_answer", "the list of calls is empty"))
    try:
        return Turn(role="assistant", calls=tuple(json_call(value) for value in values))
    except LiteralError as error:
        return Turn(role="assistant", error=RowError("bad_call", str(error)))


def _tools(values: Sequence[Any]) -> tuple[dict[str, Any], ...]:
    for at, tool in enumerate(values):
        if not isinstance(tool, dict) or not isinstance(tool.get("name"), str) or not tool["name"].strip():
            raise RowError("bad_tools", f"tool {at} is {_shown(str(tool))}, expected an object with a name")
    return tuple(values)


def _json_list(row: Row, key: str, reason: str) -> list[Any]:
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


def _list(row: Row, key: str) -> list[Any]:
    value = row.get(key)
    if not isinstance(value, list) or not value:
        raise RowError("missing_field", f"{key} is {_shown(repr(value))}, expected a list with entries")
    return value


def _text(row: Row, key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise RowError("missing_field", f"{key} is {_shown(repr(value))}, expected a text")
    return value


def _id(row: Row) -> str | None:
    value = row.get("id")
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


def _shown(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


_ROLES: Final[Mapping[str, Role]] = {
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
_ALLOWED_ROLES: Final = ", ".join(_ROLES)
_READERS: Final[Mapping[str, Callable[[Row], Dialogue]]] = {
    "toolace": _toolace,
    "xlam": _xlam,
    "messages": _messages,
    "bfcl": _bfcl,
}
