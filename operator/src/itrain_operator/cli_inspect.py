"""`itrain status`, `logs` and `report` of a local run: read-only, also while another process works on it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from itrain_contract.layout import RunLayout
from itrain_contract.names import Phase
from itrain_contract.stageio import StageInput
from itrain_operator.cli_local import PipelineError, best_point, current_live, paced, run_pipeline, warmed_up
from itrain_operator.localfigures import finished_figures
from itrain_operator.localjob import IndexState, index_state
from itrain_operator.localobserve import job_view
from itrain_operator.localspec import storage_root
from itrain_operator.localstate import JobFolder, LocalRunError, StateFolder, resource
from itrain_operator.localview import build_view
from itrain_operator.observed import JobView, Observed
from itrain_operator.points import points, summary
from itrain_operator.render import curve_table, screen, write

RUNS = Path(".itrain")
FOLLOW_S = 0.5


def find_folder(named: str | None) -> StateFolder:
    """A state folder by path, by name in `.itrain/`, or the one used last; LocalRunError when there is none."""
    if named is not None:
        for folder in folders_named(named):
            return folder
        raise LocalRunError(f"no run in {named} nor in {RUNS / named}: give the folder of `itrain run --dir`")
    found = sorted(RUNS.glob("*/run.json"), key=lambda p: p.parent.stat().st_mtime)
    if not found:
        raise LocalRunError(f"no run in {RUNS}/: give the folder of `itrain run --dir`, or start one")
    return StateFolder(found[-1].parent)


def folders_named(named: str) -> list[StateFolder]:
    """Every state folder that a name may mean."""
    paths = {path.resolve(): path for path in (RUNS / named, Path(named)) if StateFolder(path).exists}
    return [StateFolder(path) for path in reversed(paths.values())]


def show_status(folder: StateFolder, *, as_json: bool) -> None:
    stored, status = folder.run(), folder.status()
    figures = finished_figures(folder, stored.name, status, {})
    curve = points(figures.values(), warmed_up=warmed_up(figures))
    holder = folder.holder()
    if as_json:
        seconds = status.running_seconds
        document: dict[str, Any] = resource(stored, status) | {
            "process": holder,
            "points": [{"point": point.name, "metrics": dict(point.metrics)} for point in curve],
            "summary": summary(list(figures.values()), seconds_total=seconds, warmed_up=warmed_up(figures)),
        }
        sys.stdout.write(json.dumps(document, indent=1, default=str) + "\n")
        return
    running = holder is not None
    view = build_view(
        name=stored.name,
        spec=stored.spec,
        status=status,
        figures=figures,
        live=paced(None, current_live(status, Observed(jobs=tuple(_views(folder, running))), time.time())),
        elapsed_s=status.running_seconds,
        stopping=not running,
    )
    console = Console()
    work = f"process {holder} works on it" if running else "" if status.phase.terminal else "nothing works on it now"
    write(console, screen(view, width=console.width, height=0, hint=work))
    if status.phase == Phase.FAILED:
        write(console, f"failed ({status.reason.value}): {status.message}")
    if curve:
        write(console, "", curve_table(curve, width=console.width, best=best_point(status, curve)))


def _views(folder: StateFolder, running: bool) -> list[JobView]:
    """Jobs as their files tell. Only the `itrain` that works on the run knows its processes: an index that is
    neither done nor failed and has a log is taken for running."""
    views = []
    for job in folder.jobs():
        stored = job.job()
        history = tuple(job.ended(shard) for shard in range(stored.limits.shards))
        begun = [
            shard
            for shard, ended in enumerate(history)
            if running and index_state(ended, stored.limits) == IndexState.WAITING and job.log(shard).exists()
        ]
        views.append(
            job_view(
                folder=job,
                stored=stored,
                stage_input=job.stage_input(),
                history=history,
                running=dict.fromkeys(begun, stored.created.timestamp()),
                deleting=False,
            )
        )
    return views


def show_logs(
    folder: StateFolder, *, stage: str | None, shard: int | None, lines: int, follow: bool, as_json: bool = False
) -> None:
    jobs = [job for job in folder.jobs() if stage is None or stage_matches(job.stage_input(), stage)]
    if not jobs:
        raise LocalRunError(f"{folder.path} has no log" + (f" of stage {stage}" if stage else " yet"))
    newest = max(jobs, key=lambda job: job.job().created)
    logs = _logs(newest, shard)
    if not logs:
        raise LocalRunError(f"{newest.path} has no log" + ("" if shard is None else f" of shard {shard}"))
    for log in logs:
        if len(logs) > 1 and not as_json:
            sys.stdout.write(f"==> {log} <==\n")
        text = log.read_text(errors="replace").splitlines(keepends=True)
        _write_log(log, "".join(text[-lines:]), as_json=as_json)
    sys.stdout.flush()
    if follow:
        _follow(folder, logs, as_json=as_json)


def _write_log(log: Path, text: str, *, as_json: bool) -> None:
    if not as_json:
        sys.stdout.write(text)
        return
    shard = int(log.stem.removeprefix("shard-"))
    for line in text.splitlines():
        sys.stdout.write(json.dumps({"log": str(log), "shard": shard, "line": line}) + "\n")


def stage_matches(stage_input: StageInput, wanted: str) -> bool:
    """`rollout` is every iteration's, `i2/rollout` one."""
    return wanted in (stage_input.kind.value, str(stage_input.ref))


def _logs(job: JobFolder, shard: int | None) -> list[Path]:
    found = sorted(job.path.glob("shard-*.log"), key=lambda p: int(p.stem.removeprefix("shard-")))
    return [path for path in found if shard is None or path == job.log(shard)]


def _follow(folder: StateFolder, logs: list[Path], *, as_json: bool) -> None:
    """Print the lines that are appended until no `itrain` works on the run."""
    at = {log: log.stat().st_size for log in logs}
    working = True
    while working:
        working = folder.holder() is not None
        for log in logs:
            with log.open("rb") as data:
                data.seek(at[log])
                new = data.read()
                whole = new[: new.rfind(b"\n") + 1] if working else new
                _write_log(log, whole.decode(errors="replace"), as_json=as_json)
                at[log] += len(whole)
        sys.stdout.flush()
        if working:
            time.sleep(FOLLOW_S)


def artifacts_root(folder: StateFolder) -> str:
    stored = folder.run()
    return RunLayout(storage=storage_root(stored.spec, folder.path), name=stored.name, uid=stored.uid).root


def make_report(folder: StateFolder, *, out: Path | None, environ: Mapping[str, str]) -> Path:
    """The report of the results so far, written by the pipeline, which alone reads storage."""
    root = artifacts_root(folder)
    place = out or folder.path / "report.html"
    try:
        run_pipeline(["report", "--run-root", root, "--out", str(place)], environ)
    except PipelineError as error:
        raise PipelineError(f"the report of {root} cannot be made: {error}", error.code) from error
    return place


def purge_run(folder: StateFolder, environ: Mapping[str, str]) -> None:
    """Delete the run's artifacts, then what the state folder knows of it. Raises LocalRunError, LockedError."""
    with folder.lock():
        root = artifacts_root(folder)
        try:
            run_pipeline(["purge", "--run-root", root], environ)
        except LocalRunError as error:
            raise LocalRunError(f"the artifacts in {root} cannot be deleted: {error}") from error
        folder.clear()
