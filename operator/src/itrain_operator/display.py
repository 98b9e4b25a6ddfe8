"""Where a run is shown while it runs: a live screen on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.live import Live as LiveScreen
from rich.spinner import Spinner

from itrain_operator.actions import Emit, EventReason
from itrain_operator.localview import View, plain_lines
from itrain_operator.render import screen

PROGRESS_S = 10.0
"""Seconds between two progress lines of one stage, without a terminal."""
HINT = "Ctrl-C stops after saving; the same command continues"
HINT_STOPPING = "saving and stopping (up to 30 s); Ctrl-C again kills"


class Display(Protocol):
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def show(self, view: View, *, stopping: bool) -> None:
        """After every pass."""

    def event(self, event: Emit) -> None:
        """Something happened to the run."""

    def animate(self) -> None:
        """Several times a second, between passes."""


class LiveDisplay:
    """The stage list, redrawn in place; warnings scroll above it."""

    def __init__(self, console: Console, *, hint: str = HINT) -> None:
        self._console = console
        self._hint = hint
        self._spinner = Spinner("dots", style="cyan")
        self._live = LiveScreen(console=console, auto_refresh=False, transient=False, redirect_stderr=False)
        self._last: tuple[View, bool] | None = None

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._last is not None:
            self._draw(self._last[0], hint="")
        self._live.__exit__(kind, error, trace)

    def show(self, view: View, *, stopping: bool) -> None:
        self._last = (view, stopping)
        self.animate()

    def event(self, event: Emit) -> None:
        if event.type == "Warning" and event.reason != EventReason.FAILED:  # the closing words tell that
            self._console.print(event.message, style="yellow", highlight=False)

    def animate(self) -> None:
        if self._last is not None:
            view, stopping = self._last
            self._draw(view, hint=HINT_STOPPING if stopping else self._hint)

    def _draw(self, view: View, hint: str) -> None:
        size = self._console.size
        drawn = screen(view, width=size.width, height=size.height, hint=hint, spinner=self._spinner)
        self._live.update(drawn, refresh=True)


class PlainDisplay:
    """One line per transition, progress every ten seconds. `clock` gives seconds, monotonic."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._write = write
        self._clock = clock
        self._last: View | None = None
        self._progress_at = clock()
        self._told_stopping = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def show(self, view: View, *, stopping: bool) -> None:
        now = self._clock()
        due = now - self._progress_at >= PROGRESS_S
        lines = plain_lines(self._last, view, progress=due)
        if due or lines or self._last is None:
            self._progress_at = now
            self._last = view
        if stopping and not self._told_stopping:
            self._told_stopping = True
            lines.append(HINT_STOPPING)
        for line in lines:
            self._write(f"{view.name}: {line}")

    def event(self, event: Emit) -> None:
        if event.type == "Warning" and event.reason != EventReason.FAILED:
            self._write(f"warning: {event.message}")

    def animate(self) -> None:
        return None
