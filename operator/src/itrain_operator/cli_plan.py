"""`itrain plan`: a run's stages before they start, and with `--explain` what they will cost and how that is known."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

import typer
from pydantic import ValidationError
from rich.console import Console

from itrain_contract.base import SpecModel
from itrain_contract.loading import ITrainRun, SpecError, SpecProblem, load_run
from itrain_contract.measurements import DataStatistics, EngineProfile, Lengths, RunStatistics
from itrain_contract.spec import ITrainRunSpec
from itrain_operator.cli_inspect import artifacts_root, find_folder
from itrain_operator.cli_local import run_pipeline
from itrain_operator.cli_options import PLAIN_WIDTH, FileArgument, Output, OutputOption, say, say_json
from itrain_operator.cost import facts_of
from itrain_operator.costview import Forecast, cost_json, cost_notes, cost_table, forecast
from itrain_operator.devices import DEVICES, estimated_profile, model_shape
from itrain_operator.estimate import estimate
from itrain_operator.localmachine import this_machine
from itrain_operator.localspec import override
from itrain_operator.planview import bound_text, estimate_json, plan_table
from itrain_operator.render import write

Model = TypeVar("Model", bound=SpecModel)
MEASURED_HERE = "quickstart-cpu"
"""The shipped profile: the built-in model on two cores."""

RowsOption = Annotated[int | None, typer.Option("--rows", min=1, help="training rows, before anything was prepared")]
PromptOption = Annotated[float | None, typer.Option("--prompt-tokens", min=1, help="mean tokens of a prompt")]
AnswerOption = Annotated[float | None, typer.Option("--answer-tokens", min=1, help="mean tokens of a true answer")]
CallsOption = Annotated[float | None, typer.Option("--call-share", min=0, max=1, help="share of answers with a call")]


def plan(
    file: FileArgument,
    explain: Annotated[
        bool, typer.Option("--explain", help="also what each stage reads, retries and needs, its tokens and its time")
    ] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="override a field of the spec; repeatable")
    ] = None,
    profile: Annotated[
        Path | None, typer.Option("--profile", metavar="FILE", help="a machine measured by `itrain profile`")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help=f"a machine by its data sheet: {', '.join(DEVICES)}")
    ] = None,
    parameters: Annotated[
        float | None, typer.Option("--parameters", min=1e6, help="the model's size, where its name does not tell it")
    ] = None,
    measured: Annotated[
        str | None, typer.Option("--from", metavar="DIR", help="data and trees as this run on this machine had them")
    ] = None,
    statistics: Annotated[
        Path | None, typer.Option("--statistics", metavar="FILE", help="the same, from a file of `-m … statistics`")
    ] = None,
    rows: RowsOption = None,
    prompt_tokens: PromptOption = None,
    answer_tokens: AnswerOption = None,
    call_share: CallsOption = None,
    questions: Annotated[
        list[str] | None,
        typer.Option("--questions", metavar="NAME=N", help="items of a plug-in benchmark, by its name; repeatable"),
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """The stages of FILE in their order, with pods, GPUs and a bound on GPU-hours; nothing is started."""
    loaded = override(load_run(file), list(settings or ()))
    made = estimate(loaded.spec)
    costs = None
    if explain:
        given = Given(
            rows=rows,
            prompt=prompt_tokens,
            answer=answer_tokens,
            calls=call_share,
            questions=_questions(questions or (), loaded.spec),
        )
        found = _statistics(measured, statistics)
        costs = explained(
            loaded, found, given, _profile(profile) if profile else None, device=device, parameters=parameters
        )
    if output == Output.JSON:
        say_json(estimate_json(loaded.metadata.name, made) | ({"cost": cost_json(costs)} if costs else {}))
        return
    console = Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)
    write(console, plan_table(made, explain=explain), "")
    write(console, f"{len(made.stages)} stages, {made.pods} pods, at most {made.peak_gpus} GPUs at a time")
    write(console, bound_text(made))
    if loaded.spec.iterations.stop_when is not None:
        write(console, "iterations.stopWhen may end the run earlier")
    if costs is not None:
        write(console, "", cost_table(costs), "")
        for note in cost_notes(costs):
            write(console, note)


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What the flags say of the data."""

    rows: int | None = None
    prompt: float | None = None
    answer: float | None = None
    calls: float | None = None
    questions: Mapping[str, int] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        said = {
            "--rows": self.rows,
            "--prompt-tokens": self.prompt,
            "--answer-tokens": self.answer,
            "--call-share": self.calls,
            "--questions": self.questions or None,
        }
        return tuple(name for name, value in said.items() if value is not None)

    def over(self, data: DataStatistics, spec: ITrainRunSpec) -> DataStatistics:
        """The data with what was given in its place; a dev set that is split off grows with the rows."""
        changes: dict[str, Any] = {}
        if self.rows is not None:
            changes["train"] = self.rows
            if spec.data.dev is None:
                changes["dev"] = round(spec.data.dev_fraction * self.rows)
        if self.prompt is not None:
            changes["prompt"] = Lengths(mean=self.prompt)
        if self.answer is not None:
            changes["answer"] = Lengths(mean=self.answer)
        if self.calls is not None:
            changes["call_share"] = self.calls
        return data.model_copy(update=changes)


