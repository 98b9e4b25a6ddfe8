"""The search's counters by iteration, beside the arms of a benchmark where one was given. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from itrain_pipeline.evals.tables import amount
from itrain_pipeline.evals.treeview import REASONS
from itrain_pipeline.search.bounds import limit_tokens
from itrain_pipeline.search.treerecord import TreeRecord

Values = Mapping[str, float]

ARMS = {
    "r0": "Released code",
    "r1": "… with prefix cache",
    "r2": "… without repeats",
    "bon": "Best of N",
    "ours": "Bench, ours",
}
"""Arms of `make bench-search` by the end of their keys."""
ROWS: tuple[tuple[str, str], ...] = (
    ("trees", "Trees searched"),
    ("failed_trees", "Trees that failed"),
    ("lost_trees", "Trees lost without a word"),
    ("unneeded_trees", "Trees not needed, pairs were enough"),
    ("trees_without_pair", "Trees without a pair"),
    ("pairs", "Pairs"),
    ("requests", "Requests for completions"),
    ("judge_calls", "Judgements"),
    ("memo_hits", "Judgements known already"),
    ("duplicate_requests", "Requests asked twice"),
    ("retried_requests", "Requests tried again"),
    ("prefill_computed", "Prompt tokens computed"),
    ("prefill_cached", "Prompt tokens from cache"),
    ("decoded", "Tokens written"),
    ("simulations", "Simulations"),
    ("freed_simulations", "Simulations left by early stops"),
    ("extra_simulations", "Simulations given to other trees"),
)
RATIOS: tuple[tuple[str, str], ...] = (
    ("tokens_over_limit", "Tokens over the lower bound L"),
    ("requests_per_tree", "Requests per tree"),
    ("requests_per_pair", "Requests per pair"),
    ("engine_tokens_per_pair", "Computed and written tokens per pair"),
    ("decoded_per_pair", "Written tokens per pair"),
)
ALIASES = {"duplicates": "duplicate_requests", "retries": "retried_requests", "sequences": "", "limit_tokens": ""}
"""Counters under another name, or told by another row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRow:
    name: str
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchTable:
    """`groups` are counts, what ended the trees, ratios; each with a row per figure and a cell per column."""

    columns: tuple[str, ...]
    groups: tuple[tuple[str, tuple[SearchRow, ...]], ...]


def build_search_table(
    counters: Mapping[int, Values],
    records: Mapping[int, Sequence[TreeRecord]],
    bench: Mapping[str, float] | None = None,
) -> SearchTable | None:
    """None where nothing was searched. `bench` is the JSON of `make bench-search`; its 800-token prompts are shown."""
    if not counters:
        return None
    ours = {i: _with_ratios(_known(values), records.get(i, ())) for i, values in sorted(counters.items())}
    arms = bench_arms(bench or {})
    columns = (*(f"Iteration {i}" for i in ours), *arms)
    values = [*ours.values(), *arms.values()]
    told = {name for name, _ in (*ROWS, *RATIOS)}
    others = sorted({name for column in ours.values() for name in column} - told - set(REASONS))
    groups = (
        ("Counts", (*ROWS, *((name, name.replace("_", " ").capitalize()) for name in others))),
        ("Why trees ended", tuple((name, _sentence(text)) for name, text in REASONS.items())),
        ("Per tree and pair", RATIOS),
    )
    return SearchTable(columns=columns, groups=tuple(_group(title, names, values) for title, names in groups))


def _group(title: str, names: Sequence[tuple[str, str]], values: Sequence[Values]) -> tuple[str, tuple[SearchRow, ...]]:
    rows = [
        SearchRow(name=label, cells=tuple("–" if name not in v else amount(v[name]) for v in values))
        for name, label in names
        if any(name in v for v in values)
    ]
    return title, tuple(rows)


def _known(values: Values) -> dict[str, float]:
    named = {ALIASES.get(name, name.removeprefix("stopped_")): value for name, value in values.items()}
    return {name: value for name, value in named.items() if name}


def _with_ratios(values: Values, records: Sequence[TreeRecord]) -> dict[str, float]:
    """The counters, how many trees ended for which reason, and the ratios that they give."""
    found: dict[str, float] = dict(values)
    found |= {reason: float(count) for reason, count in Counter(r.reason for r in records).items()}
    engine = values.get("prefill_computed", 0.0) + values.get("decoded", 0.0)
    trees, pairs = values.get("trees", 0.0), values.get("pairs", 0.0)
    limit = sum(limit_tokens(r) for r in records) if records and all(r.prompt_length for r in records) else 0
    if limit and engine:
        found["tokens_over_limit"] = engine / limit
    if trees and "requests" in values:
        found["requests_per_tree"] = values["requests"] / trees
    if pairs and "requests" in values:
        found |= {"requests_per_pair": values["requests"] / pairs, "engine_tokens_per_pair": engine / pairs}
        found["decoded_per_pair"] = values.get("decoded", 0.0) / pairs
    return found


def bench_arms(bench: Mapping[str, Any]) -> dict[str, Values]:
    """Columns by arm, from keys such as `p800_requests_per_tree_r0`."""
    arms: dict[str, dict[str, float]] = {}
    for key, value in bench.items():
        found = re.fullmatch(r"p800_(.+)_(r0|r1|r2|bon|ours)", key)
        if found and isinstance(value, int | float):
            arms.setdefault(found[2], {})[found[1]] = float(value)
    return {title: arms[arm] for arm, title in ARMS.items() if arm in arms}


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
