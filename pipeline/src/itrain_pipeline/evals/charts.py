"""The report's charts as inline SVG: text stays text, colours are CSS variables, equal data give equal bytes.

Each chart is drawn 360 px wide and never enlarged, so it is readable on a telephone and stands beside others on a
desk. matplotlib is imported when the first chart is drawn.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from itrain_pipeline.evals.metrics import Score

_WIDTH_IN, _HEIGHT_IN = 3.75, 2.5
_INK, _MUTED, _GRID = "#010101", "#020202", "#030303"
_SERIES = ("#0a0a01", "#0a0a02", "#0a0a03", "#0a0a04")
_DASHES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_VARIABLES: Mapping[str, str] = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _GRID: "var(--line)",
    **{colour: f"var(--series-{index})" for index, colour in enumerate(_SERIES, start=1)},
}
"""Colours that stand for CSS variables: matplotlib accepts only real ones."""

Line = tuple[str, Sequence[float], Sequence[float]]
"""Label, x and y of one line."""


def learning_curve(title: str, points: Sequence[str], scores: Sequence[Score | None]) -> str:
    """Accuracy in per cent over the points of a run, with ± one standard error; a missing point leaves a gap."""

    def draw(axes: Any) -> None:
        known = [(x, score) for x, score in enumerate(scores) if score is not None]
        xs = [x for x, _ in known]
        ys = [100 * score.value for _, score in known]
        errors = [100 * score.se for _, score in known]
        axes.errorbar(xs, ys, yerr=errors, color=_SERIES[0], marker="o", markersize=4, capsize=3, linewidth=1.6)
        for x, y, error in zip(xs, ys, errors, strict=True):
            axes.annotate(
                f"{y:.1f}", (x, y + error), xytext=(0, 5), textcoords="offset points", ha="center", color=_INK
            )
        axes.set_xticks(range(len(points)), short_names(points))
        axes.set_xlim(-0.4, len(points) - 0.6)
        low = min((y - e for y, e in zip(ys, errors, strict=True)), default=0.0)
        high = max((y + e for y, e in zip(ys, errors, strict=True)), default=100.0)
        margin = max(5.0, 0.25 * (high - low))
        axes.set_ylim(max(0.0, low - margin), min(108.0, high + 1.6 * margin))
        _ticks_of_shares(axes)
        axes.set_ylabel("% correct")

    described = "; ".join(
        f"{point} {100 * score.value:.1f} ± {100 * score.se:.1f} %" if score else f"{point} not measured"
        for point, score in zip(points, scores, strict=True)
    )
    return _svg(title, f"{title}: {described}", draw)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A share between 0 and 1 and the ends of its interval."""

    value: float
    low: float
    high: float


def runs_chart(title: str, points: Sequence[str], lines: Sequence[tuple[str, Sequence[Interval | None]]]) -> str:
    """Several runs over the points of a run, in per cent, each with the bars of its intervals; told apart by marker and
    dashes as well as by colour. A missing point leaves a gap."""

    def draw(axes: Any) -> None:
        step = min(0.12, 0.5 / max(1, len(lines)))
        for index, (label, intervals) in enumerate(lines):
            shift = (index - (len(lines) - 1) / 2) * step
            known = [(x + shift, interval) for x, interval in enumerate(intervals) if interval is not None]
            ys = [100 * interval.value for _, interval in known]
            below = [100 * (interval.value - interval.low) for _, interval in known]
            above = [100 * (interval.high - interval.value) for _, interval in known]
            axes.errorbar(
                [x for x, _ in known],
                ys,
                yerr=[below, above],
                color=_SERIES[index % 4],
                linestyle=_DASHES[index % 4],
                marker=_MARKERS[index % len(_MARKERS)],
                markersize=4,
                capsize=2.5,
                linewidth=1.4,
                elinewidth=1.0,
                label=shortened(label),
            )
        axes.set_xticks(range(len(points)), short_names(points))
        axes.set_xlim(-0.5, len(points) - 0.5)
        axes.set_ylabel("% correct")
        _ticks_of_shares(axes)
        axes.legend(
            frameon=False,
            fontsize=8,
            labelcolor=_INK,
            handlelength=2.4,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=2,
        )

    described = "; ".join(f"{label}: {_told(points, intervals)}" for label, intervals in lines)
    return _svg(title, f"{title}: {described}", draw)


def _told(points: Sequence[str], intervals: Sequence[Interval | None]) -> str:
    return ", ".join(
        f"{point} {100 * found.value:.1f} % ({100 * found.low:.1f} to {100 * found.high:.1f})"
        if found
        else f"{point} not measured"
        for point, found in zip(points, intervals, strict=True)
    )


