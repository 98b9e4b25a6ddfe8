"""Several runs on one page: what differs between them, and what of it their items can show. Pure.

Runs are compared with the first one, over the items that both were asked. A difference is called one only where the
paired bootstrap's 95 % interval leaves out zero and an exact test, at 5 % shared out among the comparisons, agrees.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from itrain_pipeline.errors import DataError
from itrain_pipeline.evals.charts import Interval, runs_chart
from itrain_pipeline.evals.comparison_data import ComparedRun
from itrain_pipeline.evals.differences import Row, count_rows, differing, setting_rows
from itrain_pipeline.evals.labels import metric_name
from itrain_pipeline.evals.paired import Paired, compare_items, wilson
from itrain_pipeline.evals.report import Chart, Verdict, environment, rows_of
from itrain_pipeline.evals.report_data import PointResult, ReportData
from itrain_pipeline.evals.tables import category_tables, duration, error_tables, point_name, unbroken

ALPHA = 0.05
FEW_ITEMS = 200
"""Below it the page warns: a share of 50 % is then known to no better than ± 7 points."""
COSTS = (
    ("requests", "Requests"),
    ("prefill_computed", "Tokens read"),
    ("prefill_cached", "Tokens read from cache"),
    ("decoded", "Tokens written"),
    ("answer_tokens", "Tokens scored"),
    ("tokens_computed", "Tokens trained on"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One run beside the first one on one metric, at one point of each; `paired` None where no item is shared."""

    label: str
    metric: str
    points: tuple[str, str]
    paired: Paired | None
    asked: tuple[int, int]
    """Items of the metric in the first run and in this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedRow:
    """One line of the paired comparison: difference, interval, p, gained and lost, both accuracies, shared items."""

    run: str
    point: str
    cells: tuple[str, ...]
    differs: bool


def plain_metrics(runs: Sequence[ComparedRun]) -> list[str]:
    """The metrics that are one share of items in every run's compared point: the first run's own metric in front."""
    benchmarks = dict.fromkeys(row.benchmark for run in runs for row in run.compared.predictions)
    wanted = [runs[0].metric, "dev/call_accuracy", *(f"{benchmark}/accuracy" for benchmark in benchmarks)]
    return [name for name in dict.fromkeys(wanted) if all(rows_of(name, run.compared) for run in runs)]


def compare(runs: Sequence[ComparedRun], metric: str, points: Sequence[PointResult]) -> list[Comparison]:
    """The first run with each of the others at the given points, one for each run."""
    first, start = runs[0], points[0]
    rows = rows_of(metric, start)
    found = []
    for run, point in zip(runs[1:], points[1:], strict=True):
        others = rows_of(metric, point)
        found.append(
            Comparison(
                label=run.label,
                metric=metric,
                points=(start.point, point.point),
                paired=compare_items(first.correctness(rows), run.correctness(others)),
                asked=(len(rows), len(others)),
            )
        )
    return found


def compare_exported(runs: Sequence[ComparedRun]) -> list[Comparison]:
    """By the metric that leads the page. Raises DataError where no metric, or no item, is common."""
    metrics = plain_metrics(runs)
    if not metrics:
        asked = "; ".join(f"{run.label}: {', '.join(_benchmarks(run))}" for run in runs)
        raise DataError(f"the runs were judged on nothing in common ({asked}): evaluate them on one benchmark")
    found = compare(runs, metrics[0], [run.compared for run in runs])
    for one in found:
        if one.paired is None:
            raise DataError(
                f"{runs[0].label} and {one.label} have no item of {one.metric} in common ({one.asked[0]} and "
                f"{one.asked[1]} items, by content): compare runs with the same data.dev and benchmarks"
            )
    return found


def _benchmarks(run: ComparedRun) -> list[str]:
    return sorted({row.benchmark for row in run.compared.predictions})


def is_clear(paired: Paired, comparisons: int) -> bool:
    """Whether both the interval and the test speak of a difference."""
    return not paired.low <= 0 <= paired.high and paired.p < ALPHA / comparisons


def compare_verdict(runs: Sequence[ComparedRun]) -> Verdict:
    """What the exported points show, and what they cannot."""
    found = [(one, one.paired) for one in compare_exported(runs) if one.paired is not None]
    first, subject = runs[0], metric_name(found[0][0].metric)
    clear = [(one, paired) for one, paired in found if is_clear(paired, len(found))]
    if len(found) == 1 and clear:
        one, paired = clear[0]
        way = "more" if paired.difference > 0 else "fewer"
        size = unbroken(f"{100 * abs(paired.difference):.1f} points")
        headline = f"{one.label} has {size} {way} than {first.label}: {subject}"
    elif len(found) == 1:
        headline = f"No measurable difference between {first.label} and {found[0][0].label}: {subject}"
    elif clear:
        verb = "differs" if len(clear) == 1 else "differ"
        headline = f"{len(clear)} of {len(found)} runs {verb} measurably from {first.label}: {subject}"
    else:
        headline = f"No run differs measurably from {first.label}: {subject}"
    sentences = [_sentence(first, one, paired, len(found)) for one, paired in found]
    fewest = min(paired.n for _, paired in found)
    if fewest < FEW_ITEMS:
        sentences.append(f"With {fewest} items only large differences can be seen.")
    sentences.append(_caveat(runs, found[0][0].metric))
    return Verdict(headline=headline, sentences=tuple(sentences))


def _sentence(first: ComparedRun, one: Comparison, paired: Paired, comparisons: int) -> str:
    begin, end = (point_name(point).lower() for point in one.points)
    told = (
        f"{first.label} ({begin}) has {_percent(paired.first)}, {one.label} ({end}) {_percent(paired.second)} of the "
        f"same {paired.n} items"
    )
    if paired.gained + paired.lost == 0:
        return f"{told}: both answer every item alike, which does not show that they are equal."
    verdict = "a difference" if is_clear(paired, comparisons) else "no measurable difference"
    return (
        f"{told}: {_points(paired.difference)} points, 95 % interval {interval_text(paired)}, {verdict}. {one.label} "
        f"is right on {paired.gained} that {first.label} gets wrong, and wrong on {paired.lost} that it gets right "
        f"(sign test {_p(paired.p)})."
    )


def _caveat(runs: Sequence[ComparedRun], metric: str) -> str:
    """What no interval over items can say."""
    told = "The interval is over items alone. Each run is one training: what another seed of it would give is not in it"
    chosen = [run for run in runs if run.best and run.metric == metric and len(run.points) > 2]
    if chosen:
        told += ", and an exported point that was chosen by this metric stands a little too high"
    return told + "."


def interval_text(paired: Paired) -> str:
    """The 95 % interval; where every item was answered alike there is none to give, and it says so."""
    if not paired.gained + paired.lost:
        return unbroken("all alike")
    return unbroken(f"{_points(paired.low)} to {_points(paired.high)}")


def p_text(p: float) -> str:
    return unbroken("< 0.001") if p < 0.001 else f"{p:.3f}"


def _p(p: float) -> str:
    return unbroken(f"p {p_text(p)}" if p < 0.001 else f"p = {p_text(p)}")


def _points(share: float) -> str:
    """A difference of shares in points; never a minus before nothing."""
    value = round(100 * share, 1)
    return "0.0" if value == 0 else f"{value:+.1f}".replace("-", "−")


def _percent(share: float) -> str:
    return unbroken(f"{100 * share:.1f} %")


def paired_groups(runs: Sequence[ComparedRun]) -> list[dict[str, Any]]:
    """By metric: a row for each other run at the exported points, and, for the leading metric, at every point that both
    have under one name."""
    metrics = plain_metrics(runs)
    many = len(runs) - 1
    groups = []
    for metric in metrics:
        found = compare(runs, metric, [run.compared for run in runs])
        rows = [_paired_row(one, many, exported=True) for one in found]
        if metric == metrics[0]:
            for run in runs[1:]:
                named = {point.point: point for point in run.points}
                for point in runs[0].points:
                    other = named.get(point.point)
                    if other is None or (point, other) == (runs[0].compared, run.compared):
                        continue
                    if rows_of(metric, point) and rows_of(metric, other):
                        one = compare([runs[0], run], metric, [point, other])[0]
                        rows.append(_paired_row(one, many, exported=False))
        groups.append({"title": metric_name(metric), "rows": rows})
    return groups


def _paired_row(one: Comparison, comparisons: int, *, exported: bool) -> PairedRow:
    begin, end = (point_name(point).lower() for point in one.points)
    points = begin if begin == end else f"{begin} against {end}"
    paired = one.paired
    cells = (*("–",) * 6, "0")
    if paired is not None:
        cells = (
            _points(paired.difference),
            interval_text(paired),
            p_text(paired.p),
            f"{paired.gained} / {paired.lost}",
            _percent(paired.first),
            _percent(paired.second),
            str(paired.n),
        )
    return PairedRow(
        run=one.label,
        point=f"exported: {points}" if exported else points,
        cells=cells,
        differs=exported and paired is not None and is_clear(paired, comparisons),
    )


def accuracy_charts(runs: Sequence[ComparedRun]) -> list[Chart]:
    """One chart for each metric: every run's points with Wilson's 95 % intervals."""
    charts = []
    for metric in plain_metrics(runs):
        names = _point_names(runs)
        lines = [(run.label, [_interval(metric, run, name) for name in names]) for run in runs]
        charts.append((metric_name(metric), runs_chart(metric_name(metric), names, lines)))
    return charts


def _point_names(runs: Sequence[ComparedRun]) -> list[str]:
    """Points of all runs in the order of a run: base, warm-up, iterations."""
    found = {point.point: point.iteration for run in runs for point in run.points}
    first = {"base": 0, "resumed": 1, "warmup": 2}
    return sorted(found, key=lambda name: (found[name], first.get(name, 3), name))


def _interval(metric: str, run: ComparedRun, name: str) -> Interval | None:
    point = next((point for point in run.points if point.point == name), None)
    rows = rows_of(metric, point) if point is not None else []
    if not rows:
        return None
    correct = sum(row.correct for row in rows)
    low, high = wilson(correct, len(rows))
    return Interval(value=correct / len(rows), low=low, high=high)


def as_points(runs: Sequence[ComparedRun]) -> ReportData:
    """The runs in the place of a report's points: a table with a column for each point has then one for each run."""
    points = tuple(
        PointResult(point=run.label, iteration=at, predictions=run.compared.predictions) for at, run in enumerate(runs)
    )
    return ReportData(run="", created="", metric=runs[0].metric, best=None, points=points)


