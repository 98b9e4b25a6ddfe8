"""Answers to BFCL's questions in its own result format, so that the official `bfcl evaluate` can judge them again.

Calls are written as our parser read them, `[{name: {parameter: value}}]`, and never as text: the decoder of most
prompted models runs `eval` on it. `ENTRY` is the registered model under whose name the official program takes calls in
that form as they are, names with dots too, and any text for no call; it stands for whatever was asked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from itrain_contract.bfcl import ITEMS, NON_LIVE_ITEMS
from itrain_pipeline.evals.bfcl_data import checker_calls
from itrain_pipeline.evals.errors import ErrorClass
from itrain_pipeline.files import atomic_writer
from itrain_pipeline.records import Prediction
from itrain_pipeline.toolcalls.parse import ParseResult

ENTRY: Final = "katanemo/Arch-Agent-1.5B"
VERSION: Final = "BFCL_v4"


def result_path(folder: Path, category: str) -> Path:
    """Where `bfcl evaluate --result-dir FOLDER` looks for a category."""
    group = "non_live" if category in NON_LIVE_ITEMS else "live"
    return folder / ENTRY.replace("/", "_") / group / f"{VERSION}_{category}_result.json"


def result_row(prediction: Prediction, read: Callable[[str], ParseResult]) -> dict[str, Any]:
    """One line of a result file. An answer without a readable call is its text, and so is one on which the official
    checker itself fails, which would end the whole official evaluation."""
    calls = read(prediction.output).calls
    if not calls or prediction.detail.startswith("checker_raised:"):
        return {"id": prediction.id, "result": prediction.output}
    return {"id": prediction.id, "result": checker_calls(calls, prediction.category)}


def write_results(
    folder: Path, predictions: Iterable[Prediction], read: Callable[[str], ParseResult]
) -> dict[str, int]:
    """A file for each category; returns the number of answers by category.

    What was not asked for want of room is left out: without a call it would pass for right where none is wanted.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    for prediction in predictions:
        asked = prediction.error_class != ErrorClass.NOT_ASKED.value
        if prediction.benchmark == "bfcl" and prediction.category in ITEMS and asked:
            rows.setdefault(prediction.category, []).append(result_row(prediction, read))
    for category, lines in rows.items():
        with atomic_writer(result_path(folder, category)) as out:
            out.writelines((json.dumps(line, ensure_ascii=False) + "\n").encode() for line in lines)
    return {category: len(lines) for category, lines in rows.items()}