def shortened(label: str, most: int = 20) -> str:
    """A name that fits into a legend; its end is kept, in which names of runs mostly differ."""
    return label if len(label) <= most else "…" + label[-(most - 1) :]


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    ylabel: str,
    xlabel: str = "step",
    ylim: tuple[float, float] | None = None,
    marked: bool = False,
) -> str:
    """Up to four lines, told apart by dashes too; more are drawn alike again. `marked` shows where values were taken,
    which a line of few values does anyway."""

    def draw(axes: Any) -> None:
        for index, (label, xs, ys) in enumerate(lines):
            marker = "o" if marked or len(xs) < 3 else None
            style = _DASHES[index % 4]
            axes.plot(
                xs,
                ys,
                color=_SERIES[index % 4],
                linestyle=style,
                label=label,
                linewidth=1.4,
                marker=marker,
                markersize=3,
            )
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.xaxis.set_major_locator(_whole_numbers())
        steps = [x for _, xs, _ in lines for x in xs]
        if steps and min(steps) == max(steps):
            axes.set_xlim(steps[0] - 1.5, steps[0] + 1.5)
        if ylim is not None:
            axes.set_ylim(*ylim)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=8, labelcolor=_INK, handlelength=1.2)

    ends = "; ".join(f"{label} from {ys[0]:.3g} to {ys[-1]:.3g}" for label, _, ys in lines if ys)
    return _svg(title, f"{title}: {ends}", draw)


def histogram(title: str, groups: Sequence[tuple[str, Sequence[float]]], *, xlabel: str, bins: int = 24) -> str:
    """Counts of positive values in bins of equal width on a logarithmic axis, groups laid over each other."""
    everything = [value for _, values in groups for value in values]
    edges = log_edges(everything, bins)

    def draw(axes: Any) -> None:
        for index, (label, values) in enumerate(groups):
            if values:
                axes.hist(values, bins=edges, color=_SERIES[index % 4], alpha=0.55, label=label)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(_ticks(edges))
        axes.xaxis.set_major_formatter(lambda value, _position: f"{value:g}")
        axes.xaxis.set_minor_locator(_no_ticks())
        axes.set_xlabel(xlabel)
        axes.set_ylabel("answers")
        if len(groups) > 1:
            axes.legend(frameon=False, fontsize=8, labelcolor=_INK, handlelength=1.2)

    spread = f"{len(everything)} answers, from {min(everything):.3g} to {max(everything):.3g}" if everything else "none"
    return _svg(title, f"{title}: {spread}", draw)


def log_edges(values: Iterable[float], bins: int) -> list[float]:
    """`bins` + 1 edges, equally spaced in the logarithm, that hold every value."""
    found = list(values)
    low, high = (min(found), max(found)) if found else (1.0, 10.0)
    if high <= low * 1.01:
        low, high = low / 1.5, high * 1.5
    ratio = math.log(high / low)
    inner = [low * math.exp(ratio * index / bins) for index in range(1, bins)]
    return [low, *inner, high]


def _ticks(edges: Sequence[float]) -> Any:
    """At most four readable numbers (1, 2, 5 times a power of ten) inside the range; where it holds fewer than three of
    them, evenly spaced ones."""
    from matplotlib.ticker import FixedLocator, MaxNLocator

    decades = range(math.floor(math.log10(edges[0])), math.ceil(math.log10(edges[-1])) + 1)
    nice = [m * 10.0**d for d in decades for m in (1, 1.5, 2, 3, 5, 7) if edges[0] <= m * 10.0**d <= edges[-1]]
    if len(nice) < 3:
        evenly = MaxNLocator(nbins=4).tick_values(edges[0], edges[-1])
        return FixedLocator([tick for tick in evenly if edges[0] <= tick <= edges[-1]])
    stride = max(1, math.ceil(len(nice) / 4))
    return FixedLocator(nice[::stride])


def _ticks_of_shares(axes: Any) -> None:
    """No tick stands above 100 %, where there is only room for a number."""
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in axes.get_yticks() if low <= tick <= 100])
    axes.set_ylim(low, high)


def _whole_numbers() -> Any:
    """Steps are counted: no tick stands between two of them."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=6, integer=True)


def _no_ticks() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


def short_names(points: Sequence[str]) -> list[str]:
    """Axis labels that fit: `base, warm-up, it. 1`, or `base, w, 1, 2 …` for more than five points."""
    if len(points) > 5:
        return [point.replace("iteration-", "").replace("warmup", "w") for point in points]
    return [point.replace("iteration-", "it. ").replace("warmup", "warm-up") for point in points]


def _svg(title: str, description: str, draw: Callable[[Any], None]) -> str:
    """One chart, drawn by `draw` on the axes, as an `<svg>` element with a name for screen readers."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "itrain",
        "font.family": "sans-serif",
        "font.size": 9,
        "text.color": _INK,
        "axes.labelcolor": _MUTED,
        "axes.edgecolor": _GRID,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": _GRID,
        "ytick.color": _GRID,
        "xtick.labelcolor": _MUTED,
        "ytick.labelcolor": _MUTED,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "grid.color": _GRID,
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        draw(axes)
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return restyle(out.getvalue(), title, description)


def restyle(svg: str, title: str, description: str) -> str:
    """matplotlib's file as an element for HTML: no prolog, own ids, the page's font, colours as variables."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, variable)
    prefix = "c" + hashlib.sha256(f"{title}\n{description}\n{body}".encode()).hexdigest()[:8]
    body = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", body)
    box = re.search(r'viewBox="([^"]+)"', body)
    opening = (
        f'<svg class="chart" role="img" aria-label="{escape(description, quote=True)}" viewBox="{box[1]}">'
        if box
        else ""
    )
    return re.sub(r"<svg[^>]*>", lambda _match: opening, body, count=1).strip()
