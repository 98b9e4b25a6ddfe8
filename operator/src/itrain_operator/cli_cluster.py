"""The commands about runs in a cluster and, where both have them, on this machine. Parsing and printing only."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from itrain_contract.names import ExitCode
from itrain_operator import clustercommands as work
from itrain_operator.cli_compare import OUT, Place, place_of, write_comparison
from itrain_operator.cli_inspect import artifacts_root, make_report, purge_run, show_logs, show_status
from itrain_operator.cli_options import (
    PLAIN_WIDTH,
    ContextOption,
    FilesArgument,
    KubeconfigOption,
    LocalOption,
    NameArgument,
    NamespaceOption,
    Output,
    OutputOption,
    RunArgument,
    RunsArgument,
    YesOption,
    place,
    say,
    say_json,
    say_json_line,
    whisper,
)
from itrain_operator.clusteraccess import Access, ClusterError, Where, has_cluster, open_access
from itrain_operator.clusterlogs import Choice, LogLine, follow_logs
from itrain_operator.clusterlogs import show_logs as show_pod_logs
from itrain_operator.clusterstore import check_purgeable, on_claim
from itrain_operator.clusterstore import purge as purge_artifacts
from itrain_operator.clusterstore import report as fetch_report
from itrain_operator.clustersubmit import next_step, read_files
from itrain_operator.clustersubmit import submit as submit_file
from itrain_operator.clusterview import resource_json
from itrain_operator.clusterwatch import utc_now
from itrain_operator.clusterwatch import watch as watch_run
from itrain_operator.localstate import StateFolder
from itrain_operator.runplace import ClusterName, choose_place

T = TypeVar("T")
ASK_S = 2.0
"""How long a local command waits to learn whether the cluster has a run of the same name."""

runs = typer.Typer()


@runs.command()
def submit(
    context: typer.Context,
    files: FilesArgument,
    namespace: NamespaceOption = None,
    kube_context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
    force: Annotated[
        bool, typer.Option("--force-conflicts", help="take over fields that somebody else set, as kubectl or Argo CD")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="let the server check it; nothing is stored")] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Apply FILEs to the cluster; again, it changes what changed.

    They are checked as `validate` does first; then the server judges. Applied server-side: fields that somebody else
    set stay theirs.
    """
    read = read_files(files)

    async def apply(access: Access) -> list[dict[str, Any]]:
        shown = []
        for file in read:
            done = await submit_file(access, file, force=force, dry_run=dry_run)
            shown.append({"file": str(file.path), "action": done.action, "run": resource_json(done.run)})
            if output == Output.TEXT:
                dry = " (dry run)" if dry_run else ""
                say(f"itrainrun/{done.run.name} {done.action} in namespace {access.namespace}{dry}")
                if not dry_run:
                    say(next_step(done, access))
        return shown

    shown = on_cluster(place(context, namespace, kube_context, kubeconfig), apply)
    if output == Output.JSON:
        say_json(shown)


