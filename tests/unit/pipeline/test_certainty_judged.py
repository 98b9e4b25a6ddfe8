"""What certainty calls right, against judges that share no code with it: the bench's for Python's form, json's own."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itrain_bench.search.checker import Checker
from itrain_pipeline.records import Example, ToolCall
from itrain_pipeline.search.certainty import GroundTruth
from itrain_pipeline.toolcalls.serialise import serialise

END = 0
FORMATS = ("pythonic", "hermes", "llama")
JUNK = (
    " ",
    "\n",
    "x",
    "# done",
    "[1] ",
    "[]",
    "[see](url) ",
    " and ",
    "</s>",
    "<|eot_id|>",
    "\n```\n",
    "```",
    "<think></think>",
    "]",
    "}",
    "é",
    "{} ",
    '{"a": 1} ',
    "<tool_call>",
    "</tool_call>",
    ")",
    "a=1, ",
    "1, ",
)
"""What stands in answers beside calls. Whatever only spells a value in another way is left out."""

texts = st.text(st.sampled_from("ab]})( é😀,='\"#\\"), max_size=6)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-20, 20) | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
calls = st.builds(
    lambda name, arguments: ToolCall(name=name, arguments=arguments),
    st.sampled_from(["f", "g", "get_it"]),
    st.dictionaries(st.sampled_from("abc"), values, max_size=2),
)


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(text.encode())


def text_of(ids: Any) -> str:
    return bytes(one for one in ids if one != END).decode(errors="replace")


def truth_of(wanted: list[ToolCall], call_format: str) -> GroundTruth:
    example = Example(
        id="e",
        messages=(),
        tools=(),
        answer=serialise(wanted, call_format),
        calls=tuple(wanted),
        bucket="easy",
        source="test",
        prompt_ids=(1,),
    )
    return GroundTruth(example=example, call_format=call_format, decode=text_of)


def read_json_calls(text: str, call_format: str) -> list[Any] | None:
    """Nothing but JSON objects, each in its block (hermes) or with `;` between them (llama); else None."""
    found, text = [], text.strip()
    while text:
        if call_format == "hermes":
            if not text.startswith("<tool_call>"):
                return None
            text = text.removeprefix("<tool_call>").lstrip()
        try:
            value, end = json.JSONDecoder().raw_decode(text)
        except ValueError:
            return None
        found.append(value)
        text = text[end:].lstrip()
        if call_format == "hermes":
            if not text.startswith("</tool_call>"):
                return None
            text = text.removeprefix("</tool_call>").lstrip()
        elif text.startswith(";") and text[1:].strip():
            text = text[1:].lstrip()
        elif text:
            return None
    return found


def agrees(text: str, truth: GroundTruth) -> bool:
    if truth.call_format == "pythonic":
        return Checker(truth.example, text_of, frozenset({END})).agrees((*ids_of(text), END))
    key = "arguments" if truth.call_format == "hermes" else "parameters"
    wanted = [{"name": call.name, key: call.arguments} for call in truth.example.calls]
    said = read_json_calls(text, truth.call_format)
    return said is not None and written(said) == written(wanted)


def written(found: list[Any]) -> list[str]:
    return sorted(json.dumps(one, sort_keys=True) for one in found)


@pytest.mark.parametrize("call_format", FORMATS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_certainty_calls_right_another_judge_calls_right(call_format: str, data: st.DataObject) -> None:
    wanted = data.draw(st.lists(calls, min_size=1, max_size=2))
    truth = truth_of(wanted, call_format)
    answer = serialise(data.draw(st.permutations(wanted)), call_format)
    assert truth.reached(ids_of(answer))
    assert agrees(answer, truth)
    joints = [0, len(answer), *(at + 1 for at, sign in enumerate(answer) if sign in "[](){},:;>\n")]
    for junk in data.draw(st.lists(st.sampled_from(JUNK), min_size=1, max_size=2)):
        at = data.draw(st.sampled_from(joints) | st.integers(0, len(answer)))
        answer = answer[:at] + junk + answer[at:]
    if truth.reached(ids_of(answer)):
        assert agrees(answer, truth), answer
        for end in range(len(answer)):
            assert not truth.excluded(ids_of(answer[:end])), answer[:end]


F, G = ToolCall(name="f", arguments={"a": 1}), ToolCall(name="g", arguments={"b": "x"})
ONE = {call_format: serialise([F], call_format) for call_format in FORMATS}
BOTH = {call_format: serialise([F, G], call_format) for call_format in FORMATS}


@pytest.mark.parametrize(
    ("call_format", "answer"),
    [
        ("pythonic", f"[1] {BOTH['pythonic']}"),
        ("pythonic", f"[] {BOTH['pythonic']}"),
        ("pythonic", f"[see](url) {BOTH['pythonic']}"),
        ("pythonic", "[f(a=1)] and [g(b='x')]"),
        ("pythonic", "[f(a=1)][g(b='x')]"),
        ("pythonic", "[f(a=1), g(b='x</s>')]"),
        ("pythonic", "[f(a=1), g(b='x')</s>]"),
        ("pythonic", "[f(a=1),\n```\ng(b='x')]"),
        ("pythonic", "[f(a=1), g('x')]"),
        ("pythonic", "[f(a=1, a=1), g(b='x')]"),
        ("pythonic", "[[f(a=1), g(b='x')]]"),
        ("pythonic", "[f(a=1), g(b='x')] # done"),
        ("hermes", BOTH["hermes"].removesuffix("</tool_call>")),
        ("hermes", BOTH["hermes"].replace("</tool_call>\n", "</tool_call> and\n")),
        ("hermes", BOTH["hermes"].replace("<tool_call>", "<tool_call></s>")),
        ("hermes", BOTH["hermes"].replace('"arguments": {"a": 1}', '"arguments": "{\\"a\\": 1}"')),
        ("hermes", BOTH["hermes"].replace('"name": "f"', '"why": "so", "name": "f"')),
        ("hermes", f"<tool_call>[{json.dumps({'name': 'f', 'arguments': {'a': 1}})}]</tool_call>"),
        ("llama", "{} " + BOTH["llama"]),
        ("llama", BOTH["llama"].replace("; ", " and ")),
        ("llama", BOTH["llama"] + ";"),
        ("llama", BOTH["llama"].replace('"parameters": {"a": 1}', '"parameters": {"a": 1}, "arguments": {"a": 2}')),
    ],
)
def test_calls_with_anything_beside_them_are_not_right(call_format: str, answer: str) -> None:
    truth = truth_of([F, G], call_format)
    assert truth.reached(ids_of(BOTH[call_format]))
    assert not truth.reached(ids_of(answer))
