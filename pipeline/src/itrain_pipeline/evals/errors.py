"""What is wrong with an answer: the structural diff between its calls and the gold calls.

The official checker stops at its first finding and names only 35 % of renamed parameters rightly; this diff looks at
the whole answer (evaluation document, "Error classes"). Pure; knows no benchmark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from enum import StrEnum
from typing import Any

from itrain_pipeline.records import ToolCall

MatchValue = Callable[[Any, Any], bool]
"""(answer's value, one allowed value) -> whether the benchmark accepts it."""


class ErrorClass(StrEnum):
    """In the order in which one answer's findings are ranked: the first one names the answer."""

    FORMAT = "format"
    HALLUCINATED_CALL = "hallucinated_call"
    MISSED_CALL = "missed_call"
    CALL_COUNT = "number_of_calls"
    TOOL_NAME = "tool_name"
    PARAMETER_NAME = "parameter_name"
    MISSING_PARAMETER = "missing_parameter"
    EXTRA_PARAMETER = "extra_parameter"
    PARAMETER_TYPE = "parameter_type"
    PARAMETER_VALUE = "parameter_value"
    STATE_MISMATCH = "state_mismatch"
    """Of a dialogue: after a turn its backends are in another state than after the gold calls."""
    RESULT_MISMATCH = "result_mismatch"
    """Of a dialogue: what a turn's gold calls return is not among what the calls so far returned."""
    STEP_LIMIT = "step_limit"
    """Of a dialogue: a turn was ended after too many steps."""
    BACKEND_LIMIT = "backend_limit"
    """Of a dialogue: its calls ran out of time or ended the process in which they ran."""
    CONTEXT_OVERFLOW = "context_overflow"
    """Of a dialogue: it outgrew the model's context before its end."""
    NOT_ASKED = "not_asked"
    """The prompt leaves no room for an answer or cannot be rendered; counted as wrong, never dropped."""


PAPER_SHARES: Mapping[ErrorClass, float] = {ErrorClass.PARAMETER_VALUE: 0.51, ErrorClass.PARAMETER_NAME: 0.26}
"""Shares of all errors on BFCL (arXiv 2501.09766, section 1)."""

ALIKE = 0.6
"""Likeness from which two names are taken for one parameter."""

_RANK = {error_class: rank for rank, error_class in enumerate(ErrorClass)}


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldParameter:
    """The values that count as right; an optional parameter may be left out."""

    allowed: tuple[Any, ...]
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldCall:
    name: str
    parameters: Mapping[str, GoldParameter] = field(default_factory=dict)
    schema: frozenset[str] = frozenset()
    """Parameter names that the tool knows; an unknown name beside a missing one is a renamed parameter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    error_class: ErrorClass
    tool: str = ""
    parameter: str = ""
    detail: str = ""


def exact_gold(calls: Iterable[ToolCall], tools: Sequence[Mapping[str, Any]] = ()) -> tuple[GoldCall, ...]:
    """Gold calls whose every value must be met exactly; `tools` give the schema's parameter names."""
    schemas = {str(tool.get("name")): parameter_names(tool) for tool in tools}
    return tuple(
        GoldCall(
            name=call.name,
            parameters={name: GoldParameter(allowed=(value,)) for name, value in call.arguments.items()},
            schema=schemas.get(call.name, frozenset()),
        )
        for call in calls
    )


def parameter_names(tool: Mapping[str, Any]) -> frozenset[str]:
    """Names below `parameters.properties`; empty where a tool has none."""
    parameters = tool.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    return frozenset(properties) if isinstance(properties, Mapping) else frozenset()


def equal_values(answer: Any, gold: Any) -> bool:
    """Equality of JSON values: 1 equals 1.0, and a boolean equals only a boolean."""
    if isinstance(answer, bool) or isinstance(gold, bool):
        return isinstance(answer, bool) and isinstance(gold, bool) and answer == gold
    if isinstance(answer, list | tuple) and isinstance(gold, list | tuple):
        return len(answer) == len(gold) and all(map(equal_values, answer, gold))
    if isinstance(answer, dict) and isinstance(gold, dict):
        return answer.keys() == gold.keys() and all(equal_values(answer[key], gold[key]) for key in gold)
    return bool(answer == gold)


def classify(
    calls: Sequence[ToolCall], gold: Sequence[GoldCall], *, well_formed: bool = True, match: MatchValue = equal_values
) -> tuple[Finding, ...]:
    """All findings, the one that names the answer first; empty where nothing differs.

    `well_formed` False: the output tried a call that cannot be read. Calls are compared without regard to their
    order, each gold call with the answer's call that differs least.
    """
    if not well_formed:
        return (Finding(error_class=ErrorClass.FORMAT, detail="the output is not a readable call"),)
    if calls and not gold:
        return (Finding(error_class=ErrorClass.HALLUCINATED_CALL, tool=calls[0].name),)
    if gold and not calls:
        return (Finding(error_class=ErrorClass.MISSED_CALL, tool=gold[0].name),)
    findings: list[Finding] = []
    if len(calls) != len(gold):
        detail = f"{len(calls)} calls instead of {len(gold)}"
        findings.append(Finding(error_class=ErrorClass.CALL_COUNT, detail=detail))
    for call, wanted in assign_calls(calls, gold, match):
        findings += compare_call(call, wanted, match)
    return tuple(sorted(findings, key=lambda finding: _RANK[finding.error_class]))


def assign_calls(
    calls: Sequence[ToolCall], gold: Sequence[GoldCall], match: MatchValue = equal_values
) -> list[tuple[ToolCall, GoldCall]]:
    """Pairs of answer and gold calls, cheapest differences first, ties in written order; each call once."""
    costs = sorted((_cost(call, wanted, match), g, c) for g, wanted in enumerate(gold) for c, call in enumerate(calls))
    used_gold: set[int] = set()
    used_calls: set[int] = set()
    pairs: list[tuple[int, int]] = []
    for _, g, c in costs:
        if g not in used_gold and c not in used_calls:
            used_gold.add(g)
            used_calls.add(c)
            pairs.append((g, c))
    return [(calls[c], gold[g]) for g, c in sorted(pairs)]


def compare_call(call: ToolCall, gold: GoldCall, match: MatchValue = equal_values) -> list[Finding]:
    """The findings of one call against one gold call. A wrong tool hides its parameters unless they are the same."""
    if call.name != gold.name:
        return [Finding(error_class=ErrorClass.TOOL_NAME, tool=gold.name, detail=f"calls {call.name!r}")]
    findings: list[Finding] = []
    for name in call.arguments.keys() & gold.parameters.keys():
        error = value_error(call.arguments[name], gold.parameters[name].allowed, match)
        if error:
            findings.append(Finding(error_class=error, tool=gold.name, parameter=name, detail=_shown(call, name)))
    missing = [name for name, p in gold.parameters.items() if name not in call.arguments and not p.optional]
    extra = [name for name in call.arguments if name not in gold.parameters]
    required = _renamed(call, gold, missing, extra, match)
    missing = [name for name in missing if name not in {old for old, _ in required}]
    extra = [name for name in extra if name not in {new for _, new in required}]
    optional = _renamed_optionals(call, gold, extra, match)
    extra = [name for name in extra if name not in {new for _, new in optional}]
    for old, new in (*required, *optional):
        findings.append(
            Finding(error_class=ErrorClass.PARAMETER_NAME, tool=gold.name, parameter=old, detail=f"named {new!r}")
        )
    findings += [Finding(error_class=ErrorClass.MISSING_PARAMETER, tool=gold.name, parameter=name) for name in missing]
    findings += [Finding(error_class=ErrorClass.EXTRA_PARAMETER, tool=gold.name, parameter=name) for name in extra]
    return sorted(findings, key=lambda finding: (_RANK[finding.error_class], finding.parameter))


def value_error(value: Any, allowed: Sequence[Any], match: MatchValue = equal_values) -> ErrorClass | None:
    """None where a value is accepted; a type error where no allowed value has its JSON type."""
    if any(match(value, candidate) for candidate in allowed):
        return None
    if allowed and not any(_same_type(value, candidate) for candidate in allowed):
        return ErrorClass.PARAMETER_TYPE
    return ErrorClass.PARAMETER_VALUE


def json_type(value: Any) -> str:
    """The JSON type of a value; integer and number differ, booleans are no numbers."""
    if value is None:
        return "null"
    for name, types in _JSON_TYPES.items():
        if isinstance(value, types):
            return name
    return type(value).__name__


_JSON_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "boolean": bool,
    "integer": int,
    "number": float,
    "string": str,
    "array": (list, tuple),
    "object": dict,
}


