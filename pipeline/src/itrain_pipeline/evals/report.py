"""The run's report: one HTML file without any outside request, from one frozen value. Pure.

`build_report(data)` writes the page; `verdict(data)` says in words what the run gained, and that it gained nothing
where the standard errors say so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itrain_pipeline.evals.bfcl_data import GOLD_DEFECTS
from itrain_pipeline.evals.charts import histogram, learning_curve, line_chart
from itrain_pipeline.evals.collect import collect_from_results
from itrain_pipeline.evals.labels import METRICS, metric_name
from itrain_pipeline.evals.metrics import Score, paired_gain
from itrain_pipeline.evals.report_data import PointResult, ReportData
from itrain_pipeline.evals.searchtable import build_search_table
from itrain_pipeline.evals.tables import (
    benchmarks,
    category_tables,
    cost_rows,
    duration,
    error_tables,
    lineage_facts,
    machine_table,
    percent,
    point_name,
    signed,
    unbroken,
)
from itrain_pipeline.evals.treeview import tree_card
from itrain_pipeline.records import Prediction

__all__ = ["Verdict", "build_report", "collect_from_results", "verdict"]

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    headline: str
    sentences: tuple[str, ...]


def verdict(data: ReportData) -> Verdict:
    """What the run gained on its metric over the same items: a gain counts from two standard errors on."""
    measured = [point for point in data.points if data.metric in point.scores]
    if not measured:
        return Verdict(headline="Nothing was measured", sentences=(f"No point has the metric {data.metric}.",))
    first = measured[0]
    last = next((point for point in measured if point.point == data.best), measured[-1])
    if first is last:
        score = first.scores[data.metric]
        return Verdict(
            headline=f"{point_name(first.point)} scores {percent(score)} on {metric_name(data.metric)}",
            sentences=("There is one measured point, so nothing can be compared.",),
        )
    gain = _gain(data.metric, first, last)
    sentences = [
        f"{point_name(first.point)}: {percent(first.scores[data.metric])}; {point_name(last.point).lower()}: "
        f"{percent(last.scores[data.metric])} (accuracy ± standard error). Over the same {gain.n} items the "
        f"difference is {signed(gain)} points, that is {_in_errors(gain)}."
    ]
    warmup = next((point for point in measured if point.point == "warmup"), None)
    if warmup is not None and warmup not in (first, last):
        step = _gain(data.metric, warmup, last)
        sentences.append(f"The iterations after the warm-up brought {signed(step)} points ({_in_errors(step)}).")
    top = max(measured, key=lambda point: point.scores[data.metric].value)
    if last is not measured[-1] or top is not last:
        sentences.append(_exported(data.metric, last, top))
    return Verdict(headline=_headline(data.metric, gain), sentences=tuple(sentences))


def _exported(metric: str, last: PointResult, top: PointResult) -> str:
    name = point_name(last.point)
    if top.scores[metric].value <= last.scores[metric].value:
        return f"{name} is the exported point; no other scored higher."
    return f"{name} is the exported point; {point_name(top.point).lower()} scored {percent(top.scores[metric])}."


def measurable(gain: Score) -> bool:
    """Whether a difference is at least two standard errors; no difference never is."""
    return gain.value != 0 and abs(gain.value) >= 2 * gain.se


def _headline(metric: str, gain: Score) -> str:
    subject = metric_name(metric)
    if not measurable(gain):
        return f"No measurable change on {subject}: {signed(gain)} points"
    word = "gained" if gain.value > 0 else "lost"
    size = unbroken(f"{100 * abs(gain.value):.1f} ± {100 * gain.se:.1f}")
    return f"{subject[0].upper()}{subject[1:]} {word} {size} points"


def _gain(metric: str, before: PointResult, after: PointResult) -> Score:
    """Paired over shared items where the metric is a plain share of items, otherwise a difference of scores."""
    a, b = (_items(metric, point) for point in (before, after))
    paired = paired_gain(a, b) if a and b else None
    if paired is not None:
        return paired
    first, second = before.scores[metric], after.scores[metric]
    return Score(value=second.value - first.value, se=math.hypot(first.se, second.se), n=second.n)


def _items(metric: str, point: PointResult) -> dict[str, bool]:
    """Correctness by item for a metric that is one share of items; empty for means of groups."""
    return {f"{row.category}/{row.id}": row.correct for row in rows_of(metric, point)}


def rows_of(metric: str, point: PointResult) -> list[Prediction]:
    """The answers whose share of right ones is the metric; none for means of groups."""
    benchmark, _, rest = metric.partition("/")
    rows = point.of(benchmark)
    if benchmark == "dev" and rest != "accuracy":
        return [row for row in rows if row.category == rest.removesuffix("_accuracy")]
    if rest.endswith("/accuracy"):
        return [row for row in rows if row.category == rest.removesuffix("/accuracy")]
    return rows if rest == "accuracy" else []


def _in_errors(gain: Score) -> str:
    if gain.se == 0:
        return "no item changed" if gain.value == 0 else "every item changed alike"
    return f"{abs(gain.value) / gain.se:.1f} standard errors"


Chart = tuple[str, str]
"""Caption and SVG."""
VALIDITY_CHART = "readable answers"


def metric_charts(data: ReportData) -> list[Chart]:
    """A learning curve for each headline metric that some point has."""
    names = [point.point for point in data.points]
    wanted = [data.metric, *METRICS]
    present = {name for point in data.points for name in point.scores}
    scores = [point.scores for point in data.points]
    return [
        (metric_name(metric), learning_curve(metric_name(metric), names, [of.get(metric) for of in scores]))
        for metric in dict.fromkeys(wanted)
        if metric in present
    ]


TRAINING_CHARTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("loss", "loss", ("loss",)),
    ("reward margin", "margin", ("margin",)),
    ("logprob per token", "nats per token", ("chosen logprob", "rejected logprob")),
    (VALIDITY_CHART, "% readable", ("validity",)),
)
"""Title, name of the vertical axis, and the series of a training that one chart draws."""


def loss_charts(data: ReportData) -> list[Chart]:
    """Up to four charts for each training; values that are not finite are left out."""
    charts = []
    for curve in data.curves:
        for title, ylabel, names in TRAINING_CHARTS:
            lines = [(name.removesuffix(" logprob"), _finite(curve.series.get(name, ()))) for name in names]
            drawn = [(label, [x for x, _ in points], [y for _, y in points]) for label, points in lines if points]
            if not drawn:
                continue
            caption = f"{curve.title}: {title}"
            if title == VALIDITY_CHART:
                shares = [(label, xs, [100 * y for y in ys]) for label, xs, ys in drawn]
                charts.append((caption, line_chart(caption, shares, ylabel=ylabel, ylim=(0.0, 105.0), marked=True)))
            else:
                charts.append((caption, line_chart(caption, drawn, ylabel=ylabel)))
    return charts


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(y)]


def perplexity_charts(data: ReportData) -> list[Chart]:
    charts = []
    for scored in data.perplexities:
        groups = [(name, values) for name, values in (("call", scored.call), ("no call", scored.no_call)) if values]
        if groups:
            title = f"Iteration {scored.iteration}: perplexity"
            charts.append((title, histogram(title, groups, xlabel="perplexity of the answer")))
    return charts


def environment() -> Any:
    """The templates, with everything escaped that comes from outside, and an error for what is not there."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def build_report(data: ReportData) -> str:
    """The page. Deterministic: equal data give equal text."""
    return (
        environment()
        .get_template("report.html.jinja")
        .render(
            data=data,
            verdict=verdict(data),
            point_names=[point_name(point.point) for point in data.points],
            curves=metric_charts(data),
            categories=category_tables(data),
            errors=error_tables(data),
            losses=loss_charts(data),
            perplexities=perplexity_charts(data),
            search=build_search_table(
                {search.iteration: search.counters for search in data.searches},
                {one.iteration: one.records for one in data.searched},
                data.bench,
            ),
            trees=[tree_card(tree) for tree in data.trees],
            undrawn=bool(data.searched) and not any(r.drawn for one in data.searched for r in one.records),
            costs=cost_rows(data),
            machines=machine_table(data.machines),
            facts=lineage_facts(data),
            total_time=duration(math.fsum(cost.seconds for cost in data.costs)),
            gold_defects=len(GOLD_DEFECTS),
            has_bfcl="bfcl" in benchmarks(data),
            has_apibank="apibank" in benchmarks(data),
        )
    )