@runs.command("list")
def list_runs(
    context: typer.Context,
    namespace: NamespaceOption = None,
    everywhere: Annotated[bool, typer.Option("-A", "--all-namespaces", help="in every namespace")] = False,
    selector: Annotated[str, typer.Option("-l", "--selector", help="only runs with these labels, as in team=nlp")] = "",
    kube_context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """The runs in the cluster."""
    where = place(context, namespace, kube_context, kubeconfig)

    async def listed(access: Access) -> None:
        found = await work.list_runs(access, everywhere=everywhere, labels=selector)
        if output == Output.JSON:
            say_json({"apiVersion": "v1", "kind": "List", "items": [resource_json(run) for run in found]})
        elif found:
            shown = console()
            shown.print(work.list_table(found, utc_now(), everywhere=everywhere, width=shown.width))
        else:
            whisper("no runs" + ("" if everywhere else f" in namespace {access.namespace}; all namespaces: -A"))

    on_cluster(where, listed)


@runs.command()
def status(
    context: typer.Context,
    run: RunArgument = None,
    local: LocalOption = False,
    namespace: NamespaceOption = None,
    kube_context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """A run's stages, its learning curve, what it waits for."""
    where = place(context, namespace, kube_context, kubeconfig, local=local)
    chosen = find_run(run, where)
    if isinstance(chosen, StateFolder):
        show_status(chosen, as_json=output == Output.JSON)
        return
    found = on_cluster(where, lambda access: work.get_run(access, chosen.name), chosen)
    if output == Output.JSON:
        say_json(resource_json(found))
    else:
        work.show_run(console(), found, utc_now())


@runs.command()
def watch(
    context: typer.Context,
    name: NameArgument,
    namespace: NamespaceOption = None,
    kube_context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
    plain: Annotated[bool, typer.Option("--plain", help="plain lines even on a terminal")] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Follow a run in the cluster until it has ended.

    Lost connections are made again. Ctrl-C leaves, the run goes on. Exit code as of `run --local`.
    """
    where = place(context, namespace, kube_context, kubeconfig)
    as_json = output == Output.JSON
    raise typer.Exit(on_cluster(where, lambda access: watch_run(access, name, plain=plain, as_json=as_json)))


@runs.command()
def logs(
    context: typer.Context,
    run: RunArgument = None,
    stage: Annotated[str | None, typer.Option(help="only this stage, as in rollout or i2/rollout")] = None,
    shard: Annotated[int | None, typer.Option(help="only this shard")] = None,
    lines: Annotated[int, typer.Option("--lines", "--tail", min=1, help="last lines of each log")] = 40,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="keep printing, over attempts, until it ends")] = False,
    local: LocalOption = False,
    namespace: NamespaceOption = None,
    kube_context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """The output of a run's processes or pods.

    Without options, that of the newest attempt. In a cluster, --follow goes on with the attempts and stages after it.
    """
    where = place(context, namespace, kube_context, kubeconfig, local=local)
    chosen = find_run(run, where)
    if isinstance(chosen, StateFolder):
        show_logs(chosen, stage=stage, shard=shard, lines=lines, follow=follow, as_json=output == Output.JSON)
        return
    name, choice = chosen.name, Choice(stage=stage, shard=shard, lines=lines)
    sink = _json_line if output == Output.JSON else _text_line
    show = follow_logs if follow else show_pod_logs
    on_cluster(where, lambda access: show(access, name, choice, sink, whisper), chosen)


def _text_line(line: LogLine) -> None:
    mark = "" if line.pod.shard is None or not line.several else f"[{line.pod.shard}] "
    say(f"{mark}{line.text}")
    sys.stdout.flush()


def _json_line(line: LogLine) -> None:
    pod = line.pod
    fields = {"pod": pod.name, "stage": str(pod.ref), "attempt": pod.attempt, "shard": pod.shard, "line": line.text}
    say_json_line(fields)


@runs.command()
def suspend(
    context: typer.Context,
    name: NameArgument,
    namespace: NamespaceOption = None,
    kube_context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Stop a run: its pods save and end; `resume` goes on."""
    _set_suspended(place(context, namespace, kube_context, kubeconfig), name, suspended=True, output=output)


@runs.command()
def resume(
    context: typer.Context,
    name: NameArgument,
    namespace: NamespaceOption = None,
    kube_context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Let a suspended run go on where it stopped."""
    _set_suspended(place(context, namespace, kube_context, kubeconfig), name, suspended=False, output=output)


def _set_suspended(where: Where, name: str, *, suspended: bool, output: Output) -> None:
    async def patch(access: Access) -> None:
        run, warning = await work.suspend(access, name, suspended=suspended)
        if warning:
            whisper(f"warning: {warning}")
        if output == Output.JSON:
            say_json(resource_json(run))
        elif suspended:
            say(
                f"itrainrun/{name} is being suspended; when it is: itrain wait {name} --for suspended{access.options()}"
            )
        else:
            say(f"itrainrun/{name} goes on; follow it: itrain watch {name}{access.options()}")

    on_cluster(where, patch)


@runs.command()
def wait(
    context: typer.Context,
    name: NameArgument,
    goal: Annotated[work.Goal, typer.Option("--for", help="finished: succeeded or failed")] = work.Goal.SUCCEEDED,
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=0, metavar="SECONDS", help="default: as long as it takes")
    ] = None,
    namespace: NamespaceOption = None,
    kube_context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Wait until a run in the cluster has succeeded, or --for.

    Exit codes: 0 it is; 64, 65, 70 or 75 by the reason when it has failed instead; 70 when it can never be any more
    (deleted, or succeeded where a failure was waited for); 124 time-out. With --for finished a failed run gives its
    own code too.
    """
    where = place(context, namespace, kube_context, kubeconfig)
    waited = on_cluster(where, lambda access: work.wait_for(access, name, goal, timeout_s=timeout))
    if output == Output.JSON:
        say_json({"code": int(waited.code), "message": waited.message, "run": waited.run and resource_json(waited.run)})
    else:
        (say if waited.code == ExitCode.DONE else whisper)(waited.message)
    raise typer.Exit(int(waited.code))


@runs.command()
def report(
    context: typer.Context,
    named: RunsArgument = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="one page about two or more runs, each beside the first")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="where to write the HTML")] = None,
    open_it: Annotated[bool, typer.Option("--open", help="open it in the browser")] = False,
    local: LocalOption = False,
    namespace: NamespaceOption = None,
    kube_context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Write the HTML report of the results so far.

    Of a run in the cluster it is read from S3 with your own AWS environment; from a volume claim by a pod that lives
    for seconds and needs the right to create pods. With --compare: settings, accuracy, errors and cost of several runs
    side by side, by default in comparison.html; exit code 65 where they share no item or one has nothing evaluated.
    """
    where = place(context, namespace, kube_context, kubeconfig, local=local)
    runs = named or []
    if compare:
        if len(runs) < 2:
            raise typer.BadParameter("name two runs or more: itrain report --compare A B", param_hint="--compare")
        path = write_comparison(runs, [_find_place(run, where) for run in runs], out or OUT, os.environ)
    elif len(runs) > 1:
        raise typer.BadParameter(f"got {len(runs)} runs: one, or --compare", param_hint="DIR|NAME")
    else:
        path = _one_report(runs[0] if runs else None, where, out)
    if output == Output.JSON:
        say_json({"report": str(path)})
    else:
        say(str(path))
    if open_it:
        typer.launch(path.resolve().as_uri())


def _one_report(run: str | None, where: Where, out: Path | None) -> Path:
    chosen = find_run(run, where)
    if isinstance(chosen, StateFolder):
        return make_report(chosen, out=out, environ=os.environ)
    name, file = chosen.name, out or Path(f"{chosen.name}-report.html")

    async def fetch(access: Access) -> Path:
        return await fetch_report(access, await work.get_run(access, name), file, os.environ)

    return on_cluster(where, fetch, chosen)


def _find_place(run: str, where: Where) -> Place:
    chosen = find_run(run, where)
    if isinstance(chosen, StateFolder):
        return place_of(chosen)
    return place_of(on_cluster(where, lambda access: work.get_run(access, chosen.name), chosen))


@runs.command()
def purge(
    context: typer.Context,
    run: Annotated[str, typer.Argument(metavar="DIR|NAME", help="a state folder, or else a run in the cluster")],
    yes: YesOption = False,
    local: LocalOption = False,
    namespace: NamespaceOption = None,
    kube_context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Delete every artifact of an ended or suspended run.

    Models, adapters, samples, results, the report. The resource in the cluster stays: `kubectl delete itr NAME`
    removes it, and never an artifact. Of a run on this machine the state folder is emptied too.
    """
    where = place(context, namespace, kube_context, kubeconfig, local=local)
    chosen = find_run(run, where)
    if isinstance(chosen, StateFolder):
        root = artifacts_root(chosen)
        confirm(f"delete everything below {root} and the state in {chosen.path}?", yes=yes)
        purge_run(chosen, os.environ)
    else:
        root = _purge_cluster(where, chosen, yes=yes)
    if output == Output.JSON:
        say_json({"deleted": root})
    else:
        say(f"deleted what was below {root}")


def _purge_cluster(where: Where, chosen: ClusterName, *, yes: bool) -> str:
    found = on_cluster(where, lambda access: work.get_run(access, chosen.name), chosen)
    check_purgeable(found)
    on = ""
    if on_claim(found) and found.spec is not None and found.spec.storage.pvc is not None:
        on = f" (on the volume claim {found.spec.storage.pvc.claim_name})"
    root = found.layout.root
    confirm(f"delete everything below {root}{on} of the run {found.namespace}/{found.name}?", yes=yes)
    on_cluster(where, lambda access: purge_artifacts(access, found, os.environ), chosen)
    return root


def confirm(question: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise ClusterError(f"{question} Nobody can answer here: add --yes")
    if not typer.confirm(question, err=True):
        raise typer.Exit(1)


def console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)


def find_run(named: str | None, where: Where) -> StateFolder | ClusterName:
    return choose_place(named, where, lambda name: _also_in_cluster(name, where))


def _also_in_cluster(name: str, where: Where) -> str:
    """Asked quickly: a machine whose cluster is away must not wait for it."""
    if not has_cluster(os.environ):
        return ""

    async def ask() -> str:
        async with asyncio.timeout(ASK_S), open_access(where, timeout_s=ASK_S) as access:
            found = await work.get_run(access, name)
        return f"namespace {found.namespace}"

    try:
        return asyncio.run(ask())
    except (ClusterError, TimeoutError):
        return ""


def on_cluster(where: Where, do: Callable[[Access], Awaitable[T]], chosen: ClusterName | None = None) -> T:
    """Do it with an open way into the cluster. Raises ClusterError; Ctrl-C is exit code 130."""

    async def done() -> T:
        async with open_access(where) as access:
            return await do(access)

    try:
        return asyncio.run(done())
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except ClusterError as error:
        if chosen is not None and chosen.guessed and error.nowhere:
            raise ClusterError(f"{chosen.name} is no run on this machine; {error}", error.code) from error
        raise
