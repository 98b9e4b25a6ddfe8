"""Options, arguments and ways of printing that the commands share."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from itrain_operator.clusteraccess import Where
from itrain_operator.command import PLUGIN


class Output(StrEnum):
    TEXT = "text"
    JSON = "json"


OutputOption = Annotated[Output, typer.Option("-o", "--output", help="text, or json for programs")]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="a YAML file with one ITrainRun")]
FilesArgument = Annotated[list[Path], typer.Argument(metavar="FILE…", help="YAML files, one ITrainRun each")]
RunArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[DIR|NAME]",
        help="a state folder, a name in .itrain/ (default: the latest), or else a run in the cluster",
    ),
]
RunsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="DIR|NAME",
        help="a state folder, a name in .itrain/ (default: the latest), or else a run in the cluster; several with "
        "--compare",
    ),
]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="a run in the cluster")]
NamespaceOption = Annotated[
    str | None, typer.Option("-n", "--namespace", help="in the cluster, in this namespace; default: the context's")
]
ContextOption = Annotated[
    str | None,
    typer.Option("--context", metavar="NAME", help="in the cluster of this context; default: the current one"),
]
KubeconfigOption = Annotated[
    Path | None, typer.Option("--kubeconfig", metavar="FILE", help="default: $KUBECONFIG, else ~/.kube/config")
]
LocalOption = Annotated[bool, typer.Option("--local", help="on this machine, whatever the cluster has")]
YesOption = Annotated[bool, typer.Option("-y", "--yes", help="do not ask")]

PLAIN_WIDTH = 140
"""Columns of a table that does not go to a terminal."""


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def say_json(value: object) -> None:
    say(json.dumps(value, indent=1, default=str))


def say_json_line(value: object) -> None:
    say(json.dumps(value, default=str))
    sys.stdout.flush()


def whisper(text: str) -> None:
    """For a person beside the output: to stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def place(
    context: typer.Context,
    namespace: str | None,
    kube_context: str | None,
    kubeconfig: Path | None,
    *,
    local: bool = False,
) -> Where:
    """The options that say where to look."""
    return Where(
        namespace=namespace, context=kube_context, kubeconfig=kubeconfig, local=local, plugin=context.obj == PLUGIN
    )
