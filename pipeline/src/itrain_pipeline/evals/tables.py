"""The report's tables as rows of texts, and how numbers are written. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from itrain_contract.bfcl import CATEGORIES
from itrain_pipeline.evals.errors import PAPER_SHARES, ErrorClass
from itrain_pipeline.evals.labels import benchmark_name, category_name
from itrain_pipeline.evals.metrics import (
    Rate,
    Score,
    always_refuse,
    apibank_groups,
    bfcl_v3,
    bfcl_v4,
    count_errors,
    count_rates,
)
from itrain_pipeline.evals.report_data import ReportData, StageMachine, fact_label

ORDER = (*CATEGORIES, "call", "no_call", "level_1", "level_2_call", "level_2_search")
"""Of the categories that are known here; a plug-in's follow as its answers come."""


def point_name(point: str) -> str:
    """A point for readers: `iteration-2` is "Iteration 2"."""
    return {"base": "Base model", "warmup": "Warm-up"}.get(point, point.replace("-", " ").capitalize())


def percent(score: Score | None) -> str:
    return "–" if score is None else unbroken(f"{100 * score.value:.1f} ± {100 * score.se:.1f} %")


def signed(gain: Score) -> str:
    return unbroken(f"{100 * gain.value:+.1f} ± {100 * gain.se:.1f}".replace("-", "−"))


def unbroken(text: str) -> str:
    """The text with no-break spaces: a number stays on one line with its error and unit."""
    return text.replace(" ", "\u00a0")


def amount(value: float) -> str:
    """A count with thin spaces, or a number with two decimals."""
    return f"{value:,.0f}".replace(",", "\u202f") if value == int(value) else f"{value:,.2f}".replace(",", "\u202f")


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def benchmarks(data: ReportData) -> list[str]:
    return list(dict.fromkeys(p.benchmark for point in data.points for p in point.predictions))


def category_tables(data: ReportData) -> list[dict[str, Any]]:
    """Per benchmark: rows of category, n and the points' rates; BFCL with its groups and the trivial baseline,
    API-Bank with level 2 as it is published."""
    tables = []
    for benchmark in benchmarks(data):
        rates = [count_rates(point.of(benchmark)) for point in data.points]
        order = [name for name in ORDER if any(name in rate for rate in rates)]
        order += [name for rate in rates for name in rate if name not in order]
        refuse = always_refuse(next((rate for rate in rates if rate), {})) if benchmark == "bfcl" else {}
        rows = [_category_row(benchmark, name, rates, refuse) for name in dict.fromkeys(order)]
        groups = _apibank_rows(rates) if benchmark == "apibank" else _group_rows(rates, refuse) if refuse else []
        tables.append(
            {
                "benchmark": benchmark,
                "title": benchmark_name(benchmark),
                "rows": rows,
                "groups": groups,
                "refuses": bool(refuse),
            }
        )
    return tables


def _category_row(
    benchmark: str, name: str, rates: Sequence[Mapping[str, Rate]], refuse: Mapping[str, Rate]
) -> dict[str, Any]:
    n = max(rate[name].n for rate in rates if name in rate)
    cells = [percent(rate[name].score) if name in rate else "–" for rate in rates]
    baseline = f"{100 * refuse[name].accuracy:.1f} %" if name in refuse else ""
    return {
        "name": category_name(benchmark, name),
        "category": name,
        "n": n,
        "cells": cells,
        "baseline": baseline,
    }


def _apibank_rows(rates: Sequence[Mapping[str, Rate]]) -> list[dict[str, Any]]:
    scores = [apibank_groups(rate)["level_2/accuracy"] for rate in rates]
    n = max((score.n for score in scores if score), default=0)
    cells = ["missing" if score is None else percent(score) for score in scores]
    return [{"name": category_name("apibank", "level_2"), "n": n, "cells": cells, "baseline": ""}] if n else []


