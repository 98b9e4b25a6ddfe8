"""Model output that is made to run something, to hang, or to end the process: text, an error, or a wrong answer."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from itrain_pipeline.data.dialogue import RowError
from itrain_pipeline.data.formats import find_tools
from itrain_pipeline.evals import bfcl
from itrain_pipeline.evals.bfcl import judge, load_items
from itrain_pipeline.evals.bfcl_data import BfclItem, gold_calls
from itrain_pipeline.records import ToolCall, to_json
from itrain_pipeline.timelimit import TimeLimitError, time_limit
from itrain_pipeline.toolcalls.bare import read_bare_answer
from itrain_pipeline.toolcalls.beginnings import may_become, opens_call
from itrain_pipeline.toolcalls.literals import MAX_DEPTH
from itrain_pipeline.toolcalls.parse import MAX_CHARACTERS, parse
from itrain_pipeline.toolcalls.serialise import serialise
from itrain_pipeline.toolcalls.steps import boundaries

FORMATS = ("pythonic", "hermes", "llama")
CODE = (
    "import os; open({path}, 'w')",
    "__import__('builtins').open({path}, 'w')",
    "eval(\"open({path}, 'w')\")",
    "exec(compile(\"open({path}, 'w')\", '', 'exec'))",
    "(lambda: open({path}, 'w'))()",
    "[open({path}, 'w') for _ in range(1)]",
    "{{**{{'a': open({path}, 'w')}}}}",
    "f'{{open({path}, \"w\")}}'",
    "getattr(__builtins__, 'open')({path}, 'w')",
    "().__class__.__base__.__subclasses__()",
    "(x := open({path}, 'w'))",
    "open({path}, 'w') if True else 0",
    "'a' 'b' % open({path}, 'w')",
    "[0] * 10 ** 10",
    "9 ** 9 ** 9",
    "'x' * 10 ** 10",
    "[i for i in range(10 ** 12)]",
    "ｏｐｅｎ({path}, 'w')",
    "о\u202epen({path}, 'w')",
    "\u200bopen({path}, 'w')",
    "print\x00(open({path}, 'w'))",
)
"""Expressions that Python would run, or that would fill the memory; among them names that Python folds to `open`."""
ANSWERS = {
    "pythonic": ("[{code}]", "[f(a={code})]", "{code}", "[f(a=1), {code}]", "[f({code}=1)]", "[f(**{code})]"),
    "hermes": ('<tool_call>{{"name": "f", "arguments": {{"a": {code}}}}}</tool_call>', "<tool_call>{code}</tool_call>"),
    "llama": ('{{"name": "f", "parameters": {{"a": {code}}}}}', '{{"name": {code}, "parameters": {{}}}}'),
}  # fmt: skip


@pytest.mark.parametrize("call_format", FORMATS)
@pytest.mark.parametrize("number", range(len(CODE)))
@pytest.mark.timeout(30)
def test_code_is_never_run_and_what_is_read_are_json_values(number: int, call_format: str, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    code = CODE[number].format(path=repr(str(mark)))
    for frame in (frame for frames in ANSWERS.values() for frame in frames):
        text = frame.format(code=code)
        found = parse(text, call_format)
        bare = read_bare_answer(text, call_format)
        may_become(text, [ToolCall(name="f", arguments={"a": 1})], call_format)
        list(boundaries(text.encode()))
        for call in (*found.calls, *bare):
            assert json.loads(to_json(call))["name"] == call.name
            assert serialise([call], "hermes")
    assert not mark.exists()


LENGTH = 60_000
SLOW = {
    "blanks behind a parameter": "[f(a" + " " * LENGTH + "x",
    "blanks behind a bracket": "[" + " " * LENGTH + "x",
    "many brackets with blanks": ("[" + " " * 100) * (LENGTH // 100) + "x",
    "line ends behind a parameter": "[f(a" + "\n" * LENGTH + "x",
    "parentheses": "[a" + "(b)" * (LENGTH // 3),
    "open brackets": "[" * LENGTH,
    "open lists with values": "[1," * (LENGTH // 3),
    "open calls": "[f(a=" * (LENGTH // 5),
    "open dictionaries": "[f(a=" + "{'a':" * (LENGTH // 5),
    "open blocks": '<tool_call>{"name": "f", "arguments": ' * (LENGTH // 38),
    "open objects": '{"name": "f", "parameters": {' * (LENGTH // 28),
    "quotes": "[f(a='" + "' " * (LENGTH // 2),
    "quotes before names": "[f(a='" + "',b" * (LENGTH // 3),
    "escapes": "[f(a='" + "\\" * LENGTH,
    "fences": "```\n" * (LENGTH // 4),
    "thoughts": "<think>" * (LENGTH // 7) + "</think>",
    "digits": "[f(a=" + "1" * LENGTH + ")]",
    "names": "[" + "a " * (LENGTH // 2) + "(x=1)]",
}
"""Texts on which a regular expression, or a reader that starts anew at each bracket, takes a power of their length."""


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.timeout(120)
def test_no_text_takes_a_power_of_its_length(name: str) -> None:
    """Before, blanks took 16 s at 100,000 characters and four times as much at each doubling."""
    text, started = SLOW[name], time.process_time()
    for call_format in FORMATS:
        parse(text, call_format)
        read_bare_answer(text, call_format)
        opens_call(text, call_format)
        may_become(text, [ToolCall(name="f", arguments={"a": "x"})], call_format)
    assert time.process_time() - started < 8


def test_an_answer_longer_than_any_model_writes_is_not_read() -> None:
    call = "[f(a='" + "x" * (MAX_CHARACTERS - 9) + "')]"
    assert len(parse(call, "pythonic").calls) == 1
    assert "allowed are" in str(parse(call + " ", "pythonic").error)


@pytest.mark.parametrize("call_format", FORMATS)
def test_values_are_read_as_deep_as_the_bound_and_numbers_as_long(call_format: str) -> None:
    def read(value: str) -> Any:
        text = {
            "pythonic": f"[f(a={value})]",
            "hermes": f'<tool_call>{{"name": "f", "arguments": {{"a": {value}}}}}</tool_call>',
            "llama": f'{{"name": "f", "parameters": {{"a": {value}}}}}',
        }[call_format]
        return parse(text, call_format)

    assert read("[" * 60 + "]" * 60).calls
    assert f"nested deeper than {MAX_DEPTH}" in str(read("[" * 100_000).error)
    assert read("9" * 400).calls
    assert "a number has 401 characters" in str(read("9" * 401).error)
    assert "out of range" in str(read("1e999").error)


def test_a_number_that_no_float_holds_is_compared_and_not_converted() -> None:
    """Before, such a right answer ended the rollout with an OverflowError."""
    wanted = [ToolCall(name="f", arguments={"n": 10**399})]
    text = serialise(wanted, "pythonic")
    assert all(may_become(text[:end], wanted, "pythonic") for end in range(len(text) + 1))
    assert not may_become("[f(n=7)", wanted, "pythonic")
    assert may_become("[f(n=1.0", [ToolCall(name="f", arguments={"n": 1})], "pythonic")


@pytest.mark.timeout(60)
def test_a_list_of_tools_is_looked_for_in_the_first_hundred_places() -> None:
    for text in ("[" * 200_000, "[{" * 100_000, "[ " * 100_000, '["' * 100_000):
        with pytest.raises(RowError, match="no JSON list of tools"):
            find_tools(text)
    assert find_tools("[see] [1] " * 1000 + '[{"name": "f"}]') == [{"name": "f"}]


# BFCL's checker ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def items() -> list[BfclItem]:
    return load_items(("simple_javascript", "simple_java", "simple_python", "multiple", "live_simple"))


def nested(depth: int) -> list[Any]:
    return [nested(depth - 1)] if depth else []


VALUES: tuple[Any, ...] = (
    *(10**399, -(10**399), 1e308, nested(60), {"a": {"b": {}}}, {"": ""}, [], None, True, "", "\0", "\ud7ff\U0010ffff"),
    *("__import__('os').system('true')", "new HashMap<" + ">" * 2000, "new ArrayList<>() {{" + "add(1" * 200),
    *("[" * 2000, "{" + "a:" * 1000, "'", '"', "'a", "9" * 5000, "-", "1n", "1L", "1e5000f"),
)  # fmt: skip


@pytest.mark.timeout(300)
def test_no_value_ends_the_checker_or_counts_as_right(items: list[BfclItem]) -> None:
    """Before, a whole number that no float holds ended the evaluation."""
    for category in sorted({item.category for item in items}):
        for item in [item for item in items if item.category == category][:12]:
            gold = gold_calls(item)
            for value in VALUES:
                calls = [ToolCall(name=g.name, arguments=dict.fromkeys(g.parameters, value)) for g in gold]
                verdict = judge(item, calls)
                if not any(p.optional or value in p.allowed for g in gold for p in g.parameters.values()):
                    assert not verdict.correct, (item.id, value)


@pytest.mark.timeout(120)
def test_an_array_on_which_the_official_expression_never_ends_is_a_wrong_answer(
    items: list[BfclItem], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, these 165 characters of a model ended an evaluation for good: 18 s at 26 brackets, twice that at 27."""
    item = next(item for item in items if item.id == "simple_javascript_3")
    monkeypatch.setattr(bfcl, "CHECK_SECONDS", 1.0)
    (gold,) = gold_calls(item)
    arguments = {name: parameter.allowed[0] for name, parameter in gold.parameters.items()}
    endless = "[[a]" + ",[a]" * 40 + "x"
    started = time.monotonic()
    verdict = judge(item, [ToolCall(name=gold.name, arguments={**arguments, "coordinates": endless})])
    assert time.monotonic() - started < 10
    assert not verdict.correct
    assert "checker_raised:time_limit" in verdict.detail
    assert judge(item, [ToolCall(name=gold.name, arguments={**arguments, "coordinates": "[60, 30]"})]).correct


@pytest.mark.timeout(60)
def test_a_time_limit_ends_what_catches_it_too_and_leaves_other_alarms_alone() -> None:
    def stubborn() -> None:
        while True:
            try:
                time.sleep(10)
            except TimeLimitError:
                return

    before = signal.getitimer(signal.ITIMER_REAL)[0]
    with pytest.raises(TimeLimitError), time_limit(0.2):
        stubborn()
    with time_limit(0.2):
        pass
    time.sleep(0.3)
    after = signal.getitimer(signal.ITIMER_REAL)[0]
    assert before == 0 or 0 < after < before
