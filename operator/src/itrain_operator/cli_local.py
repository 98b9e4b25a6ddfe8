"""`itrain run --local`: from a file to a finished run, and what is said at its end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from itrain_contract.layout import ADAPTER_DIR, MODEL_DIR, RunLayout
from itrain_contract.loading import load_run
from itrain_contract.names import ExitCode, Phase, Reason
from itrain_contract.stages import StageRef
from itrain_contract.status import ITrainRunStatus
from itrain_operator.accounting import elapsed
from itrain_operator.display import Display, LiveDisplay, PlainDisplay
from itrain_operator.local import Command, LocalBackend
from itrain_operator.localfigures import export_prefix, finished_figures
from itrain_operator.localmachine import this_machine
from itrain_operator.localrun import Ending, LocalRun
from itrain_operator.localsignals import Signals
from itrain_operator.localspec import absolute_paths, edited, override, reopened, storage_root
from itrain_operator.localstate import LocalRunError, StateFolder, StoredRun, new_run, resource, write_atomic
from itrain_operator.localview import Live, build_view
from itrain_operator.observed import Observed
from itrain_operator.points import Point, StageFigures, points, summary
from itrain_operator.render import curve_table, write
from itrain_operator.sequence import current_ref

ENV_PYTHON = "ITRAIN_PYTHON"
FRAME_S = 0.2

EXIT_BY_REASON = {
    Reason.INVALID_SPEC: ExitCode.CONFIG,
    Reason.CONFIG_ERROR: ExitCode.CONFIG,
    Reason.DATA_ERROR: ExitCode.DATA,
    Reason.RETRIES_EXHAUSTED: ExitCode.RETRYABLE,
}
"""Exit code of a failed run by its reason; every other reason is permanent (70)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The command's options."""

    file: Path
    folder: Path | None = None
    settings: tuple[str, ...] = ()
    fresh: bool = False
    retry: bool = False
    plain: bool = False
    as_json: bool = False
    summary_file: Path | None = None


def pipeline_command(environ: Mapping[str, str]) -> Command:
    """`python -m itrain_pipeline <stage>` by ITRAIN_PYTHON, or by the Python that runs `itrain`."""
    python = pipeline_python(environ)
    return lambda stage: [python, "-m", "itrain_pipeline", stage]


def pipeline_python(environ: Mapping[str, str]) -> str:
    return environ.get(ENV_PYTHON) or sys.executable


