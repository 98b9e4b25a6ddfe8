"""`itrain watch`: the screen of a local run, fed by a run in a cluster."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime

from rich.console import Console

from itrain_contract.names import ExitCode, Phase
from itrain_operator.cli_local import best_point, exit_code
from itrain_operator.clusteraccess import Access
from itrain_operator.clusterfollow import Gone, Lost, follow
from itrain_operator.clusterruns import ClusterRun
from itrain_operator.clusterview import facts, resource_json, run_curve, run_view
from itrain_operator.display import Display, LiveDisplay, PlainDisplay
from itrain_operator.localview import View
from itrain_operator.render import curve_table, write

FRAME_S = 0.2
REDRAW_S = 1.0
"""How often times and remaining times are counted on between two changes."""
HINT = "Ctrl-C leaves; the run goes on"


def utc_now() -> datetime:
    return datetime.now(UTC)


async def watch(access: Access, name: str, *, plain: bool, as_json: bool) -> int:
    """Until the run has ended or is gone; the exit code of the run. Raises ClusterError when it cannot be read."""
    if as_json:
        return await _watch_json(access, name)
    progress, out = Console(stderr=True), Console()
    live = progress.is_terminal and not plain
    display: Display = LiveDisplay(progress, hint=HINT) if live else PlainDisplay(_to_stderr, time.monotonic)
    with display:
        screen = Screen(display, utc_now)
        frames = asyncio.create_task(screen.animate())
        try:
            async with aclosing(follow(access, name)) as versions:
                async for seen in versions:
                    if screen.see(seen):
                        break
        finally:
            frames.cancel()
    return _close(screen, out, access, name)


class Screen:
    """What is on the display, moved on between two changes."""

    def __init__(self, display: Display, clock: Callable[[], datetime]) -> None:
        self._display = display
        self._clock = clock
        self._lost = ""
        self.run: ClusterRun | None = None
        self.gone = False

    def see(self, seen: ClusterRun | Lost | Gone) -> bool:
        """Show it; whether there is nothing more to come."""
        if isinstance(seen, Gone):
            self.gone = True
        elif isinstance(seen, Lost):
            self._lost = f"the API server cannot be reached, trying again: {seen.message}"
        else:
            self._lost, self.run = "", seen
        self.show()
        return self.gone or (self.run is not None and self.run.status.phase.terminal)

    def show(self) -> None:
        if self.run is not None:
            self._display.show(self.view(self.run), stopping=False)

    def view(self, run: ClusterRun) -> View:
        view = run_view(run, self._clock())
        if self.gone:
            return replace(view, message=f"{run.name} was deleted")
        return replace(view, message=self._lost or view.message)

    async def animate(self) -> None:
        shown = 0.0
        while True:
            await asyncio.sleep(FRAME_S)
            if time.monotonic() - shown >= REDRAW_S:
                shown = time.monotonic()
                self.show()
            self._display.animate()


def _close(screen: Screen, out: Console, access: Access, name: str) -> int:
    run = screen.run
    if run is None or screen.gone:
        return ExitCode.PERMANENT
    curve = run_curve(run)
    if curve:
        write(out, "", curve_table(curve, width=out.width, best=best_point(run.status, curve)), "")
    write(out, facts(run))
    if run.status.phase == Phase.FAILED:
        write(out, f"failed ({run.status.reason.value}): {run.status.message}")
        write(out, f"logs  itrain logs {name}{access.options()}")
    elif run.status.report_uri:
        write(out, f"report  itrain report {name}{access.options()}")
    return exit_code(run.status)


async def _watch_json(access: Access, name: str) -> int:
    """One line for each version of the run."""
    async with aclosing(follow(access, name)) as versions:
        async for seen in versions:
            if isinstance(seen, ClusterRun):
                sys.stdout.write(json.dumps(resource_json(seen), default=str) + "\n")
                sys.stdout.flush()
                if seen.status.phase.terminal:
                    return exit_code(seen.status)
    return ExitCode.PERMANENT


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
