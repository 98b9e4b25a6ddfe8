"""The official BFCL data and checker as a library; the only module that imports `bfcl_eval`.

Its package wants every vendor's client at import and a folder to write to: one module is replaced by a stub, the
folder is temporary. Its decoder is never used, since that runs `eval` on model text (evaluation document, "BFCL").
"""

from __future__ import annotations

import atexit
import functools
import importlib.metadata
import os
import re
import shutil
import sys
import tempfile
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from itrain_contract.bfcl import MULTI_TURN
from itrain_pipeline.errors import ConfigError, DataError
from itrain_pipeline.evals.benchmark import Answer, Item, Judgement, Opening, judged
from itrain_pipeline.evals.bfcl_data import (
    BfclItem,
    accepts,
    checker_calls,
    gold_calls,
    language,
    official_class,
    select_categories,
    wants_call,
)
from itrain_pipeline.evals.errors import ErrorClass, Finding, classify
from itrain_pipeline.evals.metrics import Rate, Score, bfcl_v3
from itrain_pipeline.records import Message, ToolCall
from itrain_pipeline.timelimit import TimeLimitError, time_limit

_CONFIG_MODULE = "bfcl_eval.constants.model_config"
MODEL_NAME = "itrain"
CHECK_SECONDS = 5.0
"""For one answer, which takes less than a millisecond: on some of 150 characters the official regular expressions for
JavaScript arrays take days."""