def explained(
    run: ITrainRun,
    found: RunStatistics | None,
    given: Given,
    profile: EngineProfile | None,
    *,
    device: str | None = None,
    parameters: float | None = None,
) -> Forecast:
    """The forecast, with what is measured and what is assumed. Raises SpecError for a device that is not known."""
    assumed = shipped("quickstart", RunStatistics)
    base = found or assumed
    told = {} if found else rows_told(run.spec, base.data)
    data = given.over(base.data.model_copy(update=told), run.spec)
    chosen = profile or _chosen_profile(run, device, parameters, data)
    # Trees of fixed-batch mode know nothing of each other; neither do those of an engine without a prefix cache.
    cross_tree = run.spec.stages.rollout.trees_in_flight != 1
    facts = facts_of(
        base.model_copy(update={"data": data, "questions": {**base.questions, **given.questions}}),
        assumed,
        block=chosen.prefix_block_tokens,
        cross_tree=cross_tree,
    )
    on_cpu = all(rates.threads is not None for rates in chosen.rates)
    return forecast(
        run.spec,
        facts,
        chosen,
        machine=this_machine(os.environ) if on_cpu else None,
        data_from=f"run {found.run}" if found else f"the {assumed.run} measurements that ship with itrain",
        search_from=f"run {found.run}"
        if found and found.search
        else f"the {assumed.run} measurements that ship with itrain",
        flags=(*(("the rows of spec.data",) if told else ()), *given.names),
    )


def rows_told(spec: ITrainRunSpec, data: DataStatistics) -> dict[str, int]:
    """`train` and `dev` where built-in data tell their rows (`builtin://…?rows=64`) and `data` has others."""
    told: dict[str, int] = {}
    rows = [_rows_of(source.uri) for source in (spec.data, *spec.data.extra)]
    known = [n for n in rows if n is not None]
    if len(known) == len(rows):
        told["train"] = sum(known)
        if spec.data.dev is None:
            told["dev"] = round(spec.data.dev_fraction * told["train"])
            told["train"] -= told["dev"]
    if spec.data.dev is not None and (held := _rows_of(spec.data.dev.uri)) is not None:
        told["dev"] = held
    return {name: n for name, n in told.items() if n != getattr(data, name)}


def _rows_of(uri: str) -> int | None:
    parts = urlsplit(uri)
    text = dict(parse_qsl(parts.query)).get("rows", "")
    return int(text) if parts.scheme == "builtin" and re.fullmatch(r"[0-9]{1,9}", text) else None


