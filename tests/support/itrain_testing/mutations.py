"""Right answers made wrong on purpose: one planted mistake of a known class, written as a model would write it.

It reads BFCL's own data (functions and allowed values) and shares no code with the classifier or the checker, so that
what it plants says something about both. What it plants is surely wrong: a new value is unlike every allowed one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Call = tuple[str, dict[str, Any]]
"""(tool, arguments)."""
Functions = dict[str, dict[str, Any]]
"""BFCL's functions by name."""


@dataclass(frozen=True)
class Task:
    """A right answer with what is needed to spoil it. `allowed` is BFCL's gold: `[{tool: {parameter: [value, …]}}]`."""

    calls: list[Call]
    functions: Functions
    allowed: list[dict[str, dict[str, list[Any]]]]
    literal: bool
    """Values are Python literals; else source text of another language, whose values are left alone."""


@dataclass(frozen=True)
class Mutant:
    kind: str
    text: str


def mutants(task: Task, rng: random.Random) -> Iterator[Mutant]:
    """One mutant of every class that the answer allows."""
    for kind, plant in PLANTERS.items():
        if not task.literal and kind in ("parameter_value", "parameter_type"):
            continue
        text = plant(task, rng)
        if text is not None:
            yield Mutant(kind, text)


def write(calls: list[Call]) -> str:
    return "[" + ", ".join(f"{tool}({', '.join(f'{k}={v!r}' for k, v in args.items())})" for tool, args in calls) + "]"


def wrong_value(task: Task, rng: random.Random) -> str | None:
    return _change(task, rng, _other_value)


def wrong_type(task: Task, rng: random.Random) -> str | None:
    return _change(task, rng, _other_type)


def _change(task: Task, rng: random.Random, other: Callable[[Any, random.Random], Any]) -> str | None:
    """One argument of one call replaced, where nothing like the new value is allowed to any call of that tool."""
    for at, key in _places(task, rng):
        tool, arguments = task.calls[at]
        new = other(arguments[key], rng)
        choices = [value for gold in task.allowed for value in gold.get(tool, {}).get(key, [])]
        if new is None or any(_alike(new, choice) for choice in choices):
            continue
        if other is _other_type and any(_kind(new) == _kind(choice) for choice in choices if choice != ""):
            continue
        if other is _other_type and not _type_counts(task.functions[tool], key, choices):
            continue
        return write(_with(task.calls, at, {**arguments, key: new}))
    return None


def _type_counts(function: dict[str, Any], key: str, choices: list[Any]) -> bool:
    """False where the gold itself is of another type than the schema (a variable's name), so that types are free."""
    declared = function["parameters"]["properties"].get(key, {}).get("type")
    expected = {"integer": ("number",), "float": ("number",), "boolean": ("boolean",), "string": ("string",),
                "array": ("array",), "tuple": ("array",), "dict": ("object",)}.get(declared)  # fmt: skip
    real = [choice for choice in choices if choice != ""]
    return expected is not None and all(_kind(choice) in expected for choice in real)


def wrong_name(task: Task, rng: random.Random) -> str | None:
    """A parameter under another name: another style of writing, a shorter or longer word, a typing error."""
    for at, key in _places(task, rng):
        tool, arguments = task.calls[at]
        known = task.functions[tool]["parameters"]["properties"]
        words = [word for word in key.split("_") if word]
        spellings = [
            words[0] + "".join(word.capitalize() for word in words[1:]),
            "-".join(words),
            f"{key}_name",
            f"the_{key}",
            words[-1],
            words[0],
            key[: max(1, len(key) - 1)],
            key[:1] + key[:1] + key[1:],
            key.upper(),
            f"{key}s",
        ]
        fresh = [name for name in spellings if name not in known and name not in arguments]
        if not fresh:
            continue
        new = rng.choice(fresh)
        renamed = {(new if name == key else name): value for name, value in arguments.items()}
        return write(_with(task.calls, at, renamed))
    return None


def missing(task: Task, rng: random.Random) -> str | None:
    for at, key in _places(task, rng):
        tool, arguments = task.calls[at]
        if key in task.functions[tool]["parameters"].get("required", ()):
            return write(_with(task.calls, at, {name: value for name, value in arguments.items() if name != key}))
    return None


def extra(task: Task, rng: random.Random) -> str | None:
    """A parameter too many: an invented one, or one of the tool's own that the gold does not have."""
    at = rng.randrange(len(task.calls))
    tool, arguments = task.calls[at]
    known = task.functions[tool]["parameters"]["properties"]
    golden = {name for gold in task.allowed for name in gold.get(tool, {})}
    own = [name for name in known if name not in golden and name not in arguments]
    invented = [name for name in ("verbose", "language", "max_retries", "callback_url") if name not in known]
    name = rng.choice(own) if own and rng.random() < 0.3 else rng.choice(invented)
    value = {"verbose": True, "language": "Klingon", "max_retries": 9173}.get(name, "https://example.org/hook")
    return write(_with(task.calls, at, {**arguments, name: value}))