def _same_type(value: Any, gold: Any) -> bool:
    """One type, to one level of nesting; an integer stands for a number, never the reverse."""
    if json_type(value) != json_type(gold) and not (json_type(value) == "integer" and json_type(gold) == "number"):
        return False
    if isinstance(value, list | tuple) and value and gold:
        return {json_type(item) for item in value} <= {json_type(item) for item in gold}
    return True


def _renamed(
    call: ToolCall, gold: GoldCall, missing: Sequence[str], extra: Sequence[str], match: MatchValue
) -> list[tuple[str, str]]:
    """(gold name, written name): first by an accepted value, then names that the tool does not know by likeness."""
    found: list[tuple[str, str]] = []

    def free(candidates: Sequence[str], at: int) -> list[str]:
        taken = {pair[at] for pair in found}
        return [name for name in candidates if name not in taken]

    for old in missing:
        for new in free(extra, 1):
            if value_error(call.arguments[new], gold.parameters[old].allowed, match) is None:
                found.append((old, new))
                break
    unknown = [name for name in free(extra, 1) if name not in gold.schema]
    ranked = sorted(
        ((-SequenceMatcher(a=old, b=new).ratio(), old, new) for old in free(missing, 0) for new in unknown),
    )
    for _, old, new in ranked:
        if old in free(missing, 0) and new in free(unknown, 1):
            found.append((old, new))
    return found


