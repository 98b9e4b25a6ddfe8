"""`python -m itrain_pipeline <stage>`, and what `itrain` asks of a storage folder or of this machine. Argv and
environment only."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import sys
import tempfile
from collections.abc import MutableMapping, Sequence
from pathlib import Path

from itrain_contract.layout import RESULT_FILE, shard_prefix
from itrain_contract.names import ENV_STAGE_INPUT, ExitCode
from itrain_contract.stageio import StageResult
from itrain_contract.stages import StageKind
from itrain_pipeline.errors import ConfigError, DataError, StageError
from itrain_pipeline.files import write_atomic
from itrain_pipeline.ports import Store
from itrain_pipeline.runtime import Process, StageFunction, configure_logging, run_stage
from itrain_pipeline.stopsignal import StopFlag
from itrain_pipeline.store import open_store, purge
from itrain_pipeline.upstream import StoreUpstream, parse_result, run_results

RUN_FOLDER = re.compile(r"/[a-z][-a-z0-9]*-[A-Za-z0-9]{1,8}/$")
"""`<run>-<uid8>/` at the end of a run's root: what `purge` dares to delete."""

GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg")
"""Of the NVIDIA driver, and of its bridge under WSL."""


def main(argv: list[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    configure_logging()
    try:
        return int(arguments.handler(arguments))
    except StageError as error:
        print(f"itrain: {error}", file=sys.stderr)
        return error.exit_code


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m itrain_pipeline", description="The stages of an ITrainRun.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for kind in StageKind:
        stage = commands.add_parser(kind.value, help=f"run the {kind.value} stage of one attempt")
        stage.add_argument("--input", type=Path, help=f"the StageInput file; default: ${ENV_STAGE_INPUT}")
        stage.set_defaults(handler=_stage, kind=kind)
    report = commands.add_parser("report", help="write the HTML report of a run from its results")
    report.add_argument("--run-root", required=True, type=_folder, help="URI of the run's folder in storage")
    report.add_argument("--out", required=True, type=Path, help="the HTML file to write")
    report.add_argument("--bench", type=Path, help="search.json of `make bench-search`: its arms beside the counters")
    report.set_defaults(handler=_report)
    compared = commands.add_parser("compare", help="write one HTML page about several runs")
    compared.add_argument(
        "--runs", required=True, type=Path, help="JSON: a list of {label, root, spec}, first run first"
    )
    compared.add_argument("--out", required=True, type=Path, help="the HTML file to write")
    compared.set_defaults(handler=_compare)
    statistics = commands.add_parser("statistics", help="what a run's finished stages tell a plan, as JSON")
    statistics.add_argument("--run-root", required=True, type=_folder, help="URI of the run's folder in storage")
    statistics.add_argument("--out", required=True, type=Path, help="the JSON file to write")
    statistics.set_defaults(handler=_statistics)
    add_profile(commands.add_parser("profile", help="measure how fast this machine is with a model, as JSON"))
    shown = commands.add_parser("show-result", help="print a stage's result.json")
    shown.add_argument("--prefix", required=True, type=_folder, help="URI of an attempt's folder")
    shown.add_argument("--shard", type=int, help="completion index of a sharded stage")
    shown.set_defaults(handler=_show_result)
    fetched = commands.add_parser("fetch", help="copy one output of a finished stage to a file, its sha256 verified")
    fetched.add_argument("--prefix", required=True, type=_folder, help="URI of an attempt's folder")
    fetched.add_argument("--shard", type=int, help="completion index of a sharded stage")
    fetched.add_argument("--name", required=True, help="the output's name in result.json, as in report.html")
    fetched.add_argument("--out", required=True, type=Path, help="the file to write")
    fetched.set_defaults(handler=_fetch)
    purged = commands.add_parser("purge", help="delete everything below a run's folder")
    purged.add_argument("--run-root", required=True, type=_folder, help="URI of the run's folder in storage")
    purged.set_defaults(handler=_purge)
    return parser


def add_profile(profile: argparse.ArgumentParser) -> None:
    profile.add_argument("--out", required=True, type=Path, help="the JSON file to write")
    profile.add_argument("--model", type=Path, help="a model folder; default: the built-in model")
    profile.add_argument("--engine", default="auto", choices=("auto", "transformers", "vllm"))
    profile.add_argument("--precision", default="auto", choices=("auto", "fp16", "bf16", "fp32"))
    profile.add_argument("--prompt-tokens", type=int, default=800, help="length of the prompts")
    profile.add_argument("--seconds", type=float, default=4.0, help="least time of each figure")
    profile.add_argument("--threads", default="", help="on a CPU: numbers of threads, as in 1,2")
    profile.set_defaults(handler=_profile)


def load_stage(kind: StageKind) -> StageFunction:
    """The entry of a stage's module, imported now."""
    function: StageFunction = importlib.import_module(f"itrain_pipeline.stages.{kind.value}").run
    return function


def spare_the_compiler(environ: MutableMapping[str, str], devices: Sequence[str] = GPU_DEVICES) -> None:
    """Tell torch that nothing will be compiled where there is no GPU.

    It must stand in the environment before bitsandbytes is imported (by peft, in every stage that loads a model), which
    otherwise loads torch's whole compiler, 2 s of every process, and at its first use on a CPU looks for g++.
    """
    if not any(Path(device).exists() for device in devices):
        environ.setdefault("TORCHDYNAMO_DISABLE", "1")


def _stage(arguments: argparse.Namespace) -> int:
    spare_the_compiler(os.environ)
    stop = StopFlag()
    stop.install()
    return run_stage(
        arguments.kind, Process(environ=os.environ, load_stage=load_stage, stop=stop), input_path=arguments.input
    )


def _report(arguments: argparse.Namespace) -> int:
    from itrain_pipeline.evals.collect import collect_from_results  # plotting libraries: only here
    from itrain_pipeline.evals.report import build_report

    store = open_store(arguments.run_root)
    results = run_results(store, arguments.run_root)
    if not results:
        raise DataError(f"{arguments.run_root} has no finished stage to report on")
    with tempfile.TemporaryDirectory(prefix="itrain-report-") as cache:
        upstream = StoreUpstream(store, (), cache=Path(cache))
        bench = json.loads(arguments.bench.read_text()) if arguments.bench else None
        page = build_report(collect_from_results(results, upstream.fetch, bench=bench))
        write_atomic(arguments.out, page.encode())
    print(arguments.out)
    return ExitCode.DONE


def _compare(arguments: argparse.Namespace) -> int:
    from itrain_pipeline.evals.comparison import build_comparison  # plotting libraries: only here
    from itrain_pipeline.evals.comparison_data import collect_compared, read_named

    named = read_named(arguments.runs)
    with tempfile.TemporaryDirectory(prefix="itrain-compare-") as cache:
        runs = []
        for run in named:
            store = open_store(run.root)
            results = run_results(store, run.root)
            upstream = StoreUpstream(store, (), cache=Path(cache))
            runs.append(collect_compared(run.label, results, upstream.fetch, settings=run.spec))
        write_atomic(arguments.out, build_comparison(runs).encode())
    print(arguments.out)
    return ExitCode.DONE


def _statistics(arguments: argparse.Namespace) -> int:
    from itrain_pipeline.evals.runstats import run_statistics

    store = open_store(arguments.run_root)
    results = run_results(store, arguments.run_root)
    with tempfile.TemporaryDirectory(prefix="itrain-statistics-") as cache:
        upstream = StoreUpstream(store, (), cache=Path(cache))
        name = arguments.run_root.rstrip("/").rpartition("/")[2].rpartition("-")[0]
        found = run_statistics(results, upstream.fetch, run=name)
        write_atomic(arguments.out, (found.model_dump_json(by_alias=True, exclude_none=True, indent=1) + "\n").encode())
    print(arguments.out)
    return ExitCode.DONE


def _profile(arguments: argparse.Namespace) -> int:
    spare_the_compiler(os.environ)
    from itrain_pipeline.profiling import ProfileSettings, measure_profile  # loads torch
    from itrain_pipeline.quickstart import model_path

    threads = [part.strip() for part in arguments.threads.split(",") if part.strip()]
    if not all(part.isdigit() and int(part) for part in threads):
        raise ConfigError(f"--threads: got {arguments.threads!r}, allowed are numbers from 1 on, as in 1,2")
    model = arguments.model or model_path()
    if not (model / "config.json").is_file():
        raise ConfigError(f"--model: {model} has no config.json")
    made = measure_profile(
        ProfileSettings(
            model=model,
            name=arguments.out.stem,
            engine=arguments.engine,
            precision=arguments.precision,
            prompt_tokens=arguments.prompt_tokens,
            seconds=arguments.seconds,
            threads=tuple(map(int, threads)),
        )
    )
    write_atomic(arguments.out, (made.model_dump_json(by_alias=True, exclude_none=True, indent=1) + "\n").encode())
    print(arguments.out)
    return ExitCode.DONE


def _show_result(arguments: argparse.Namespace) -> int:
    print(_result(arguments, open_store(arguments.prefix)).model_dump_json(by_alias=True, indent=1))
    return ExitCode.DONE


def _fetch(arguments: argparse.Namespace) -> int:
    store = open_store(arguments.prefix)
    outputs = _result(arguments, store).outputs
    if arguments.name not in outputs:
        raise DataError(f"{arguments.prefix} has no output {arguments.name!r}, it has {', '.join(sorted(outputs))}")
    with tempfile.TemporaryDirectory(prefix="itrain-fetch-") as cache:
        found = StoreUpstream(store, (), cache=Path(cache)).fetch(outputs[arguments.name])
        write_atomic(arguments.out, found.read_bytes())
    print(arguments.out)
    return ExitCode.DONE


def _result(arguments: argparse.Namespace, store: Store) -> StageResult:
    uri = shard_prefix(arguments.prefix, arguments.shard) + RESULT_FILE
    data = store.get_bytes(uri)
    if data is None:
        raise DataError(f"{uri} does not exist: the attempt did not finish")
    return parse_result(data, uri)


def _purge(arguments: argparse.Namespace) -> int:
    if not RUN_FOLDER.search(arguments.run_root):
        raise ConfigError(f"{arguments.run_root!r} is not a run's folder: it ends with <run name>-<uid>/")
    print(f"deleted {purge(arguments.run_root)} objects below {arguments.run_root}")
    return ExitCode.DONE


def _folder(uri: str) -> str:
    return uri if uri.endswith("/") else f"{uri}/"


if __name__ == "__main__":
    sys.exit(main())
