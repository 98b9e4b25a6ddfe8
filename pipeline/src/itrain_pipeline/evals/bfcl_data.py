"""BFCL's single-turn items in our own types, and what counts as a right value. Pure: no official code, no files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from itrain_contract.bfcl import CATEGORIES, COLLECTIONS, MULTI_TURN, opened
from itrain_pipeline.errors import ConfigError
from itrain_pipeline.evals.errors import ErrorClass, GoldCall, GoldParameter, equal_values, parameter_names
from itrain_pipeline.records import Message, ToolCall

Language = Literal["python", "java", "javascript"]

GOLD_DEFECTS = frozenset(
    {
        "live_simple_106-63-0",
        "live_simple_112-68-0",
        "live_multiple_862-181-3",
        "live_multiple_964-207-0",
        "simple_java_36",
        "simple_java_64",
        "simple_java_65",
    }
)
"""Items of the pinned version whose own gold answer the official checker refuses: nobody can score 100 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BfclItem:
    """One question. `tools` are shown to the model (with the official language hint), `functions` go to the checker.

    `possible_answers` is BFCL's own form, `[{name: {parameter: [allowed, …]}}]`; empty for (ir)relevance.
    """

    id: str
    category: str
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...]
    functions: tuple[dict[str, Any], ...]
    possible_answers: tuple[dict[str, dict[str, list[Any]]], ...]


def select_categories(requested: Sequence[str]) -> tuple[str, ...]:
    """The categories asked for in BFCL's order; empty means the single-turn ones. Collections (`live`, …) are opened.

    Raises ConfigError for a name that is no category of its first two parts.
    """
    for name in requested:
        if name not in COLLECTIONS and name not in CATEGORIES and name not in MULTI_TURN:
            allowed = ", ".join((*COLLECTIONS, *CATEGORIES, *MULTI_TURN))
            raise ConfigError(f"stages.evaluate.categories: no BFCL category {name!r}; allowed: {allowed}")
    return opened(requested)


def language(category: str) -> Language:
    if category == "simple_java":
        return "java"
    return "javascript" if category == "simple_javascript" else "python"


def wants_call(category: str) -> bool | None:
    """For (ir)relevance, whether any call is right; None for categories with a gold answer."""
    if category.endswith("irrelevance"):
        return False
    return True if category.endswith("relevance") else None


def checker_calls(calls: Iterable[ToolCall], category: str) -> list[dict[str, dict[str, Any]]]:
    """Calls as the official checker takes them. Java and JavaScript values travel as source text."""
    if language(category) == "python":
        return [{call.name: dict(call.arguments)} for call in calls]
    return [{call.name: {key: source_text(value) for key, value in call.arguments.items()}} for call in calls]


def source_text(value: Any) -> str:
    """A parsed literal as Java or JavaScript source: what the official decoder would have cut from the text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def gold_calls(item: BfclItem) -> tuple[GoldCall, ...]:
    """The gold answer for the structural diff; an empty string among the allowed values marks an optional one."""
    schemas = {function["name"]: parameter_names(function) for function in item.functions}
    return tuple(
        GoldCall(
            name=name,
            parameters={
                key: GoldParameter(allowed=tuple(v for v in values if v != "") or ("",), optional="" in values)
                for key, values in parameters.items()
            },
            schema=schemas.get(name, frozenset()),
        )
        for answer in item.possible_answers
        for name, parameters in answer.items()
    )


def accepts(answer: Any, allowed: Any) -> bool:
    """Whether BFCL takes `answer` for one allowed value: strings without case and ` ,./-_*^`, dictionaries whose
    every entry lists its own allowed values, an integer for a number."""
    if isinstance(answer, str) and isinstance(allowed, str):
        return standardize(answer) == standardize(allowed)
    if isinstance(answer, dict) and isinstance(allowed, dict):
        known = answer.keys() <= allowed.keys()
        return known and all(_entry_accepts(answer, key, values) for key, values in allowed.items())
    if isinstance(answer, list | tuple) and isinstance(allowed, list | tuple):
        return len(answer) == len(allowed) and all(map(accepts, answer, allowed))
    return equal_values(answer, allowed)


def _entry_accepts(answer: Mapping[str, Any], key: str, values: Any) -> bool:
    choices = values if isinstance(values, list | tuple) else (values,)
    if key not in answer:
        return "" in choices
    return any(accepts(answer[key], choice) for choice in choices)


def standardize(text: str) -> str:
    """The official comparison form of a string."""
    return re.sub(r"[ ,./\-_*^]", "", text).lower().replace("'", '"')


_OFFICIAL_CLASSES: tuple[tuple[str, ErrorClass], ...] = (
    ("wrong_count", ErrorClass.CALL_COUNT),
    ("wrong_func_name", ErrorClass.TOOL_NAME),
    ("unexpected_param", ErrorClass.EXTRA_PARAMETER),
    ("missing_", ErrorClass.MISSING_PARAMETER),
    ("type_error", ErrorClass.PARAMETER_TYPE),
    ("ast_decoder", ErrorClass.FORMAT),
)


def official_class(error_type: str) -> ErrorClass:
    """The class of an official error string, for answers in which the diff finds nothing (evaluation document)."""
    for fragment, error_class in _OFFICIAL_CLASSES:
        if fragment in error_type:
            return error_class
    return ErrorClass.PARAMETER_VALUE
