"""API-Bank, levels 1 and 2: one call to a dialogue, judged by exact match of name and arguments.

Data: `level-1-api.json` (399 items) and `level-2-api.json` (135) of AlibabaResearch/DAMO-ConvAI, `api-bank/test-data`
at 1d76900 (Apache-2.0), which the user brings. The official evaluator runs each call on a database and refuses some
of its own gold; exact match is what newer papers report, and its gold scores 100 %.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from itrain_contract.apibank import CATEGORIES, FILES, LEVEL_1, LEVEL_2, SEARCH, file_of
from itrain_pipeline.errors import ConfigError, DataError
from itrain_pipeline.evals.benchmark import Answer, Item, Judgement, Opening, judged
from itrain_pipeline.evals.errors import classify, exact_gold
from itrain_pipeline.evals.metrics import Rate, Score, apibank_groups
from itrain_pipeline.records import Message, ToolCall
from itrain_pipeline.toolcalls.literals import LiteralError, read_value
from itrain_pipeline.toolcalls.parse import parse

TOOL_SEARCH: Final = "ToolSearcher"

_DESCRIPTIONS: Final = "API descriptions:\n"
_REQUEST: Final = "API-Request:"
_YEAR: Final = re.compile(r"The current year is \d{4}\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiBank:
    """The items of one or both levels; `sha256` names their rows."""

    questions: Sequence[Item]
    sha256: str
    name: str = "apibank"

    def items(self) -> Sequence[Item]:
        return self.questions

    def judge(self, item: Item, answer: Answer) -> Judgement:
        return judge_apibank(item, answer)

    def groups(self, rates: Mapping[str, Rate]) -> Mapping[str, Score | None]:
        return apibank_groups(rates)

    def info(self) -> Mapping[str, str]:
        return {"apibank_rows_sha256": self.sha256}


def open_apibank(opening: Opening) -> ApiBank:
    """Both levels of a folder, or the one level that `uri` names as a file.

    Raises ConfigError for a file of another name, DataError for rows of another shape.
    """
    name = file_of(opening.uri)
    if name.endswith((".json", ".jsonl")) and name not in FILES:
        raise ConfigError(
            f"apiBank.uri names {name!r}: allowed are a folder with {' and '.join(FILES)}, or one of them"
        )
    items: list[Item] = []
    digest = hashlib.sha256()
    for level, file in enumerate(FILES, 1):
        if name in FILES and name != file:
            continue
        rows = opening.rows("" if name in FILES else file)
        digest.update(json.dumps(rows, sort_keys=True, ensure_ascii=False).encode())
        made = [read_item(row, level, f"{file} row {number}") for number, row in enumerate(rows, 1)]
        for category in CATEGORIES:
            items += opening.first([item for item in made if item.category == category])
    return ApiBank(questions=items, sha256=digest.hexdigest())


def read_item(row: Mapping[str, Any], level: int, where: str) -> Item:
    """One row. The dialogue so far stays one text, as API-Bank publishes it: its last turn is the assistant's.

    Raises DataError, which names the row, for another shape or a gold answer that is not one call.
    """
    wrong = [key for key in ("instruction", "input", "expected_output") if not isinstance(row.get(key), str)]
    if wrong:
        raise DataError(f"{where}: {wrong[0]} is no text; expected are instruction, input and expected_output")
    tools = read_tools(row["instruction"], where)
    gold = read_request(row["expected_output"], where)
    category = LEVEL_1 if level == 1 else SEARCH if gold.name == TOOL_SEARCH else LEVEL_2
    return Item(
        category=category,
        id=f"{level}-{row.get('file', '')}-{row.get('id', '')}",
        messages=(
            Message(role="system", content=_year(row["instruction"])),
            Message(role="user", content=row["input"].strip()),
        ),
        tools=tools,
        gold=gold,
    )


def read_tools(instruction: str, where: str) -> tuple[dict[str, Any], ...]:
    """The API descriptions, one JSON object a line, as JSON-schema tools. API-Bank names no optional parameters."""
    _, mark, lines = instruction.partition(_DESCRIPTIONS)
    try:
        described = [json.loads(line) for line in lines.splitlines() if line.strip()]
        tools = tuple(
            {
                "name": api["name"],
                "description": api["description"],
                "parameters": {"type": "object", "properties": api["input_parameters"]},
            }
            for api in described
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where}: an API description cannot be read: {error}") from error
    if not mark or not tools:
        raise DataError(f"{where}: the instruction holds no API descriptions")
    return tools


def read_request(text: str, where: str) -> ToolCall:
    """The one gold call. Its quotes may be nested and not escaped: 31 of level 1 and 10 of level 2 are."""
    found = parse(text.strip().removeprefix(_REQUEST).strip(), "pythonic")
    if len(found.calls) != 1:
        raise DataError(f"{where}: expected_output is {text!r}, expected one call: {found.error or 'none is there'}")
    return found.calls[0]


def judge_apibank(item: Item, answer: Answer) -> Judgement:
    """Right with exactly the one gold call, compared in its normalised form."""
    calls = [normalised(call) for call in answer.calls]
    gold = exact_gold([normalised(item.gold)], item.tools)
    return judged(classify(calls, gold, well_formed=answer.well_formed))


def normalised(call: ToolCall) -> ToolCall:
    """API-Bank writes every value as text: numbers and booleans become what they are written as, a list or object
    written in quotes becomes one, and blanks around texts and runs of blanks in them do not count."""
    return ToolCall(name=call.name.strip(), arguments={key: _plain(value) for key, value in call.arguments.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        text = " ".join(value.split())
        found = _written(text) if text[:1] in ("[", "{") else None
        return text if found is None else _plain(found)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value)


def _written(text: str) -> list[Any] | dict[str, Any] | None:
    """The list or object that a whole text is; None where it is neither."""
    try:
        value, end = read_value(text, 0)
    except LiteralError:
        return None
    return value if isinstance(value, list | dict) and end == len(text) else None


def _year(instruction: str) -> str:
    """The one sentence of the instruction that an answer needs: which year it is."""
    found = _YEAR.search(instruction)
    return found[0] if found else ""
