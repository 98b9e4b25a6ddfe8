"""BFCL's rows with their two kinds of gold: call strings, and allowed values by parameter. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from itrain_pipeline.data.dialogue import ROLES, Dialogue, Row, RowError, Turn, id_of, list_of, read_tools, shown
from itrain_pipeline.records import ToolCall
from itrain_pipeline.toolcalls.parse import parse


def read_bfcl(row: Row) -> Dialogue:
    """`{"id", "question": [[{role, content}, …]], "function": […], "ground_truth": […]}`, single-turn.

    Gold are call strings (retired exec sets) or `{name: {parameter: [allowed, …]}}` (scored sets, first allowed value).
    """
    question = list_of(row, "question")
    if len(question) != 1 or not isinstance(question[0], list):
        raise RowError("multi_turn", f"question has {len(question)} turns, one is supported")
    turns = []
    for at, message in enumerate(question[0]):
        role = ROLES.get(str(message.get("role"))) if isinstance(message, Mapping) else None
        if role is None or not isinstance(message.get("content"), str):
            raise RowError("bad_turn", f"question[0][{at}] is not {{role, content}} with a known role and a text")
        turns.append(Turn(role=role, content=message["content"]))
    functions = row.get("function") or []
    tools = read_tools(functions if isinstance(functions, list) else [functions])
    gold = row.get("ground_truth")
    if not gold or not isinstance(gold, list):
        raise RowError("no_answer", "the row has no ground_truth: it asks without an answer to learn")
    return Dialogue(tools=tools, turns=(*turns, _gold_turn(gold, tools)), id=id_of(row))


def _gold_turn(gold: Sequence[Any], tools: Sequence[Mapping[str, Any]]) -> Turn:
    calls: list[ToolCall] = []
    for entry in gold:
        if isinstance(entry, str):
            result = parse(entry, "pythonic")
            if not result.calls:
                error = RowError("bad_call", f"{result.error or 'no call'} in {shown(entry)}")
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
        arguments[key] = _first_allowed(next((choice for choice in choices if choice != ""), ""))
    return ToolCall(name=name, arguments=arguments)


def _first_allowed(value: Any) -> Any:
    """Inside objects every entry lists its own allowed values."""
    if isinstance(value, Mapping):
        first = {key: items[0] if isinstance(items, list) and items else items for key, items in value.items()}
        return {key: _first_allowed(item) for key, item in first.items() if item != ""}
    return [_first_allowed(item) for item in value] if isinstance(value, list) else value
