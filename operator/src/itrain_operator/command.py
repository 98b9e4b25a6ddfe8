"""The console scripts. `itrain --help` answers from here; everything else loads the command line with all it needs.

What a command does is in `cli`, whose models and libraries take most of a second to load.
"""

from __future__ import annotations

import sys
from typing import NoReturn

OVERVIEW = {
    "run": "Run FILE until it ends; called again, it continues where it stopped.",
    "validate": "Check files: one line for each problem, with field, value, what is allowed, and the remedy.",
    "plan": "The stages of FILE in their order, with pods, GPUs and a bound on GPU-hours; nothing is started.",
    "profile": "Measure how fast this machine is with a model, for `itrain plan --explain --profile`.",
    "evaluate": "Evaluate a model folder, or a model behind an OpenAI-compatible endpoint, on benchmarks.",
    "version": "The version of this command and of the contract.",
    "submit": "Apply FILEs to the cluster; again, it changes what changed.",
    "list": "The runs in the cluster.",
    "status": "A run's stages, its learning curve, what it waits for.",
    "watch": "Follow a run in the cluster until it has ended.",
    "logs": "The output of a run's processes or pods.",
    "suspend": "Stop a run: its pods save and end; `resume` goes on.",
    "resume": "Let a suspended run go on where it stopped.",
    "wait": "Wait until a run in the cluster has succeeded, or --for.",
    "report": "Write the HTML report of the results so far.",
    "purge": "Delete every artifact of an ended or suspended run.",
}
"""The commands in their order, each with the first line of its help."""
HELP = "Iterative post-training of tool-calling models: one ITrainRun, on a cluster or on this machine."
EPILOG = (
    "A state folder that exists (DIR, or NAME in .itrain/) is a run on this machine, any other NAME one in the "
    "cluster; --local, -n, --context and --kubeconfig say which. Exit codes: 0 done, 2 usage, 64 configuration, "
    "65 data, 70 permanent failure, 75 retries exhausted, busy or API server away, 124 wait timed out, 130/143 "
    "interrupted (the same command continues)."
)
PLUGIN = "kubectl itrain"
"""Name and context object of the command as a plugin of kubectl."""


def main() -> None:
    """`itrain`."""
    if sys.argv[1:] == ["--help"]:
        show_overview("itrain")
    from itrain_operator import cli  # only here: --help stays quick

    cli.main()


def kubectl_main() -> None:
    """`kubectl itrain …`: the same commands, about the cluster unless --local is given."""
    if sys.argv[1:] == ["--help"]:
        show_overview(PLUGIN)
    from itrain_operator import cli

    cli.main(prog_name=PLUGIN)


def show_overview(prog_name: str) -> NoReturn:
    """Print the help of `itrain` as `cli` would; always raises SystemExit."""
    from typer.core import TyperCommand, TyperGroup

    commands = [TyperCommand(name, help=text, rich_markup_mode=None) for name, text in OVERVIEW.items()]
    TyperGroup(name="itrain", commands=commands, help=HELP, epilog=EPILOG, rich_markup_mode=None).main(
        ["--help"], prog_name=prog_name
    )
    raise SystemExit(0)
