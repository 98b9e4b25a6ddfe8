"""The figures side by side."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from itrain_bench.search.ablation import ROWS
from itrain_bench.search.targets import TARGETS, judge_targets

ARMS = ("r0", "r1", "r2", "ours", "bon", "fd")
LINES = (
    ("tokens_over_limit", "engine tokens / L"),
    ("engine_tokens_per_tree", "engine tokens per tree"),
    ("engine_tokens_per_pair", "engine tokens per valid pair"),
    ("requests_per_tree", "requests per tree"),
    ("judge_requests_per_tree", "judge requests per tree"),
    ("requests_per_pair", "requests per valid pair"),
    ("decoded_per_pair", "decoded per valid pair"),
    ("duplicate_share", "repeated requests, share"),
    ("lost_trees", "lost trees"),
    ("pairs_per_tree", "pairs per tree"),
    ("pair_precision", "pair precision"),
    ("wall_s_per_tree", "seconds per tree"),
    ("wall_per_any_pair", "seconds per pair of any kind"),
    ("wall_per_pair", "seconds per valid pair"),
)


def show(figures: Mapping[str, object], prefixes: Mapping[str, str], console: Console | None = None) -> None:
    """Arms by prefix, the ablation, the targets."""
    console = console or Console(width=120)
    for prefix, title in prefixes.items():
        present = [arm for arm in ARMS if f"{prefix}_trees_{arm}" in figures]
        if not present:
            continue
        table = Table("", *present, title=title)
        for name, text in LINES:
            table.add_row(text, *(_cell(figures.get(f"{prefix}_{name}_{arm}")) for arm in present))
        console.print(table)
    _ablation(figures, console)
    targets = Table("target", "wanted", "found", "", title="targets")
    met = judge_targets(figures)
    for target in TARGETS:
        word = {True: "met", False: "NOT MET", None: "not measured"}[met[target.key]]
        targets.add_row(target.text, f"{target.relation} {target.value:g}", _cell(figures.get(target.key)), word)
    console.print(targets)


def _ablation(figures: Mapping[str, object], console: Console) -> None:
    columns = (
        "tokens_over_limit",
        "engine_tokens_per_pair",
        "requests_per_tree",
        "judge_requests_per_tree",
        "decoded_per_pair",
        "pairs_per_tree",
        "pair_precision",
        "wall_per_pair",
    )
    table = Table("lever off", "", *columns, title="ablation")
    for row in ROWS:
        if f"ablation_{row.name}_requests_per_tree" in figures:
            cells = (_cell(figures.get(f"ablation_{row.name}_{column}")) for column in columns)
            table.add_row(row.name, row.text, *cells)
    if table.row_count:
        console.print(table)


def _cell(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "-" if value is None else str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
