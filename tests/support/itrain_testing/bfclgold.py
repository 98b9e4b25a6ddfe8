"""BFCL's gold as an answer would write it: first allowed values, Java and JavaScript as source text; dialogues."""

from __future__ import annotations

import ast
import importlib
import inspect
from typing import Any

from itrain_contract.bfcl import MULTI_TURN
from itrain_pipeline.evals.bfcl import official
from itrain_pipeline.evals.bfcl_data import BfclItem
from itrain_pipeline.records import ToolCall
from itrain_pipeline.toolcalls.serialise import serialise

Dialogue = list[list[str]]
"""[turn][step]: answers as a model writes them, all calls of a turn in one step."""


def gold_answer(item: BfclItem, *, optional: bool = False) -> list[ToolCall]:
    """The first allowed values as calls; parameters outside the schema are left out, required ones never.

    With `optional` those that may be left out are given as well.
    """
    by_name = {function["name"]: function for function in item.functions}
    calls = []
    for answer in item.possible_answers:
        ((name, parameters),) = answer.items()
        schema = by_name[name]["parameters"]
        arguments = {}
        for key, allowed in parameters.items():
            if key not in schema["properties"]:
                continue
            real = [value for value in allowed if value != ""]
            if real and (optional or not ("" in allowed and key not in schema["required"])):
                arguments[key] = literal(item.category, unlist(real[0]), schema["properties"][key])
            elif key in schema["required"] and allowed:
                arguments[key] = literal(item.category, allowed[0], schema["properties"][key])
        calls.append(ToolCall(name=name, arguments=arguments))
    return calls


def unlist(value: Any) -> Any:
    """A dictionary's entries list their allowed values: take the first real one."""
    if isinstance(value, dict):
        lists = {key: choices if isinstance(choices, list) else [choices] for key, choices in value.items()}
        real = {key: [choice for choice in choices if choice != ""] for key, choices in lists.items()}
        return {key: choices[0] for key, choices in real.items() if choices}
    if isinstance(value, list):
        return [unlist(entry) for entry in value]
    return value


def literal(category: str, value: Any, schema: dict[str, Any]) -> Any:
    if category == "simple_java":
        return java(value, schema["type"], schema.get("items", {}).get("type", "any"))
    if category == "simple_javascript":
        return javascript(value, schema["type"])
    return value


def java(value: Any, kind: str, nested: str = "any") -> str:
    """`value` as Java source of a declared type."""
    if kind in ("ArrayList", "Array") and isinstance(value, list):
        # The official converter cuts the quotes in an ArrayList<String> and keeps them in an array.
        if kind == "Array":
            return "new Object[]{" + ", ".join(java(entry, nested) for entry in value) + "}"
        return f"new ArrayList<String>(Arrays.asList({', '.join(java_element(entry, nested) for entry in value)}))"
    if kind == "HashMap" and isinstance(value, dict):
        puts = " ".join(f'put("{key}", {java_element(entry, "String")});' for key, entry in value.items())
        return f"new HashMap<String, Object>() {{{{ {puts} }}}}"
    if isinstance(value, bool):
        return "true" if value else "false"
    suffix = {"long": "L", "float": "f"}.get(kind, "")
    return value if isinstance(value, str) else f"{value}{suffix}"


def java_element(value: Any, kind: str) -> str:
    return f'"{value}"' if isinstance(value, str) and kind == "String" else java(value, kind)


def javascript(value: Any, kind: str) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"'{key}': {javascript_element(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(javascript_element(entry) for entry in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else f"{value}n" if kind == "Bigint" else str(value)


def javascript_element(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str) else javascript(value, "any")


def gold_dialogues() -> dict[str, Dialogue]:
    """Every gold dialogue as text in our call format; an argument by position gets its method's parameter name."""
    package = official()
    paths = importlib.import_module("bfcl_eval.constants.executable_backend_config").CLASS_FILE_PATH_MAPPING
    found = {}
    for category in MULTI_TURN:
        for entry, answer in zip(package.load_entries(category), package.load_answers(category), strict=True):
            classes = [getattr(importlib.import_module(paths[c]), c) for c in entry["involved_classes"]]
            turns = [[written(call, classes) for call in turn] for turn in answer["ground_truth"]]
            found[entry["id"]] = [[serialise(turn, "pythonic")] if turn else [] for turn in turns]
    return found


def written(text: str, classes: list[type]) -> ToolCall:
    call = ast.parse(text, mode="eval").body
    assert isinstance(call, ast.Call)
    assert isinstance(call.func, ast.Name)
    method = next(getattr(cls, call.func.id) for cls in classes if hasattr(cls, call.func.id))
    names = list(inspect.signature(method).parameters)[1:]
    by_position = {name: ast.literal_eval(value) for name, value in zip(names, call.args, strict=False)}
    by_name = {str(argument.arg): ast.literal_eval(argument.value) for argument in call.keywords}
    return ToolCall(name=call.func.id, arguments=by_position | by_name)