def _questions(given: Sequence[str], spec: ITrainRunSpec) -> dict[str, int]:
    """`NAME=N` by name. Raises SpecError for a benchmark that is no plug-in of the run, or for no number."""
    plugins = [plugin.name for plugin in spec.stages.evaluate.plugins]
    found: dict[str, int] = {}
    for text in given:
        name, _, number = text.rpartition("=")
        if name not in plugins or not re.fullmatch(r"[0-9]{1,9}", number):
            allowed = f"NAME=N, NAME one of {', '.join(plugins)}" if plugins else "nothing: the run has no plug-ins"
            raise _problem("--questions", text[:80], allowed, "other benchmarks are counted by themselves")
        found[name] = int(number)
    return found


def _chosen_profile(
    run: ITrainRun, device: str | None, parameters: float | None, data: DataStatistics
) -> EngineProfile:
    """By `--device`, by the node pool, or the shipped measurement for the built-in model on a CPU."""
    template = run.spec.template
    pool = None if template is None else template.node_pool
    gpus = max(stage.gpus for stage in estimate(run.spec).stages)
    if device is None and not gpus:
        return shipped(MEASURED_HERE, EngineProfile)
    name = device or ("v100" if pool == "volta" else "h100")
    if name not in DEVICES:
        raise _problem("--device", name, ", ".join(DEVICES), "or measure yours: itrain profile --out FILE")
    shape = model_shape(run.spec.model.uri, parameters)
    if shape is None:
        raise _problem(
            "spec.model.uri", run.spec.model.uri, "a name that tells the size, as in …-8B", "add --parameters 8e9"
        )
    try:
        return estimated_profile(name, shape, context=data.prompt.mean + data.answer.mean)
    except ValueError as error:
        raise _problem("--device", name, "a device that holds the model", str(error)) from error


def shipped(name: str, kind: type[Model]) -> Model:
    """One of the measurements in `itrain_operator/measured`."""
    return kind.model_validate_json((resources.files("itrain_operator") / "measured" / f"{name}.json").read_text())


def _profile(file: Path) -> EngineProfile:
    return _read(file, EngineProfile)


def _statistics(folder: str | None, file: Path | None) -> RunStatistics | None:
    if file is not None:
        return _read(file, RunStatistics)
    if folder is None:
        return None
    root = artifacts_root(find_folder(folder))
    with tempfile.TemporaryDirectory(prefix="itrain-plan-") as scratch:
        out = Path(scratch) / "statistics.json"
        run_pipeline(["statistics", "--run-root", root, "--out", str(out)], os.environ)
        return _read(out, RunStatistics)


def _read(file: Path, kind: type[Model]) -> Model:
    try:
        return kind.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([file.name, *map(str, first["loc"])])
        raise _problem(where, str(first["msg"]), f"a {kind.__name__}", "measure it again") from error


def _problem(field: str, got: str, allowed: str, remedy: str) -> SpecError:
    return SpecError("plan", [SpecProblem(field=field, got=got, allowed=allowed, remedy=remedy)])


def profile_machine(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="the JSON file to write")],
    model: Annotated[Path | None, typer.Option("--model", metavar="DIR", help="default: the built-in model")] = None,
    engine: Annotated[str, typer.Option("--engine", help="auto, transformers or vllm")] = "auto",
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", min=2, help="length of the prompts")] = 800,
    threads: Annotated[str, typer.Option("--threads", help="on a CPU: numbers of threads, as in 1,2")] = "",
    seconds: Annotated[float, typer.Option("--seconds", min=0.01, help="least time of each figure")] = 4.0,
) -> None:
    """Measure how fast this machine is with a model, for `itrain plan --explain --profile FILE`."""
    command = ["profile", "--out", str(out), "--engine", engine, "--prompt-tokens", str(prompt_tokens)]
    command += ["--seconds", str(seconds)]
    command += ["--model", str(model)] if model is not None else []
    command += ["--threads", threads] if threads else []
    run_pipeline(command, os.environ)
    say(str(out))
