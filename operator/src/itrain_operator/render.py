"""Views of a run for a terminal, with rich; plain text elsewhere is in `localview.plain_lines`."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from itrain_contract.names import Phase
from itrain_operator.localview import LineState, StageLine, View, duration
from itrain_operator.points import Point, count_of, shown_metrics

PHASE_STYLE = {
    Phase.SUCCEEDED: "bold green",
    Phase.FAILED: "bold red",
    Phase.SUSPENDED: "bold yellow",
}
MARKS = {
    LineState.PLANNED: ("·", "dim"),
    LineState.WAITING: ("…", "yellow"),
    LineState.DONE: ("✓", "green"),
    LineState.FAILED: ("✗", "red"),
    LineState.INTERRUPTED: ("‖", "yellow"),
}
TITLE_WIDTH, TIME_WIDTH, BAR_WIDTH = 22, 6, 20
NARROW = 72
"""Columns below which progress bars give way to the text."""


POINT_WIDTH, METRIC_WIDTH = 16, 24
"""Columns of the curve's table that a point's name and one metric with its n take."""
OTHER_ROWS = 6
"""Rows of the screen that are no stages: header, the two ends of the window, message, hint, cursor."""


def header(view: View) -> Text:
    text = Text()
    text.append(view.name, style="bold")
    text.append(f"  {view.phase.value}", style=PHASE_STYLE.get(view.phase, "cyan"))
    if view.iteration_text:
        text.append(f"  iteration {view.iteration_text}")
    text.append(f"  {duration(view.elapsed_s)}", style="dim")
    return text


def window(lines: tuple[StageLine, ...], rows: int) -> tuple[int, int]:
    """First and last + 1 of the lines to show when only `rows` fit: around the first that is not done."""
    if len(lines) <= rows:
        return 0, len(lines)
    at = next((k for k, line in enumerate(lines) if line.state != LineState.DONE), len(lines) - 1)
    first = max(0, min(at - rows // 2, len(lines) - rows))
    return first, first + rows


def stage_table(view: View, *, width: int, rows: int, spinner: Spinner | None = None) -> Table:
    """A row for each stage: mark, name, time, bar while it runs, and what it said; `rows` at most."""
    table = Table.grid(padding=(0, 1))
    table.add_column(width=1)
    table.add_column(no_wrap=True, min_width=TITLE_WIDTH)
    table.add_column(justify="right", min_width=TIME_WIDTH, no_wrap=True)
    table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    first, end = window(view.lines, rows)
    if first:
        table.add_row("", Text(f"{first} stages before", style="dim"), "", "")
    shown = view.lines[first:end]
    title_width = max([TITLE_WIDTH, *(_title(line).cell_len for line in shown)])
    room = width - title_width - TIME_WIDTH - 4
    for line in shown:
        table.add_row(_mark(line, spinner), _title(line), _time(line), _detail(line, width, room))
    if end < len(view.lines):
        table.add_row("", Text(f"{len(view.lines) - end} stages after", style="dim"), "", "")
    return table


def _mark(line: StageLine, spinner: Spinner | None) -> RenderableType:
    if line.state == LineState.RUNNING:
        return spinner or Text("»", style="cyan")
    mark, style = MARKS[line.state]
    return Text(mark, style=style)


def _title(line: StageLine) -> Text:
    styles = {LineState.PLANNED: "dim", LineState.RUNNING: "bold"}
    text = Text(line.title, style=styles.get(line.state, ""))
    if line.attempt > 1 and line.state != LineState.PLANNED:
        text.append(f" (attempt {line.attempt})", style="yellow")
    return text


def _time(line: StageLine) -> Text:
    return Text("" if line.state == LineState.PLANNED or not line.seconds else duration(line.seconds), style="dim")


def _detail(line: StageLine, width: int, room: int) -> RenderableType:
    """Within `room` columns: rich would take what is missing from the other columns, marks and times too."""
    live = line.live
    if line.state != LineState.RUNNING or not live.total:
        return _cut(Text(line.note, style="dim" if line.state == LineState.DONE else ""), room)
    eta = f" {duration(live.eta_s)} left" if live.eta_s is not None else ""
    words = Text(f"{100 * live.done // live.total:3d}%{eta}  {line.note}")
    if width < NARROW:
        return _cut(words, room)
    row = Table.grid(padding=(0, 1))
    row.add_column(width=BAR_WIDTH)
    row.add_column(no_wrap=True, overflow="ellipsis")
    row.add_row(
        ProgressBar(total=live.total, completed=min(live.done, live.total), width=BAR_WIDTH),
        _cut(words, room - BAR_WIDTH - 1),
    )
    return row


def _cut(text: Text, room: int) -> Text:
    text.truncate(max(1, room), overflow="ellipsis")
    return text


def screen(view: View, *, width: int, height: int, hint: str, spinner: Spinner | None = None) -> Group:
    """The live screen: header, stages, and what the keys do; `height` 0 is no limit."""
    rows = max(3, height - OTHER_ROWS) if height else len(view.lines)
    parts: list[RenderableType] = [header(view), stage_table(view, width=width, rows=rows, spinner=spinner)]
    if view.message and view.phase != Phase.FAILED:
        parts.append(Text(view.message, style="yellow"))
    if hint:
        parts.append(Text(hint, style="dim"))
    return Group(*parts)


def curve_table(curve: list[Point], *, width: int, best: str = "") -> Table:
    """The learning curve: a row per point; accuracy ± standard error and n, for as many metrics as fit."""
    names = shown_metrics(curve)[: max(1, (width - POINT_WIDTH) // METRIC_WIDTH)]
    table = Table(show_edge=False, pad_edge=False, box=None, padding=(0, 2), header_style="bold")
    table.add_column("", no_wrap=True)
    for name in names:
        heading = name.removesuffix("/accuracy").replace("_accuracy", "").replace("/", " ").replace("_", " ")
        table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("n", justify="right", style="dim", no_wrap=True)
    for point in curve:
        cells = [Text(point.label, style="bold green" if point.name == best else "")]
        for name in names:
            value, se = point.metrics.get(name), point.metrics.get(f"{name}_se")
            shown = "–" if value is None else f"{value:.3f}" + (f" ± {se:.3f}" if se is not None else "")
            n = count_of(point.metrics, name)
            cells += [Text(shown), Text("" if n is None else str(n))]
        table.add_row(*cells)
    return table


def write(console: Console, *parts: RenderableType) -> None:
    for part in parts:
        console.print(part, highlight=False, soft_wrap=isinstance(part, (str, Text)))