class PipelineError(LocalRunError):
    """A command of the pipeline failed: its last words, and `code`, its exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def run_pipeline(arguments: list[str], environ: Mapping[str, str], *, hint: str = "") -> None:
    """A command of the pipeline, which alone reads storage. Raises PipelineError; `hint` is put behind its words where
    nobody foresaw the failure."""
    command = [pipeline_python(environ), "-m", "itrain_pipeline", *arguments]
    made = subprocess.run(command, env=dict(environ), capture_output=True, text=True, check=False)
    if made.returncode != 0:
        last = made.stderr.strip().splitlines()[-1:] or [f"exit code {made.returncode}"]
        foreseen = last[0].startswith("itrain: ")
        code = made.returncode if foreseen else ExitCode.PERMANENT
        raise PipelineError(last[0].removeprefix("itrain: ") + ("" if foreseen else hint), code)


def open_run(options: RunOptions) -> tuple[StateFolder, StoredRun]:
    """The run of a file in its state folder: found and updated, or made. The caller holds the folder's lock.

    Raises SpecError for a bad file or an edit that is not allowed.
    """
    wanted = override(load_run(options.file), list(options.settings))
    spec = absolute_paths(wanted.spec, Path.cwd())
    folder = state_folder(options, wanted.metadata.name)
    if options.fresh:
        folder.clear()
    if not folder.exists:
        now = datetime.now(UTC)
        run = new_run(name=wanted.metadata.name, uid=str(uuid.uuid4()), spec=spec, source=str(options.file), now=now)
        folder.save_run(run)
        return folder, run
    stored = folder.run()
    if stored.name != wanted.metadata.name:
        raise LocalRunError(
            f"{folder.path} holds the run {stored.name!r}, not {wanted.metadata.name!r}: "
            "give another --dir, or --fresh to forget it"
        )
    status = folder.status()
    if options.retry:
        status = reopened(status)
        folder.save_status(status)
    run = edited(stored, spec, status.phase, str(options.file))
    if run is not stored:
        folder.save_run(run)
    return folder, run


def state_folder(options: RunOptions, name: str) -> StateFolder:
    return StateFolder(options.folder or Path(".itrain") / name)


def run_locally(options: RunOptions, environ: Mapping[str, str]) -> int:
    """Run or continue a run until it ends; returns the exit code. Raises SpecError and LocalRunError before a start."""
    name = load_run(options.file).metadata.name
    with state_folder(options, name).lock():
        folder, stored = open_run(options)
        session = Session(folder=folder, stored=stored, options=options, environ=environ)
        return session.run()


class Session:
    """One `itrain run`: the loop with its display, then the closing words."""

    def __init__(
        self, *, folder: StateFolder, stored: StoredRun, options: RunOptions, environ: Mapping[str, str]
    ) -> None:
        self._folder = folder
        self._stored = stored
        self._options = options
        self._environ = environ
        self._figures: dict[StageRef, StageFigures] = {}
        self._pace: Live | None = None
        self._progress = Console(stderr=True)
        self._out = Console()
        live = self._progress.is_terminal and not options.plain
        self._display: Display = LiveDisplay(self._progress) if live else PlainDisplay(_to_stderr, time.monotonic)

    def run(self) -> int:
        storage = storage_root(self._stored.spec, self._folder.path)
        with Signals() as signals, self._display:
            backend = LocalBackend(
                self._folder,
                machine=this_machine(self._environ),
                command=pipeline_command(self._environ),
                environ=self._environ,
                clock=time.time,
                on_event=self._display.event,
            )
            try:
                loop = LocalRun(
                    stored=self._stored,
                    storage=storage,
                    backend=backend,
                    clock=time.time,
                    attention=Frames(signals, self._display),
                    watch=self._watch,
                )
                ending, status = loop.run(self._folder.status())
            finally:
                backend.close()
        return self._close(ending, status, signals)

    def _watch(self, status: ITrainRunStatus, observed: Observed, stopping: bool) -> None:
        self._figures = finished_figures(self._folder, self._stored.name, status, self._figures)
        self._pace = paced(self._pace, current_live(status, observed, time.time()))
        view = build_view(
            name=self._stored.name,
            spec=self._stored.spec,
            status=status,
            figures=self._figures,
            live=self._pace,
            elapsed_s=running_seconds(status, observed, time.time()),
            stopping=stopping,
        )
        self._display.show(view, stopping=stopping)

    def _close(self, ending: Ending, status: ITrainRunStatus, signals: Signals) -> int:
        curve = points(self._figures.values(), warmed_up=warmed_up(self._figures))
        report = self._place_report(status)
        figures = summary(
            list(self._figures.values()), seconds_total=status.running_seconds, warmed_up=warmed_up(self._figures)
        )
        if self._options.summary_file is not None:
            write_atomic(self._options.summary_file, _json({**figures, "phase": status.phase.value}))
        if self._options.as_json:
            document = resource(self._stored, status) | {"points": _curve_json(curve), "summary": figures}
            sys.stdout.write(_json(document).decode())
        else:
            self._say(ending, status, curve, report, self._exported(status))
        if ending == Ending.INTERRUPTED:
            return signals.exit_code
        return exit_code(status)

    def _place_report(self, status: ITrainRunStatus) -> Path | None:
        """Export's report, copied to where a person finds it: `report.html` in the state folder."""
        prefix = self._export_prefix(status)
        if prefix is None:
            return None
        place = self._folder.path / "report.html"
        try:
            run_pipeline(["fetch", "--prefix", prefix, "--name", place.name, "--out", str(place)], self._environ)
        except LocalRunError as error:  # the run itself is done, whatever becomes of this copy
            _to_stderr(f"the report cannot be fetched: {error}; try again with: itrain report {self._folder.path}")
            return None
        return place

    def _exported(self, status: ITrainRunStatus) -> str:
        """Where export wrote its weights, as far as this machine's disk shows: a model, or an adapter alone."""
        prefix = self._export_prefix(status) or ""
        folders = [Path(prefix.removeprefix("file://")) / name for name in (MODEL_DIR, ADAPTER_DIR)]
        return next((str(folder) for folder in folders if prefix.startswith("file://") and folder.is_dir()), "")

    def _export_prefix(self, status: ITrainRunStatus) -> str | None:
        storage = storage_root(self._stored.spec, self._folder.path)
        return export_prefix(RunLayout(storage=storage, name=self._stored.name, uid=self._stored.uid), status)

    def _say(
        self, ending: Ending, status: ITrainRunStatus, curve: list[Point], report: Path | None, exported: str
    ) -> None:
        again = f"itrain run {self._options.file} --local"
        if self._options.folder is not None:
            again += f" --dir {self._options.folder}"
        if curve:
            write(self._out, "", curve_table(curve, width=self._out.width, best=best_point(status, curve)), "")
        if status.reason == Reason.STOPPED_EARLY:
            write(self._out, f"stopped early: {status.message}")
        if report is not None:
            write(self._out, f"report  {report}")
        if exported:
            write(self._out, f"model   {exported}")
        if ending == Ending.INTERRUPTED:
            write(self._out, f"stopped; finished work is kept. Continue with: {again}")
        elif ending == Ending.SUSPENDED:
            write(self._out, f"suspended by spec.suspend. Continue with: {again} --set suspend=false")
        elif status.phase == Phase.FAILED:
            write(self._out, f"failed ({status.reason.value}): {status.message}")
            write(self._out, f"logs       itrain logs {self._folder.path}")
            write(self._out, f"try again  {again} --retry")


