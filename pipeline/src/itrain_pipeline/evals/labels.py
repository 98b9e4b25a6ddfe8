"""What benchmarks, categories and metrics are called on pages; their keys stay in files and in the status. Pure.

BFCL's categories keep the names that their authors print; a plug-in's are shown as it has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

BENCHMARKS: Final[Mapping[str, str]] = {"bfcl": "BFCL", "dev": "Dev set", "apibank": "API-Bank", "acebench": "ACEBench"}
CATEGORIES: Final[Mapping[tuple[str, str], str]] = {
    ("dev", "call"): "call",
    ("dev", "no_call"): "no call",
    ("apibank", "level_1"): "level 1: calls",
    ("apibank", "level_2_call"): "level 2: calls",
    ("apibank", "level_2_search"): "level 2: tool search",
    ("apibank", "level_2"): "level 2, as published",
}
METRICS: Final[Mapping[str, str]] = {
    "dev/call_accuracy": "exact calls on the dev set",
    "dev/no_call_accuracy": "rightly refused calls on the dev set",
    "dev/accuracy": "right answers on the dev set",
    "bfcl/accuracy": "BFCL, all evaluated items",
    "bfcl/non_live": "BFCL Non-live (v3)",
    "bfcl/live": "BFCL Live (v3)",
    "apibank/level_1/accuracy": "API-Bank level 1",
    "apibank/level_2/accuracy": "API-Bank level 2 (as published)",
}
"""Those with a learning curve of their own."""


def benchmark_name(benchmark: str) -> str:
    return BENCHMARKS.get(benchmark, benchmark)


def category_name(benchmark: str, category: str) -> str:
    return CATEGORIES.get((benchmark, category), category)


def metric_name(metric: str) -> str:
    """`apibank/level_2_call/accuracy` is "API-Bank, level 2: calls"; a key that is not known is shown as it is."""
    if metric in METRICS:
        return METRICS[metric]
    benchmark, _, rest = metric.partition("/")
    if rest == "accuracy":
        return f"{benchmark_name(benchmark)}, all evaluated items"
    category = rest.removesuffix("/accuracy")
    if category != rest and (benchmark, category) in CATEGORIES:
        return f"{benchmark_name(benchmark)}, {category_name(benchmark, category)}"
    return metric