def category_differences(runs: Sequence[ComparedRun]) -> list[dict[str, Any]]:
    """The report's tables by category, with the paired difference of each other run."""
    tables = category_tables(as_points(runs))
    for table in tables:
        for row in table["rows"]:
            row["differences"] = [_difference(runs[0], run, table["benchmark"], row["category"]) for run in runs[1:]]
        table["groups"] = [row for row in table["groups"] if set(row["cells"]) != {"missing"}]
    return tables


def error_classes(runs: Sequence[ComparedRun]) -> list[dict[str, Any]]:
    """The report's tables of error classes, those left out that no run has."""
    tables = error_tables(as_points(runs))
    for table in tables:
        table["rows"] = [row for row in table["rows"] if any(cell["count"] for cell in row["cells"])]
    return tables


def _difference(first: ComparedRun, run: ComparedRun, benchmark: str, category: str) -> str:
    rows = [[row for row in one.compared.of(benchmark) if row.category == category] for one in (first, run)]
    paired = compare_items(first.correctness(rows[0]), run.correctness(rows[1]))
    return "–" if paired is None else unbroken(f"{_points(paired.difference)} ({interval_text(paired)})")


def cost_groups(runs: Sequence[ComparedRun]) -> list[tuple[str, list[Row]]]:
    """Time, requests and tokens of all stages together and of each stage."""
    stages = dict.fromkeys(cost.stage for run in runs for cost in run.costs)
    order = sorted(stages, key=lambda stage: (int(stage[1:].partition("/")[0]), list(stages).index(stage)))
    groups = [("All stages", _cost_rows([_total(run) for run in runs]))]
    for stage in order:
        columns = [
            next(({"seconds": cost.seconds, **cost.counters} for cost in run.costs if cost.stage == stage), {})
            for run in runs
        ]
        groups.append((stage, _cost_rows(columns)))
    return groups


def _total(run: ComparedRun) -> dict[str, float]:
    found = {"seconds": math.fsum(cost.seconds for cost in run.costs)}
    for cost in run.costs:
        for name, value in cost.counters.items():
            found[name] = found.get(name, 0.0) + value
    return found


def _cost_rows(columns: Sequence[Mapping[str, float]]) -> list[Row]:
    times = tuple(duration(column["seconds"]) if "seconds" in column else "–" for column in columns)
    return [Row(name="Time", cells=times), *count_rows(columns, COSTS)]


def build_comparison(runs: Sequence[ComparedRun]) -> str:
    """The page. Deterministic: equal runs give equal text. Raises DataError where nothing can be compared."""
    told = compare_verdict(runs)
    return (
        environment()
        .get_template("comparison.html.jinja")
        .render(
            runs=runs,
            verdict=told,
            settings=setting_rows([run.settings for run in runs]),
            facts=differing([run.facts for run in runs]),
            points=[point_name(run.compared.point) for run in runs],
            charts=accuracy_charts(runs),
            paired=paired_groups(runs),
            comparisons=len(runs) - 1,
            categories=category_differences(runs),
            errors=error_classes(runs),
            costs=cost_groups(runs),
        )
    )