def _renamed_optionals(
    call: ToolCall, gold: GoldCall, extra: Sequence[str], match: MatchValue
) -> list[tuple[str, str]]:
    """(gold name, written name) of optional parameters. Their absence is no sign, so name and value both have to be
    like: an unknown name that resembles one left out, with a value that would be right there."""
    found: list[tuple[str, str]] = []
    left_out = [
        name for name, parameter in gold.parameters.items() if parameter.optional and name not in call.arguments
    ]
    for new in extra:
        if new in gold.schema:
            continue
        taken = {old for old, _ in found}
        alike = [
            (_likeness(old, new), old)
            for old in left_out
            if old not in taken and value_error(call.arguments[new], gold.parameters[old].allowed, match) is None
        ]
        best = max(alike, default=(0.0, ""))
        if best[0] >= ALIKE:
            found.append((best[1], new))
    return found


def _likeness(old: str, new: str) -> float:
    """0 to 1; one name within the other is likeness enough (`unit`, `unit_name`)."""
    a, b = (name.lower().replace("_", "").replace("-", "") for name in (old, new))
    return max(SequenceMatcher(a=a, b=b).ratio(), ALIKE if a in b or b in a else 0.0)


def _cost(call: ToolCall, gold: GoldCall, match: MatchValue) -> float:
    """How far a call is from a gold call: another tool weighs more than any difference in parameters."""
    findings = compare_call(ToolCall(name=gold.name, arguments=call.arguments), gold, match)
    parameters = math.fsum(1.0 for _ in findings) / (1 + len(gold.parameters) + len(call.arguments))
    return parameters + (0.0 if call.name == gold.name else 2.0)


def _shown(call: ToolCall, name: str) -> str:
    text = repr(call.arguments[name])
    return text if len(text) <= 80 else text[:77] + "..."
