"""What `itrain evaluate` shows: how far it is, and at the end every figure with its n and standard error."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from itrain_pipeline.evals.asking import Failure
from itrain_pipeline.evals.metrics import Groups, Score, count_errors, score_groups
from itrain_pipeline.records import Prediction

PLAIN_INTERVAL_S = 5.0
PLAIN_WIDTH = 140


@dataclass(slots=True, kw_only=True)
class Tally:
    """What is known so far, those of an earlier call included."""

    total: int
    answered: int = 0
    correct: int = 0
    failed: int = 0

    def add(self, one: Prediction | Failure) -> None:
        if isinstance(one, Failure):
            self.failed += 1
        else:
            self.answered += 1
            self.correct += one.correct

    def __str__(self) -> str:
        share = f"{100 * self.correct / self.answered:.1f} % right" if self.answered else "nothing answered"
        return share + (f", {self.failed} failed" if self.failed else "")


class Meter:
    """A bar on a terminal, elsewhere a line every few seconds and one at the end. A context manager."""

    def __init__(
        self, tally: Tally, stream: TextIO, *, plain: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tally, self._stream, self._clock = tally, stream, clock
        self._told_at = float("-inf")
        self._bar: Progress | None = None
        if not plain and stream.isatty():
            columns = (
                TextColumn("evaluate"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(file=stream))

    def __enter__(self) -> Meter:
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task(str(self._tally), total=self._tally.total, completed=self._tally.answered)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()
        else:
            self._line()

    def add(self, one: Prediction | Failure) -> None:
        self._tally.add(one)
        if self._bar:
            done = self._tally.answered + self._tally.failed
            self._bar.update(self._task, completed=done, description=str(self._tally))
        elif self._clock() - self._told_at >= PLAIN_INTERVAL_S:
            self._line()

    def _line(self) -> None:
        self._told_at = self._clock()
        done = self._tally.answered + self._tally.failed
        self._stream.write(f"evaluate {done}/{self._tally.total} {self._tally}\n")
        self._stream.flush()


def summary_lines(
    predictions: Sequence[Prediction], groups: Mapping[str, Groups], failures: Sequence[Failure], out: TextIO
) -> None:
    """Write the table of figures, the errors, and what has no answer."""
    terminal = out.isatty()
    console = Console(file=out, width=None if terminal else PLAIN_WIDTH, highlight=False)
    if predictions:
        console.print(score_table(predictions, groups))
    for benchmark in dict.fromkeys(p.benchmark for p in predictions):
        errors = count_errors(p for p in predictions if p.benchmark == benchmark)
        if errors:
            console.print(f"errors {benchmark}  " + ", ".join(f"{name} {count}" for name, count in errors.items()))
    if failures:
        kinds = ", ".join(f"{kind} {n}" for kind, n in Counter(f.kind.value for f in failures).most_common())
        console.print(f"no answer  {len(failures)} items ({kinds}): in none of the figures above", markup=False)
        console.print(f"first      {failures[0].category}/{failures[0].id}: {failures[0].detail}", markup=False)


def score_table(predictions: Sequence[Prediction], groups: Mapping[str, Groups]) -> Table:
    """A row for each metric. `never calls` is what a model that refuses everything would score on the same items."""
    table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="bold")
    table.add_column("metric", no_wrap=True)
    for heading in ("%", "± SE", "n", "never calls"):
        table.add_column(heading, justify="right", no_wrap=True)
    baseline = score_groups(
        [replace(p, correct=p.category.endswith("irrelevance") or p.category == "no_call") for p in predictions], groups
    )
    for name, score in score_groups(predictions, groups).items():
        refusing = f"{100 * baseline[name].value:.1f}" if name.startswith(("bfcl/", "dev/")) else ""
        table.add_row(name, *_cells(score), refusing)
    return table


def _cells(score: Score) -> tuple[str, str, str]:
    return f"{100 * score.value:.1f}", f"{100 * score.se:.1f}", str(score.n)
