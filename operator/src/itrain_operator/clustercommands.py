"""`itrain list`, `status`, `suspend`, `resume` and `wait` of runs in a cluster."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from rich.console import Console, Group, JustifyMethod
from rich.table import Table
from rich.text import Text

from itrain_contract.names import ExitCode, Phase
from itrain_operator.cli_local import best_point, exit_code
from itrain_operator.clusteraccess import Access, ClusterError, explain
from itrain_operator.clusterfollow import Gone, Lost, follow
from itrain_operator.clusterruns import ClusterRun, read_run
from itrain_operator.clusterview import facts, list_row, run_curve, run_view
from itrain_operator.kubeapi import RUNS, ApiError, pages
from itrain_operator.render import PHASE_STYLE, curve_table, screen, write

GAP = 2
NAME_WIDTH, NOTE_WIDTH = 12, 12
"""Columns below which a name or a note tells nothing."""
TIMED_OUT = 124
"""Exit code of a wait that was not rewarded in time, as of `timeout(1)`."""
GIT_WORDS = {
    True: "{tool} applies this run and may undo this: commit `suspend: true` instead",
    False: "{tool} applies this run and may undo this: commit `suspend: false` instead",
}


async def get_run(access: Access, name: str) -> ClusterRun:
    try:
        return read_run(await access.cluster.get(RUNS, access.namespace, name))
    except ApiError as error:
        raise explain(error, access, name) from error


async def list_runs(access: Access, *, everywhere: bool, labels: str) -> list[ClusterRun]:
    """By namespace and name."""
    namespace = "" if everywhere else access.namespace
    try:
        found = [raw async for page in pages(access.cluster, RUNS, namespace, labels=labels) for raw in page.items]
    except ApiError as error:
        raise explain(error, access) from error
    return sorted((read_run(raw) for raw in found), key=lambda run: (run.namespace, run.name))


def list_table(runs: list[ClusterRun], now: datetime, *, everywhere: bool, width: int) -> Table:
    """A row for each run; the note takes what is left of `width`. Of the others only names are cut, where they must."""
    rows = [list_row(run, now) for run in runs]
    fields = [*(["namespace"] if everywhere else []), "name", "phase", "iter", "stage", "progress", "best", "age"]
    needed = {name: max([len(name), *(len(getattr(row, name)) for row in rows)]) for name in fields}
    left = width - sum(needed.values()) - GAP * len(fields)
    needed["name"] = max(NAME_WIDTH, needed["name"] + min(0, left))
    table = Table.grid(padding=(0, GAP, 0, 0))
    for name in fields:
        justify: JustifyMethod = "right" if name in ("progress", "best", "age") else "left"
        table.add_column(no_wrap=True, min_width=needed[name], max_width=needed[name], justify=justify)
    table.add_column(no_wrap=True, overflow="ellipsis", max_width=max(left, 1))
    table.add_row(*(Text(name, style="bold") for name in fields), "")
    for run, row in zip(runs, rows, strict=True):
        styles = {"name": "bold", "phase": PHASE_STYLE.get(run.status.phase, "cyan")}
        cells = [Text(getattr(row, name), style=styles.get(name, "")) for name in fields]
        table.add_row(*cells, Text(row.note if left >= NOTE_WIDTH else "", style="dim"))
    return table


def show_run(console: Console, run: ClusterRun, now: datetime) -> None:
    """Stages, what went wrong, and the learning curve."""
    write(console, screen(run_view(run, now), width=console.width, height=0, hint=facts(run)))
    if run.status.phase == Phase.FAILED:
        write(console, Group(Text(f"failed ({run.status.reason.value}): {run.status.message}")))
    curve = run_curve(run)
    if curve:
        write(console, "", curve_table(curve, width=console.width, best=best_point(run.status, curve)))


async def suspend(access: Access, name: str, *, suspended: bool) -> tuple[ClusterRun, str]:
    """Set spec.suspend; the run as it is then, and a word of warning where somebody else may undo it."""
    before = await get_run(access, name)
    if before.status.phase.terminal:
        raise ClusterError(f"{name} has ended ({before.status.phase.value}): there is nothing to suspend or resume")
    try:
        raw = await access.cluster.merge_patch(RUNS, access.namespace, name, {"spec": {"suspend": suspended}})
    except ApiError as error:
        raise explain(error, access, name) from error
    tool = before.managed_by
    return read_run(raw), GIT_WORDS[suspended].format(tool=tool) if tool else ""


class Goal(StrEnum):
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    FINISHED = "finished"
    SUSPENDED = "suspended"


@dataclass(frozen=True, slots=True, kw_only=True)
class Waited:
    run: ClusterRun | None
    """As it was last seen."""
    code: int
    message: str


async def wait_for(access: Access, name: str, goal: Goal, *, timeout_s: float | None) -> Waited:
    """Until the goal is reached or cannot be reached any more. Raises ClusterError when the run cannot be read."""
    last: ClusterRun | None = None
    try:
        async with asyncio.timeout(timeout_s):
            async with aclosing(follow(access, name)) as versions:
                async for seen in versions:
                    if isinstance(seen, Gone):
                        return Waited(run=last, code=ExitCode.PERMANENT, message=f"{name} was deleted")
                    if isinstance(seen, Lost):
                        continue
                    last = seen
                    code = judge(last, goal)
                    if code is not None:
                        return Waited(run=last, code=code, message=_told(last))
    except TimeoutError:
        where = "" if last is None else f": it is {last.status.phase.value} ({last.status.reason.value})"
        return Waited(run=last, code=TIMED_OUT, message=f"{name} is not {goal.value} after {timeout_s:g} s{where}")
    raise AssertionError("a run is followed until it is gone")


def judge(run: ClusterRun, goal: Goal) -> int | None:
    """Exit code of the wait: 0 when the goal is reached, None to go on, else the run's own code, or 70.

    A suspended run is Suspended once its pods are gone; a suspension of an older generation does not count.
    """
    phase = run.status.phase
    if goal == Goal.SUSPENDED:
        if phase == Phase.SUSPENDED and run.observed and not (run.status.current and run.status.current.active):
            return ExitCode.DONE
    elif goal == Goal.FINISHED and phase.terminal:
        return exit_code(run.status)
    elif phase.terminal and phase.value.lower() == goal.value:
        return ExitCode.DONE
    if not phase.terminal:
        return None
    return exit_code(run.status) if phase == Phase.FAILED else ExitCode.PERMANENT


def _told(run: ClusterRun) -> str:
    status = run.status
    words = f": {status.message}" if status.message and status.phase == Phase.FAILED else ""
    return f"{run.name} is {status.phase.value} ({status.reason.value}){words}"