class _AnyModel(dict[str, types.SimpleNamespace]):
    """Every model name is known and keeps dots in function names."""

    def __missing__(self, name: str) -> types.SimpleNamespace:
        return types.SimpleNamespace(underscore_to_dot=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Official:
    """What is used of the package: two loaders, the checker and its language enum."""

    load_entries: Callable[..., list[dict[str, Any]]]
    load_answers: Callable[[str], list[dict[str, Any]]]
    ast_checker: Callable[..., dict[str, Any]]
    language: Callable[[str], Any]
    version: str


@functools.cache
def official() -> Official:
    """The official package, imported once; ConfigError with the remedy where it is not installed."""
    try:
        version = importlib.metadata.version("bfcl-eval")
    except importlib.metadata.PackageNotFoundError as missing:
        raise ConfigError(
            "benchmark bfcl needs the package bfcl-eval: install it with `pip install --no-deps bfcl-eval==2026.3.23`, "
            "or take bfcl out of stages.evaluate.benchmarks"
        ) from missing
    folder = tempfile.mkdtemp(prefix="itrain-bfcl-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["BFCL_PROJECT_ROOT"] = folder
    if _CONFIG_MODULE not in sys.modules:
        stub = types.ModuleType(_CONFIG_MODULE)
        stub.__dict__["MODEL_CONFIG_MAPPING"] = _AnyModel()
        sys.modules[_CONFIG_MODULE] = stub
    from bfcl_eval.constants.enums import Language
    from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker
    from bfcl_eval.utils import load_dataset_entry, load_ground_truth_entry

    return Official(
        load_entries=load_dataset_entry,
        load_answers=load_ground_truth_entry,
        ast_checker=ast_checker,
        language=Language,
        version=version,
    )


def load_items(categories: Sequence[str] = (), limit: int = 0) -> list[BfclItem]:
    """The single-turn items of the chosen categories (empty: all), the first `limit` of each (0: all).

    Raises ConfigError for an unknown category, DataError where questions and answers do not fit together.
    """
    package = official()
    items: list[BfclItem] = []
    for category in select_categories(categories):
        if category in MULTI_TURN:
            continue
        shown = package.load_entries(category, include_language_specific_hint=True)
        plain = package.load_entries(category, include_language_specific_hint=False)
        answers: list[dict[str, Any]] = [{}] * len(plain)
        if wants_call(category) is None:
            answers = package.load_answers(category)
        if not len(shown) == len(plain) == len(answers):
            raise DataError(f"BFCL {category}: {len(plain)} questions, but {len(answers)} answers")
        rows = list(zip(shown, plain, answers, strict=True))
        items += [_item(category, *row) for row in (rows[:limit] if limit else rows)]
    return items


def _item(category: str, shown: dict[str, Any], plain: dict[str, Any], answer: dict[str, Any]) -> BfclItem:
    if answer and answer["id"] != plain["id"]:
        raise DataError(f"BFCL {category}: the answer {answer['id']} stands where that of {plain['id']} is expected")
    return BfclItem(
        id=plain["id"],
        category=category,
        messages=tuple(Message(role=m["role"], content=m["content"]) for m in shown["question"][0]),
        tools=tuple(shown["function"]),
        functions=tuple(plain["function"]),
        possible_answers=tuple(answer.get("ground_truth", ())),
    )


def judge(item: BfclItem, calls: Sequence[ToolCall], *, well_formed: bool = True) -> Judgement:
    """Judge one answer. `calls` is what our parser read; `well_formed` False means that it tried a call in vain.

    For (ir)relevance only whether there is a call counts, as in the official runner; otherwise the official AST
    checker decides, and the structural diff names what is wrong.
    """
    wanted = wants_call(item.category)
    if wanted is not None:
        if bool(calls) == wanted:
            return Judgement(correct=True)
        error_class = ErrorClass.MISSED_CALL if wanted else ErrorClass.HALLUCINATED_CALL
        if wanted and not well_formed:
            error_class = ErrorClass.FORMAT
        return Judgement(correct=False, error_class=error_class, detail=calls[0].name if calls else "")
    if not well_formed or not calls:
        return _judgement(classify(calls, gold_calls(item), well_formed=well_formed, match=accepts), "ast_decoder")
    error_type, message = _check(item, calls)
    if error_type is None:
        return Judgement(correct=True)
    return _judgement(classify(calls, gold_calls(item), match=accepts), error_type, message)


def _check(item: BfclItem, calls: Sequence[ToolCall]) -> tuple[str | None, str]:
    """(official error type or None, its message). An answer that makes the checker itself fail is a wrong answer."""
    package = official()
    try:
        with time_limit(CHECK_SECONDS):
            verdict = package.ast_checker(
                list(item.functions),
                checker_calls(calls, item.category),
                list(item.possible_answers),
                package.language(language(item.category)),
                item.category,
                MODEL_NAME,
            )
    except TimeLimitError:
        return "checker_raised:time_limit", f"more than {CHECK_SECONDS:g} s"
    except (ArithmeticError, AttributeError, LookupError, re.error, RuntimeError, TypeError, ValueError) as error:
        return f"checker_raised:{type(error).__name__}", str(error)
    if verdict["valid"]:
        return None, ""
    return str(verdict["error_type"]), str(verdict["error"])


def _judgement(findings: tuple[Finding, ...], error_type: str, message: str = "") -> Judgement:
    """What the diff found; the official error string alone where it found nothing."""
    if findings:
        return judged(findings, error_type)
    return Judgement(correct=False, error_class=official_class(error_type), detail=f"{error_type}: {message[:200]}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bfcl:
    """BFCL's categories as a benchmark; `dialogues` are its multi-turn items."""

    questions: Sequence[BfclItem]
    dialogues: Sequence[Item] = ()
    name: str = "bfcl"

    def items(self) -> list[Item]:
        asked = [
            Item(category=item.category, id=item.id, messages=item.messages, tools=item.tools, gold=item)
            for item in self.questions
        ]
        return [*asked, *self.dialogues]

    def judge(self, item: Item, answer: Answer) -> Judgement:
        """Of a single-turn item; a dialogue's world judges it."""
        return judge(item.gold, answer.calls, well_formed=answer.well_formed)

    def groups(self, rates: Mapping[str, Rate]) -> Mapping[str, Score | None]:
        return bfcl_v3(rates)

    def info(self) -> Mapping[str, str]:
        return {"bfcl_eval": official().version}


def open_bfcl(opening: Opening) -> Bfcl:
    """The installed package's data. Raises ConfigError as `official` and `load_items` do."""
    from itrain_pipeline.evals.bfcl_dialogues import load_dialogues  # which needs what stands above

    return Bfcl(
        questions=load_items(opening.categories, opening.limit),
        dialogues=load_dialogues(opening.categories, opening.limit),
    )