class Frames:
    """Waits in frames, so that the screen moves while nothing happens."""

    def __init__(self, signals: Signals, display: Display) -> None:
        self._signals = signals
        self._display = display

    @property
    def stops(self) -> int:
        return self._signals.stops

    def wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self._signals.wait(min(FRAME_S, left)):
                return
            self._display.animate()


def current_live(status: ITrainRunStatus, observed: Observed, now: float) -> Live | None:
    """The current stage's newest job as live figures; None when it has none."""
    ref = current_ref(status)
    view = next((v for v in observed.ours() if v.ref == ref and v.attempt == status.attempt), None)
    if view is None:
        return None
    until = view.finished.timestamp() if view.finished else now
    started = view.started.timestamp() if view.started else until
    return Live(
        done=view.progress_done,
        total=view.progress_total,
        text=view.progress_text,
        seconds=max(0.0, until - started),
        running=view.active,
        shards_done=view.succeeded,
        shards=view.shards,
    )


def paced(before: Live | None, now: Live | None) -> Live | None:
    """`now` with the moment at which its progress was reached, taken over from `before` while nothing moved."""
    if now is None:
        return None
    same = (
        before is not None and before.done == now.done and before.total == now.total and before.seconds <= now.seconds
    )
    return replace(now, paced_at=before.paced_at if same and before is not None else now.seconds)


def running_seconds(status: ITrainRunStatus, observed: Observed, now: float) -> float:
    """Running time up to now: the status records it only now and then."""
    ref = current_ref(status)
    view = next((v for v in observed.ours() if v.ref == ref and v.attempt == status.attempt), None)
    spent = elapsed(status, view, 1, datetime.fromtimestamp(now, tz=UTC))
    return status.running_seconds + spent.running + spent.retrying


def best_point(status: ITrainRunStatus, curve: list[Point]) -> str:
    """The point whose adapter is the best; iteration 0 is the last of the points before the iterations."""
    if status.best is None:
        return ""
    starts = [point.name for point in curve if not point.name.startswith("iteration_")]
    return f"iteration_{status.best.iteration}" if status.best.iteration else "".join(starts[-1:])


def warmed_up(figures: Mapping[StageRef, StageFigures]) -> bool:
    return any(ref.kind.value == "warmup" for ref in figures)


def exit_code(status: ITrainRunStatus) -> int:
    """0 succeeded, 64 configuration, 65 data, 70 permanent, 75 retries exhausted or not finished."""
    if status.phase == Phase.SUCCEEDED:
        return ExitCode.DONE
    if status.phase == Phase.FAILED:
        return EXIT_BY_REASON.get(status.reason, ExitCode.PERMANENT)
    return ExitCode.RETRYABLE


def _curve_json(curve: list[Point]) -> list[dict[str, Any]]:
    return [{"point": point.name, "metrics": dict(point.metrics)} for point in curve]


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, default=str) + "\n").encode()


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
