"""Tools as OpenAI functions and back: what the API does not allow is written otherwise, and nothing is lost."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest

from itrain_contract.names import ExitCode
from itrain_pipeline.data.rendering import Renderer
from itrain_pipeline.errors import DataError
from itrain_pipeline.evals.bfcl import load_items
from itrain_pipeline.evals.nativecalls import (
    main,
    native_text,
    prompt_messages,
    read_native,
    serving_template,
    wire_messages,
    wire_names,
    wire_tools,
)
from itrain_pipeline.quickstart import model_path
from itrain_pipeline.records import Message, ToolCall
from itrain_testing.tiny_model import build_tokenizer

USER = Message(role="user", content="Weather in Rome?")
TOOLS = (
    {
        "name": "get_weather",
        "description": "Weather of a 'city' — now.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
    {"name": "b", "description": 'Zürich <&> "x"', "parameters": {"type": "object", "properties": {}}},
)


def test_names_become_what_the_api_allows_and_stay_apart() -> None:
    names = wire_names([{"name": name} for name in ("a.b", "a_b", "Market Trends API", "x" * 90, "x" * 91, "")])
    assert list(names)[:3] == ["a_b", "a_b_2", "Market_Trends_API"]
    assert list(names.values())[:3] == ["a.b", "a_b", "Market Trends API"]
    assert len(names) == 6
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in names)


def test_bfcl_tools_of_every_category_are_json_schemas_under_names_of_their_own() -> None:
    for item in load_items(limit=60):
        names = wire_names(item.tools)
        assert list(names.values()) == [tool["name"] for tool in item.tools]
        for tool in wire_tools(item.tools, names):
            jsonschema.Draft202012Validator.check_schema(tool["function"]["parameters"])
            assert tool["function"]["parameters"]["type"] == "object"


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        ("dict", {"type": "object"}),
        ("float", {"type": "number"}),
        ("tuple", {"type": "array", "items": {}}),
        ("str, optional", {"type": "string"}),
        ("List[int]", {"type": "array", "items": {}}),
        (["string", "null"], {"type": ["string", "null"]}),
        ("Widget", {}),
    ],
)
def test_types_are_json_schemas_and_unknown_ones_allow_anything(kind: Any, sent: dict[str, Any]) -> None:
    tool = {"name": "f", "parameters": {"type": "dict", "properties": {"a": {"type": kind}}, "required": None}}
    (made,) = wire_tools([tool], wire_names([tool]))
    assert made["function"]["parameters"] == {"type": "object", "properties": {"a": sent}}


def test_nested_schemas_are_converted_and_the_order_of_keys_is_kept() -> None:
    inner = {"type": "dict", "properties": {"x": {"type": "float", "optional": True}}}
    tool = {
        "name": "f",
        "parameters": {"type": "dict", "required": ["p"], "properties": {"p": {"type": "list", "items": inner}}},
    }
    (made,) = wire_tools([tool], wire_names([tool]))
    parameters = made["function"]["parameters"]
    assert list(parameters) == ["type", "required", "properties"]
    assert parameters["properties"]["p"]["items"] == {"type": "object", "properties": {"x": {"type": "number"}}}


def test_earlier_calls_travel_as_calls_and_tool_turns_answer_them() -> None:
    names = wire_names([{"name": "get weather"}])
    history = (
        USER,
        Message(role="assistant", content="[get weather(city='Rome'), get weather(city='Oslo')]"),
        Message(role="tool", content="[20, 3]"),
        Message(role="assistant", content="20 and 3."),
        USER,
    )
    sent = wire_messages(history, names, "pythonic")
    assert [turn["role"] for turn in sent] == ["user", "assistant", "tool", "tool", "assistant", "user"]
    asked = [call["id"] for call in sent[1]["tool_calls"]]
    assert [sent[2]["tool_call_id"], sent[3]["tool_call_id"]] == asked
    assert sent[1]["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": '{"city": "Rome"}'}
    assert sent[4] == {"role": "assistant", "content": "20 and 3."}


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ((), "no turn"),
        ((Message(role="system", content="x"),), "no turn"),
        ((USER, Message(role="system", content="x")), "first place"),
        ((USER, Message(role="tool", content="x")), "answers no call"),
    ],
)
def test_a_dialogue_that_cannot_be_sent_is_named(messages: tuple[Message, ...], words: str) -> None:
    with pytest.raises(DataError, match=words):
        wire_messages(messages, {}, "pythonic")


def test_calls_are_kept_as_they_came_and_text_beside_them_is_none() -> None:
    message = {"content": "[other()]", "tool_calls": [{"function": {"name": "a_b", "arguments": '{"x": 1}'}}]}
    text = native_text(message, {"a_b": "a.b"})
    assert read_native(text).calls == (ToolCall(name="a.b", arguments={"x": 1}),)
    plain = read_native(native_text({"content": "[other()]"}, {}))
    assert plain.is_text


@pytest.mark.parametrize("arguments", ["[1]", "{'x'", "3", "{"])
def test_arguments_that_are_no_object_are_an_attempt_that_cannot_be_read(arguments: str) -> None:
    read = read_native(native_text({"tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}, {}))
    assert read.calls == ()
    assert read.error


@pytest.mark.parametrize("call_format", ["pythonic", "hermes", "llama"])
@pytest.mark.parametrize("own", ["", "Today is Monday. "])
def test_under_the_serving_template_a_request_with_tools_is_our_prompt_to_the_token(call_format: Any, own: str) -> None:
    tokenizer = build_tokenizer()
    renderer = Renderer(tokenizer, call_format)
    messages = (Message(role="system", content=own), USER) if own else (USER,)
    names = wire_names(TOOLS)
    text = tokenizer.apply_chat_template(
        wire_messages(messages, names, call_format),
        tools=wire_tools(TOOLS, names),
        chat_template=serving_template(tokenizer.chat_template, call_format),
        tokenize=False,
        add_generation_prompt=True,
    )
    assert tuple(tokenizer.encode(text, add_special_tokens=False)) == renderer.prompt_ids(messages, TOOLS)


def test_without_tools_the_serving_template_is_the_models_own() -> None:
    tokenizer = build_tokenizer()
    turns = [{"role": "user", "content": "Hello"}]
    plain = tokenizer.apply_chat_template(turns, tokenize=False)
    served = tokenizer.apply_chat_template(
        turns, chat_template=serving_template(tokenizer.chat_template), tokenize=False
    )
    assert served == plain


@pytest.mark.parametrize("own", ["", "Today is Monday."])
def test_prompt_messages_are_the_conversation_that_a_run_renders(own: str) -> None:
    tokenizer = build_tokenizer()
    messages = (Message(role="system", content=own), USER) if own else (USER,)
    text = tokenizer.apply_chat_template(
        prompt_messages(messages, TOOLS, "pythonic"), tokenize=False, add_generation_prompt=True
    )
    ids = tuple(tokenizer.encode(text, add_special_tokens=False))
    assert ids == Renderer(tokenizer, "pythonic").prompt_ids(messages, TOOLS)


def test_the_template_of_a_model_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(model_path())]) == ExitCode.DONE
    own = json.loads((model_path() / "tokenizer_config.json").read_text())["chat_template"]
    assert capsys.readouterr().out == serving_template(own)
    assert main(["/nowhere"]) == ExitCode.CONFIG
    assert main([]) == ExitCode.CONFIG