def _group_rows(rates: Sequence[Mapping[str, Rate]], refuse: Mapping[str, Rate]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for version, groups in (("v3", bfcl_v3), ("v4", bfcl_v4)):
        columns = [groups(rate) for rate in (*rates, refuse)]
        for name in columns[0]:
            shown = ["missing" if column[name] is None else percent(column[name]) for column in columns]
            n = max((score.n for score in (column[name] for column in columns) if score), default=0)
            rows.append(
                {"name": f"{version} {name.replace('_', '-')}", "n": n, "cells": shown[:-1], "baseline": shown[-1]}
            )
    missing = {"n": 0, "cells": ["missing"] * len(rates), "baseline": "missing"}
    if all(set(row["cells"]) == {"missing"} for row in rows):
        return [{"name": "all groups of v3 and v4", **missing}]
    return [*rows, {"name": "v4 agentic, overall", **missing}]


def error_tables(data: ReportData) -> list[dict[str, Any]]:
    """Per benchmark: wrong answers by class and point, with the share of all wrong answers of that point."""
    tables = []
    for benchmark in benchmarks(data):
        counts = [count_errors(point.of(benchmark)) for point in data.points]
        totals = [sum(count.values()) for count in counts]
        paper = PAPER_SHARES if benchmark == "bfcl" else {}
        names = [c.value for c in ErrorClass if c in paper or any(c.value in count for count in counts)]
        names += sorted({name for count in counts for name in count} - set(names))
        rows = []
        for name in names:
            shares = [count.get(name, 0) / total if total else 0.0 for count, total in zip(counts, totals, strict=True)]
            cells = [{"count": count.get(name, 0), "share": share} for count, share in zip(counts, shares, strict=True)]
            share = next((value for known, value in paper.items() if known.value == name), None)
            rows.append({"name": name.replace("_", " "), "cells": cells, "paper": share})
        tables.append({"benchmark": benchmark, "title": benchmark_name(benchmark), "rows": rows, "totals": totals})
    return tables


def cost_rows(data: ReportData) -> list[dict[str, Any]]:
    longest = max((cost.seconds for cost in data.costs), default=0.0)
    return [
        {
            "stage": cost.stage,
            "shards": cost.shards,
            "time": duration(cost.seconds),
            "share": cost.seconds / longest if longest else 0.0,
            "tokens": _tokens(cost.counters),
        }
        for cost in data.costs
    ]


def _tokens(counters: Mapping[str, float]) -> str:
    parts = [
        f"{amount(counters[key])} {label}"
        for key, label in (
            ("prefill_computed", "read"),
            ("prefill_cached", "read from cache"),
            ("decoded", "written"),
            ("answer_tokens", "scored"),
            ("tokens_computed", "trained on"),
        )
        if counters.get(key)
    ]
    return ", ".join(parts) or "–"


def machine_table(machines: Sequence[StageMachine]) -> dict[str, Any] | None:
    """What each stage computed with. Versions stand once in `shared` where every stage that has them has the same, and
    in the rows otherwise; None where nothing was recorded."""
    told = [machine for machine in machines if machine.precision or machine.device or machine.versions]
    if not told:
        return None
    by_name: dict[str, set[str]] = {}
    for machine in told:
        for name, version in machine.versions:
            by_name.setdefault(name, set()).add(version)
    shared = [(name, *versions) for name, versions in by_name.items() if len(versions) == 1]
    apart = {name for name, versions in by_name.items() if len(versions) > 1}
    rows = [
        {
            "stage": machine.stage,
            "precision": machine.precision or "–",
            "quantization": machine.quantization or "–",
            "device": machine.device or "–",
            "versions": ", ".join(f"{name} {version}" for name, version in machine.versions if name in apart) or "–",
        }
        for machine in told
    ]
    return {"rows": rows, "shared": ", ".join(f"{name} {version}" for name, version in shared), "apart": bool(apart)}


def lineage_facts(data: ReportData) -> list[tuple[str, str]]:
    """The facts that the table of machines does not tell already."""
    told = {"Point", "Points"}  # the columns of every table
    told |= {fact_label(name) for machine in data.machines for name, _ in machine.versions}
    if data.machines:
        told |= {"Precision", "Quantization", "Device"}
    return [(label, value) for label, value in data.facts if label not in told]
