"""Native tool calls: our tools as OpenAI functions, `tool_calls` as common calls, and the chat template under which a
server shows tools as we do. Pure.

`python -m itrain_pipeline.evals.nativecalls MODEL_DIR` prints that template for a model.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from itrain_contract.names import ExitCode
from itrain_pipeline.data.rendering import CallFormat, system_text
from itrain_pipeline.errors import ConfigError, DataError, StageError
from itrain_pipeline.records import Message, ToolCall
from itrain_pipeline.toolcalls.literals import LiteralError
from itrain_pipeline.toolcalls.parse import ParseResult, json_call, parse

_FOREIGN: Final = re.compile(r"[^A-Za-z0-9_-]")
NAME_LENGTH: Final = 64
"""Of a function's name in OpenAI's API, which also allows letters, digits, `_` and `-` only."""
_JSON_TYPES: Final = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})
_TYPES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("dict", "hashmap", "hashtable"), "object"),
    **dict.fromkeys(("list", "tuple", "set", "arraylist", "queue", "stack"), "array"),
    **dict.fromkeys(("str", "char", "any"), "string"),
    **dict.fromkeys(("float", "double"), "number"),
    **dict.fromkeys(("int", "long", "short", "byte", "bigint"), "integer"),
    "bool": "boolean",
}
"""Types of BFCL's and ToolACE's schemas in JSON Schema's words (as BFCL's own runner has them)."""


def wire_names(tools: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Each tool's name as it is sent -> its own: what the API does not allow becomes `_`, and no two are equal."""
    names: dict[str, str] = {}
    for tool in tools:
        own = str(tool.get("name"))
        sent = _FOREIGN.sub("_", own)[:NAME_LENGTH] or "_"
        number = 2
        while sent in names:
            sent = f"{_FOREIGN.sub('_', own)[: NAME_LENGTH - 4]}_{number}"
            number += 1
        names[sent] = own
    return names


