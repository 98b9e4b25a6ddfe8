"""ACEBench's single-answer part as a plug-in: 12 call categories and 3 in which the model has to say what is wrong.

Data: the folder `data_all/data_en` of github.com/chenchen0103/ACEBench (1,023 items with its agent part), which the
user brings: `data_<category>.json` and `possible_answer/data_<category>.json`, JSON lines with the same ids in the
same order. The agent part needs a simulated user and is not read. The verdicts follow ACEBench's rules but for what
docs/evaluation.md names; the official tool alone makes official numbers.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from itrain_pipeline.errors import ConfigError, DataError
from itrain_pipeline.evals.benchmark import Answer, Item, Judgement, Opening, judged
from itrain_pipeline.evals.bfcl_data import standardize
from itrain_pipeline.evals.errors import (
    ErrorClass,
    Finding,
    GoldCall,
    GoldParameter,
    classify,
    equal_values,
    parameter_names,
)
from itrain_pipeline.evals.metrics import Rate, Score, mean_score
from itrain_pipeline.records import Message

ATOMS: Final = ("bool", "enum", "number", "list", "object_deep", "object_short")
NORMAL: Final = (
    "normal_single_turn_single_function",
    "normal_single_turn_parallel_function",
    "normal_multi_turn_user_adjust",
    "normal_multi_turn_user_switch",
    "normal_similar_api",
    "normal_preference",
    *(f"normal_atom_{kind}" for kind in ATOMS),
)
INCOMPLETE, WRONG_VALUE, IRRELEVANT = "special_incomplete", "special_error_param", "special_irrelevant"
SPECIAL: Final = (INCOMPLETE, WRONG_VALUE, IRRELEVANT)
CATEGORIES: Final = (*NORMAL, *SPECIAL)

PHRASES: Final[Mapping[str, str]] = {
    INCOMPLETE: "Missing necessary parameters",
    WRONG_VALUE: "There is incorrect value",
    IRRELEVANT: "the limitations of the function",
}
"""What an answer has to hold in each special category, word for word."""
_SPECIAL_RULES: Final = (
    "Call nothing where the request cannot be met, and write instead one of these lines. "
    "A value does not fit its description: "
    '["There is incorrect value (value) for the parameters (name) in the conversation history."] '
    "A required parameter is not given: "
    '["Missing necessary parameters (name1, name2) for the api (tool)"] '
    'No function can help: ["Due to the limitations of the function, I cannot solve this problem."]'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AceBench:
    questions: Sequence[Item]
    sha256: str
    name: str = "acebench"

    def items(self) -> Sequence[Item]:
        return self.questions

    def judge(self, item: Item, answer: Answer) -> Judgement:
        return judge_special(item, answer) if item.category in SPECIAL else judge_calls(item, answer)

    def groups(self, rates: Mapping[str, Rate]) -> Mapping[str, Score | None]:
        """Unweighted means over categories, as ACEBench has them; its overall needs the agent part: none is given."""
        parts = {"normal": NORMAL, "special": SPECIAL}
        return {
            f"{name}/accuracy": mean_score([rates[one].score if one in rates else None for one in categories])
            for name, categories in parts.items()
        }

    def info(self) -> Mapping[str, str]:
        return {"acebench_rows_sha256": self.sha256}


def open_acebench(opening: Opening) -> AceBench:
    """The chosen categories, all for none. ConfigError for an unknown one, DataError for rows that do not fit."""
    for name in opening.categories:
        if name not in CATEGORIES:
            raise ConfigError(f"acebench has no category {name!r}; allowed are {', '.join(CATEGORIES)}")
    items: list[Item] = []
    digest = hashlib.sha256()
    for category in CATEGORIES:
        if opening.categories and category not in opening.categories:
            continue
        file = f"data_{category}.json"
        rows, answers = opening.rows(file), opening.rows(f"possible_answer/{file}")
        digest.update(json.dumps([rows, answers], sort_keys=True, ensure_ascii=False).encode())
        if [row.get("id") for row in rows] != [answer.get("id") for answer in answers]:
            raise DataError(f"{file}: questions and possible_answer have other ids or another order")
        pairs = list(enumerate(zip(rows, answers, strict=True), 1))
        made = [read_item(category, row, gold, f"{file} row {number}") for number, (row, gold) in pairs]
        items += opening.first(made)
    return AceBench(questions=items, sha256=digest.hexdigest())


def read_item(category: str, row: Mapping[str, Any], answer: Mapping[str, Any], where: str) -> Item:
    """One question: its conversation stays one text, as ACEBench asks it; the date or the user's profile and, for the
    special categories, the wording that its checker looks for stand in the system message."""
    try:
        tools = tuple(
            {
                "name": function["name"],
                "description": function["description"],
                "parameters": function["parameters"] if "parameters" in function else function["arguments"],
            }
            for function in row["function"]
        )
        gold = read_gold(answer["ground_truth"], tools) if category in NORMAL else _special_gold(category, answer)
        told = [str(row.get("time") or row.get("profile") or ""), _SPECIAL_RULES if category in SPECIAL else ""]
        return Item(
            category=category,
            id=row["id"],
            messages=(
                Message(role="system", content="\n".join(part.strip() for part in told if part.strip())),
                Message(role="user", content=row["question"].strip()),
            ),
            tools=tools,
            gold=gold,
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{where}: not ACEBench's shape ({type(error).__name__}: {error})") from error


def read_gold(truth: Any, tools: Sequence[Mapping[str, Any]]) -> tuple[tuple[GoldCall, ...], ...]:
    """Alternatives of calls. One object is one alternative; a tool called twice has `_1`, `_2` behind its name."""
    schemas = {str(tool["name"]): tool for tool in tools}
    made = []
    for alternative in truth if isinstance(truth, list) else [truth]:
        calls = []
        for written, parameters in alternative.items():
            name = written if written in schemas else re.sub(r"_\d+$", "", written)
            if name not in schemas:
                raise KeyError(f"the gold calls {written!r}, which is none of its functions")
            required = schemas[name]["parameters"].get("required", ())
            calls.append(
                GoldCall(
                    name=name,
                    parameters={
                        key: GoldParameter(allowed=(value,), optional=key not in required)
                        for key, value in parameters.items()
                    },
                    schema=parameter_names(schemas[name]),
                )
            )
        made.append(tuple(calls))
    return tuple(made)


def _special_gold(category: str, answer: Mapping[str, Any]) -> tuple[tuple[ErrorClass, str], ...]:
    """(what its absence is, text) for every text that the answer must hold beside the category's phrase."""
    if category == IRRELEVANT:
        return ()
    wanted: list[tuple[ErrorClass, str]] = []
    for name, parts in answer["ground_truth"].items():
        if category == INCOMPLETE:
            wanted.append((ErrorClass.TOOL_NAME, name))
        lacking = ErrorClass.MISSING_PARAMETER if category == INCOMPLETE else ErrorClass.PARAMETER_VALUE
        wanted += [(lacking, str(part)) for part in parts]
    return tuple(wanted)


