"""Answers to BFCL's questions in its own result format, so that the official `bfcl evaluate` can judge them again.

Calls are written as our parser read them, `[{name: {parameter: value}}]`, and never as text: the decoder of most
prompted models runs `eval` on it. Calls of a dialogue are run by that program with `eval`: they name tools of their
entry and identifiers only. `ENTRY` is the registered model under whose name the official program takes calls in
that form as they are, names with dots too, and any text for no call; it stands for whatever was asked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from itrain_contract.bfcl import ITEMS, MULTI_TURN, NON_LIVE_ITEMS
from itrain_pipeline.evals.bfcl_data import checker_calls
from itrain_pipeline.evals.bfcl_dialogues import callable_names
from itrain_pipeline.evals.bfcl_sandbox import UNKNOWN, call_text
from itrain_pipeline.evals.errors import ErrorClass
from itrain_pipeline.files import atomic_writer
from itrain_pipeline.records import Prediction
from itrain_pipeline.toolcalls.parse import ParseResult

ENTRY: Final = "katanemo/Arch-Agent-1.5B"
VERSION: Final = "BFCL_v4"


def result_path(folder: Path, category: str) -> Path:
    """Where `bfcl evaluate --result-dir FOLDER` looks for a category."""
    group = "multi_turn" if category in MULTI_TURN else "non_live" if category in NON_LIVE_ITEMS else "live"
    return folder / ENTRY.replace("/", "_") / group / f"{VERSION}_{category}_result.json"


def result_row(prediction: Prediction, read: Callable[[str], ParseResult]) -> dict[str, Any]:
    """One line of a result file. An answer without a readable call is its text, and so is one on which the official
    checker itself fails, which would end the whole official evaluation."""
    calls = read(prediction.output).calls
    if not calls or prediction.detail.startswith("checker_raised:"):
        return {"id": prediction.id, "result": prediction.output}
    return {"id": prediction.id, "result": checker_calls(calls, prediction.category)}


def dialogue_row(prediction: Prediction, read: Callable[[str], ParseResult], known: frozenset[str]) -> dict[str, Any]:
    """One dialogue, `[[step, …] per turn]`. One that ended before its time for want of room, or over calls that cannot
    be run, is the text that the official runner writes where it got no answer."""
    if prediction.error_class in (ErrorClass.CONTEXT_OVERFLOW.value, ErrorClass.BACKEND_LIMIT.value):
        return {"id": prediction.id, "result": f"Error during inference: {prediction.detail}"}
    turns = [[_step(text, read, known) for text in turn] for turn in json.loads(prediction.output)]
    return {"id": prediction.id, "result": turns}


def _step(text: str, read: Callable[[str], ParseResult], known: frozenset[str]) -> str | list[dict[str, Any]]:
    """Calls as they can be run; one that cannot be is a tool that does not exist, which has the same effect."""
    calls = read(text).calls
    if not calls:
        return text
    runs = [call_text(call.name, call.arguments, known) != UNKNOWN for call in calls]
    return [{call.name: call.arguments} if run else {"no_such_tool": {}} for call, run in zip(calls, runs, strict=True)]


def write_results(
    folder: Path, predictions: Iterable[Prediction], read: Callable[[str], ParseResult]
) -> dict[str, int]:
    """A file for each category; returns the number of answers by category.

    What was not asked for want of room is left out: without a call it would pass for right where none is wanted.
    """
    predictions = list(predictions)
    names = callable_names([p.id for p in predictions if p.benchmark == "bfcl" and p.category in MULTI_TURN])
    rows: dict[str, list[dict[str, Any]]] = {}
    for prediction in predictions:
        asked = prediction.error_class != ErrorClass.NOT_ASKED.value
        if prediction.benchmark == "bfcl" and asked:
            if prediction.category in MULTI_TURN:
                row = dialogue_row(prediction, read, names.get(prediction.id, frozenset()))
            elif prediction.category in ITEMS:
                row = result_row(prediction, read)
            else:
                continue
            rows.setdefault(prediction.category, []).append(row)
    for category, lines in rows.items():
        with atomic_writer(result_path(folder, category)) as out:
            out.writelines((json.dumps(line, ensure_ascii=False) + "\n").encode() for line in lines)
    return {category: len(lines) for category, lines in rows.items()}