def wrong_tool(task: Task, rng: random.Random) -> str | None:
    """A tool that does not exist, or another one of those offered, with the right arguments."""
    at = rng.randrange(len(task.calls))
    tool, arguments = task.calls[at]
    others = [name for name in task.functions if name not in {called for called, _ in task.calls}]
    made = [f"{tool}_v2", f"do_{tool}", tool.swapcase(), tool[:-1], tool.rpartition(".")[2] + "_now"]
    made = [name for name in made if name and name not in task.functions]
    name = rng.choice(others) if others and rng.random() < 0.5 else rng.choice(made)
    calls = list(task.calls)
    calls[at] = (name, arguments)
    return write(calls)


def wrong_count(task: Task, rng: random.Random) -> str | None:
    calls = list(task.calls)
    at = rng.randrange(len(calls))
    others = [name for name in task.functions if name != calls[at][0]]
    choices = ["twice", *(["drop"] if len(calls) > 1 else []), *(["more"] if others else [])]
    match rng.choice(choices):
        case "twice":
            calls.insert(rng.randrange(len(calls) + 1), calls[at])
        case "drop":
            del calls[at]
        case _:
            calls.append((rng.choice(others), {}))
    return write(calls)


def unreadable(task: Task, rng: random.Random) -> str | None:
    """A call that stops halfway, lacks a parenthesis or a quote, or gives its values by position."""
    tool, arguments = task.calls[0]
    whole = write(task.calls)
    values = ", ".join(map(repr, arguments.values()))
    broken = [
        f"[{tool}({values})]" if arguments else f"[{tool}(",
        whole[: whole.index("(") + 1 + len(next(iter(arguments), "")) + 1] if arguments else f"[{tool}(",
        whole[:-2],
        f"[{tool}(city=Rome and more)]",
        '{"name": "' + tool + '", "arguments": {}}',
    ]
    return rng.choice(broken)


def missed(task: Task, rng: random.Random) -> str | None:
    return rng.choice(["I cannot help with that.", "[]", "Could you tell me more about what you need?", ""])


PLANTERS: dict[str, Callable[[Task, random.Random], str | None]] = {
    "parameter_value": wrong_value,
    "parameter_type": wrong_type,
    "parameter_name": wrong_name,
    "missing_parameter": missing,
    "extra_parameter": extra,
    "tool_name": wrong_tool,
    "number_of_calls": wrong_count,
    "format": unreadable,
    "missed_call": missed,
}
"""By the class that the mistake belongs to. The tenth, a call where none is due, is any call at all."""


def hallucinated(functions: list[dict[str, Any]], rng: random.Random) -> Mutant:
    function = rng.choice(functions)
    arguments = dict.fromkeys(function["parameters"].get("required", ()), "x")
    return Mutant("hallucinated_call", write([(function["name"], arguments)]))


def _places(task: Task, rng: random.Random) -> list[tuple[int, str]]:
    """(call, parameter) in a random order."""
    places = [(at, key) for at, (_, arguments) in enumerate(task.calls) for key in arguments]
    return rng.sample(places, len(places))


def _with(calls: list[Call], at: int, arguments: dict[str, Any]) -> list[Call]:
    return [*calls[:at], (calls[at][0], arguments), *calls[at + 1 :]]


def _other_value(value: Any, rng: random.Random) -> Any:
    """Another value of the same type; None where there is none."""
    match value:
        case bool():
            return not value
        case int():
            return rng.choice([value + 1, value * 10 + 3, value + 91237, -value - 7])
        case float():
            return rng.choice([value + 1.5, value * 10 + 0.25])
        case str():
            return rng.choice([f"{value} east wing", "Quartz Harbour", f"x{value}", value[: len(value) // 2] + "qz"])
        case list() if value:
            at = rng.randrange(len(value))
            new = _other_value(value[at], rng)
            changed = [*value[:at], new, *value[at + 1 :]] if new is not None else None
            return rng.choice([one for one in (changed, [*value, value[0]], value[:-1] or None) if one is not None])
        case dict() if value:
            key = rng.choice(sorted(value))
            new = _other_value(value[key], rng)
            return None if new is None else {**value, key: new}
    return None


def _other_type(value: Any, rng: random.Random) -> Any:
    match value:
        case bool():
            return str(value)
        case int() | float():
            return rng.choice([str(value), [value], f"{value} units"])
        case str():
            return rng.choice([4711, [value], {"value": value}])
        case list():
            return str(value) if not value else rng.choice([str(value), {"items": value}])
        case dict():
            return rng.choice([str(value), [*value]])
    return None


def _alike(one: Any, other: Any) -> bool:
    """Equal but for what BFCL forgives in texts and for numbers' types; a dictionary's entries list their choices."""
    if isinstance(one, str) and isinstance(other, str):
        return re.sub(r"[\W_]", "", one).lower() == re.sub(r"[\W_]", "", other).lower()
    if isinstance(one, dict) and isinstance(other, dict):
        choices = {key: value if isinstance(value, list) else [value] for key, value in other.items()}
        given = all(any(_alike(value, choice) for choice in choices.get(key, [])) for key, value in one.items())
        return given and all(key in one or "" in values for key, values in choices.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _kind(value: Any) -> str:
    kinds = ((bool, "boolean"), (int | float, "number"), (str, "string"), (list, "array"), (dict, "object"))
    return next((name for cls, name in kinds if isinstance(value, cls)), "null")