def judge_calls(item: Item, answer: Answer) -> Judgement:
    """Right with the calls of one alternative, in any order; the nearest alternative's findings are told."""
    found = [classify(answer.calls, gold, well_formed=answer.well_formed, match=accepts) for gold in item.gold]
    return judged(min(found, key=_distance))


def _distance(findings: Sequence[Finding]) -> tuple[int, int]:
    """Fewest findings first, then the one that leaves most of the call right: a value before a name."""
    order = list(ErrorClass)
    return len(findings), -min((order.index(finding.error_class) for finding in findings), default=0)


def judge_special(item: Item, answer: Answer) -> Judgement:
    """Right with the category's phrase and everything that has to be named, in the text as it stands."""
    phrase = PHRASES[item.category]
    if phrase not in answer.text:
        error = ErrorClass.HALLUCINATED_CALL if answer.calls else ErrorClass.FORMAT
        return Judgement(correct=False, error_class=error, detail=f"does not say {phrase!r}")
    for error, text in item.gold:
        if text not in answer.text:
            return Judgement(correct=False, error_class=error, detail=f"does not name {text!r}")
    return Judgement(correct=True)


def accepts(answer: Any, gold: Any) -> bool:
    """ACEBench's values: a text holds the gold text, both without case and ` ,./-_*^`; in a list texts are equal;
    an object has the gold's keys; `"true"` and `"false"` are booleans."""
    if isinstance(gold, bool) and isinstance(answer, str):
        return answer == str(gold).lower()
    if isinstance(answer, str) and isinstance(gold, str):
        return standardize(gold) in standardize(answer)
    if isinstance(answer, dict) and isinstance(gold, dict):
        return answer.keys() == gold.keys() and all(accepts(answer[key], gold[key]) for key in gold)
    if isinstance(answer, list | tuple) and isinstance(gold, list | tuple):
        return len(answer) == len(gold) and all(map(_entry_accepts, answer, gold))
    return equal_values(answer, gold)


def _entry_accepts(answer: Any, gold: Any) -> bool:
    if isinstance(answer, str) and isinstance(gold, str):
        return standardize(answer) == standardize(gold)
    return accepts(answer, gold)