def wire_tools(tools: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """`tools=` of a request, in their order; `names` are those of `wire_names`."""
    return [
        {
            "type": "function",
            "function": {
                "name": sent,
                "description": str(tool.get("description") or ""),
                "parameters": _parameters(_schema(tool.get("parameters"))),
            },
        }
        for sent, tool in zip(names, tools, strict=True)
    ]


def _parameters(schema: dict[str, Any]) -> dict[str, Any]:
    """What the API asks of a function's schema; the order of its keys is kept, since the model reads it."""
    made = schema if "type" in schema else {"type": "object", **schema}
    made["type"] = "object"
    made.setdefault("properties", {})
    return made


def _schema(schema: Any) -> dict[str, Any]:
    if not isinstance(schema, Mapping):
        return {}
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "type":
            kind = _json_type(value)
            made |= {"type": kind} if kind else {}
        elif key == "properties" and isinstance(value, Mapping):
            made[key] = {name: _schema(part) for name, part in value.items()}
        elif key in ("items", "additionalProperties") and isinstance(value, Mapping):
            made[key] = _schema(value)
        elif key in ("anyOf", "oneOf", "allOf") and isinstance(value, list):
            made[key] = [_schema(part) for part in value]
        elif key == "required":
            made |= {key: value} if isinstance(value, list) else {}
        elif key != "optional":
            made[key] = value
    if made.get("type") == "array":
        made.setdefault("items", {})
    return made


def _json_type(kind: Any) -> str | list[Any] | None:
    """None where nothing is known: then any value is allowed."""
    if isinstance(kind, list):
        return [known for one in kind if isinstance(known := _json_type(one), str)] or None
    word = re.split(r"[\[<,\s]", str(kind).strip().lower(), maxsplit=1)[0]
    return word if word in _JSON_TYPES else _TYPES.get(word)


def wire_messages(messages: Sequence[Message], names: Mapping[str, str], call_format: CallFormat) -> list[Any]:
    """A dialogue with its earlier calls as `tool_calls`. One tool turn after several calls answers each of them.

    Raises DataError for no turn, a system turn elsewhere than in front, and a tool turn that answers no call.
    """
    check_turns(messages)
    sent = {own: name for name, own in names.items()}
    made: list[dict[str, Any]] = []
    waiting: list[str] = []
    for at, message in enumerate(messages):
        calls = parse(message.content, call_format).calls if message.role == "assistant" else ()
        if calls:
            waiting = [f"call_{at}_{number}" for number in range(len(calls))]
            listed = [_sent_call(call, name, sent) for call, name in zip(calls, waiting, strict=True)]
            made.append({"role": "assistant", "content": "", "tool_calls": listed})
        elif message.role == "tool":
            if not waiting:
                raise DataError("messages: a tool turn answers no call")
            more = at + 1 < len(messages) and messages[at + 1].role == "tool"
            answered, waiting = (waiting[:1], waiting[1:]) if more else (waiting, [])
            made += [{"role": "tool", "tool_call_id": name, "content": message.content} for name in answered]
        else:
            made.append({"role": message.role, "content": message.content})
    return made


def wire_dialogue(messages: Sequence[Message], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """A dialogue whose assistant turns are texts of `native_text`: their calls as `tool_calls`, each answered by a tool
    turn. Calls that cannot be read have none, so they are left out."""
    sent = {own: name for name, own in names.items()}
    made: list[dict[str, Any]] = []
    waiting: list[str] = []
    for at, message in enumerate(messages):
        if message.role == "assistant":
            calls = read_native(message.content).calls
            waiting = [f"call_{at}_{number}" for number in range(len(calls))]
            made.append({"role": "assistant", "content": json.loads(message.content)["content"]})
            if calls:
                made[-1]["tool_calls"] = [
                    _sent_call(call, name, sent) for call, name in zip(calls, waiting, strict=True)
                ]
        elif message.role == "tool":
            made.append({"role": "tool", "tool_call_id": waiting.pop(0), "content": message.content})
        else:
            made.append({"role": message.role, "content": message.content})
    return made


def _sent_call(call: ToolCall, name: str, sent: Mapping[str, str]) -> dict[str, Any]:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return {
        "id": name,
        "type": "function",
        "function": {"name": sent.get(call.name, call.name), "arguments": arguments},
    }


def prompt_messages(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], call_format: CallFormat
) -> list[dict[str, Any]]:
    """A dialogue with the tools as text in its system turn: the conversation that `data.rendering` renders.

    Raises DataError for no turn and for a system turn elsewhere than in front.
    """
    check_turns(messages)
    own = messages[0].content if messages[0].role == "system" else None
    system = system_text(tools, call_format, own)
    made: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for turn in messages[own is not None :]:
        made.append({"role": turn.role, "content": turn.content})
        if turn.role == "tool":
            made[-1]["tool_call_id"] = "call"  # the API wants one; the call itself stands as text before it
    return made


def check_turns(messages: Sequence[Message]) -> None:
    if not any(message.role != "system" for message in messages):
        raise DataError("messages: got no turn, at least one user turn is needed")
    if any(message.role == "system" for message in messages[1:]):
        raise DataError("messages: a system message is allowed in the first place only")


def native_text(message: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """A reply's message as the text that is kept: always a JSON object, calls by their own names.

    Raises ValueError for `tool_calls` of another shape than the API's.
    """
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise ValueError("tool_calls is no list")
    kept = []
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ValueError("a tool call has no function with a name")
        name = function["name"]
        kept.append({"name": names.get(name, name), "arguments": function.get("arguments")})
    return json.dumps({"tool_calls": kept, "content": message.get("content") or ""}, ensure_ascii=False)


def read_native(text: str) -> ParseResult:
    """`native_text` as calls; arguments that are no object are an error. Text beside them is no call, whatever it
    says."""
    try:
        kept = json.loads(text)["tool_calls"]
        return ParseResult(calls=tuple(json_call(call) for call in kept))
    except LiteralError as error:
        return ParseResult(error=str(error))


def serving_template(own: str, call_format: CallFormat = "pythonic") -> str:
    """A model's chat template with our system turn in front where a request has `tools`; else it is as it was.

    The JSON of the tools has the bytes that `data.rendering` writes where their keys are name, description, parameters.
    """
    before, after = system_text(({"mark": 0},), call_format).split('[{"mark":0}]')
    return (
        "{%- if tools %}{%- set shown = namespace(tools=[]) %}{%- for tool in tools %}"
        "{%- set shown.tools = shown.tools + [{'name': tool['function']['name'], "
        "'description': tool['function']['description'], 'parameters': tool['function']['parameters']}] %}{%- endfor %}"
        f"{{%- set told = {json.dumps(before)} ~ (shown.tools | tojson(separators=(',', ':'))) ~ "
        f"{json.dumps(after)} %}}{{%- if messages[0]['role'] == 'system' %}}"
        "{%- set told = (messages[0]['content'] | trim) ~ '\\n\\n' ~ told %}"
        "{%- set messages = messages[1:] %}{%- endif %}"
        "{%- set messages = [{'role': 'system', 'content': told}] + messages %}{%- set tools = none %}{%- endif %}"
    ) + own


def main(arguments: Sequence[str]) -> int:
    try:
        if not 1 <= len(arguments) <= 2:
            raise ConfigError("usage: python -m itrain_pipeline.evals.nativecalls MODEL_DIR [pythonic|hermes|llama]")
        sys.stdout.write(serving_template(_own_template(Path(arguments[0])), *arguments[1:]))  # type: ignore[arg-type]
    except StageError as error:
        sys.stderr.write(f"itrain: {error}\n")
        return error.exit_code
    return ExitCode.DONE


def _own_template(model: Path) -> str:
    file, config = model / "chat_template.jinja", model / "tokenizer_config.json"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
    if not isinstance(found, str):
        raise ConfigError(f"{model}: no chat_template.jinja, and no chat_template in tokenizer_config.json")
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
