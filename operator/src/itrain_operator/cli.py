"""The `itrain` command. Parsing, printing and exit codes only; the work is in the modules it calls.

Exit codes: 0 done, 2 wrong usage, 64 configuration, 65 data, 70 permanent failure, 75 retries exhausted, another
`itrain` works on the run, or the API server is away, 124 a wait timed out, 130 or 143 interrupted (the same command
continues).
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Annotated, Any

import typer

from itrain_contract.loading import SpecError, load_run
from itrain_contract.names import ExitCode
from itrain_operator.cli_cluster import runs
from itrain_operator.cli_evaluate import evaluate
from itrain_operator.cli_local import PipelineError
from itrain_operator.cli_options import (
    FileArgument,
    FilesArgument,
    Output,
    OutputOption,
    say,
    say_json,
)
from itrain_operator.cli_plan import plan, profile_machine
from itrain_operator.clusteraccess import ClusterError
from itrain_operator.command import EPILOG, HELP
from itrain_operator.localstate import LocalRunError, LockedError

app = typer.Typer(
    name="itrain",
    help=HELP,
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command()
def run(
    file: FileArgument,
    local: Annotated[bool, typer.Option("--local", help="run it here, with child processes")] = False,
    folder: Annotated[
        Path | None, typer.Option("--dir", metavar="DIR", help="state folder; default: .itrain/<name>")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="override a field of the spec; repeatable")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="forget what the state folder knows and start over")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="try the stage again in which the run failed")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="plain lines even on a terminal")] = False,
    summary: Annotated[
        Path | None, typer.Option("--summary", metavar="FILE", help="write flat figures as JSON")
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Run FILE until it ends; called again, it continues where it stopped."""
    if not local:
        raise LocalRunError(f"on a cluster: itrain submit {file}; on this machine: add --local")
    from itrain_operator.cli_local import RunOptions, run_locally  # only here: the other commands stay quick

    options = RunOptions(
        file=file,
        folder=folder,
        settings=tuple(settings or ()),
        fresh=fresh,
        retry=retry,
        plain=plain,
        as_json=output == Output.JSON,
        summary_file=summary,
    )
    raise typer.Exit(run_locally(options, os.environ))


@app.command()
def validate(
    files: FilesArgument,
    output: OutputOption = Output.TEXT,
) -> None:
    """Check files: one line for each problem, with field, value, what is allowed, and the remedy."""
    found: list[dict[str, Any]] = []
    for file in files:
        try:
            name = load_run(file).metadata.name
            if output == Output.TEXT:
                say(f"{file}: valid ({name})")
        except SpecError as error:
            for problem in error.problems:
                found.append(
                    {
                        "file": str(file),
                        "line": problem.line,
                        "field": problem.field,
                        "got": problem.got,
                        "allowed": problem.allowed,
                        "remedy": problem.remedy,
                    }
                )
                if output == Output.TEXT:
                    say(f"{file}: {problem}")
    if output == Output.JSON:
        say_json({"valid": not found, "problems": found})
    raise typer.Exit(ExitCode.CONFIG if found else ExitCode.DONE)


app.command()(plan)
app.command(name="profile")(profile_machine)
app.command()(evaluate)
app.add_typer(runs)


@app.command()
def version(output: OutputOption = Output.TEXT) -> None:
    """The version of this command and of the contract."""
    versions = {"itrain": package_version("itrain-operator"), "contract": package_version("itrain-contract")}
    if output == Output.JSON:
        say_json(versions)
    else:
        say(f"itrain {versions['itrain']}")


def main(arguments: list[str] | None = None, prog_name: str | None = None) -> None:
    """The console script: every foreseen error becomes one line and an exit code; always raises SystemExit."""
    try:
        app(arguments, prog_name=prog_name, obj=prog_name)
    except SpecError as error:
        _fail(str(error), ExitCode.CONFIG)
    except LockedError as error:
        _fail(str(error), ExitCode.RETRYABLE)
    except PipelineError as error:
        _fail(str(error), error.code)
    except LocalRunError as error:
        _fail(str(error), ExitCode.CONFIG)
    except ClusterError as error:
        _fail(str(error), error.code)
    except OSError as error:
        _fail(f"{error.filename or 'input'}: {error.strerror or error}", ExitCode.CONFIG)


def _fail(message: str, code: int) -> None:
    sys.stderr.write("".join(f"itrain: {line}\n" for line in message.splitlines()))
    raise SystemExit(int(code))
