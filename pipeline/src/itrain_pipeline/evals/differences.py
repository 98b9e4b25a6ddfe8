"""What differs between runs: settings, data, versions. Only what differs is told. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from itrain_pipeline.evals.tables import amount

ABSENT = "–"
PLACES = ("storage",)
"""Blocks of the spec that say where results lie, and nothing about them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A name and one text for each run."""

    name: str
    cells: tuple[str, ...]


def setting_rows(settings: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Fields of the specs by their path (`stages.train.epochs`), sorted; a field that a run leaves unset is absent."""
    flat = [flatten({k: v for k, v in one.items() if k not in PLACES}) for one in settings]
    return differing([{path: _text(value) for path, value in one.items()} for one in flat])


def flatten(node: Any, path: str = "") -> dict[str, Any]:
    """Leaves by dotted path. A list is a leaf where it holds no mapping; empty blocks have none."""
    if isinstance(node, Mapping):
        pairs = [(f"{path}.{key}" if path else str(key), value) for key, value in node.items()]
    elif isinstance(node, list) and any(isinstance(entry, Mapping) for entry in node):
        pairs = [(f"{path}[{at}]", value) for at, value in enumerate(node)]
    else:
        return {path: node}
    found: dict[str, Any] = {}
    for below, value in pairs:
        found |= flatten(value, below)
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def differing(columns: Sequence[Mapping[str, str]]) -> list[Row]:
    """The names whose texts are not the same in all columns."""
    names = sorted({name for column in columns for name in column})
    rows = [Row(name=name, cells=tuple(column.get(name, ABSENT) for column in columns)) for name in names]
    return [row for row in rows if len(set(row.cells)) > 1]


def count_rows(columns: Sequence[Mapping[str, float]], names: Sequence[tuple[str, str]]) -> list[Row]:
    """Counters by name and label, those that no run has left out."""
    return [
        Row(name=label, cells=tuple(amount(column[name]) if name in column else ABSENT for column in columns))
        for name, label in names
        if any(column.get(name) for column in columns)
    ]
