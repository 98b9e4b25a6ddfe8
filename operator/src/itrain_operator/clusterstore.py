"""`itrain report` and `purge` of a run in a cluster: the pipeline reads the store, here or in a pod that can.

S3 is read from this machine with the user's own AWS environment. A volume claim is read by a short-lived pod.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from itrain_contract.names import Phase
from itrain_operator.cli_local import run_pipeline
from itrain_operator.clusteraccess import Access, ClusterError
from itrain_operator.clusterreader import fetch_file, run_in_pod
from itrain_operator.clusterruns import ClusterRun
from itrain_operator.localstate import LocalRunError, write_atomic

REPORT = "report.html"
AWS_HINT = "your AWS environment must reach the bucket (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …)"


async def report(access: Access, run: ClusterRun, out: Path, environ: Mapping[str, str]) -> Path:
    """The report that export made; before that, one of the results so far. Raises ClusterError."""
    arguments = report_arguments(run)
    if on_claim(run):
        write_atomic(out, await fetch_file(access, run, arguments))
        return out
    try:
        run_pipeline([*arguments, "--out", str(out)], environ)
    except LocalRunError as error:
        raise ClusterError(f"the report of {run.name} cannot be fetched: {error}; {AWS_HINT}") from error
    return out


def report_arguments(run: ClusterRun) -> list[str]:
    """The pipeline's command, `--out` left out."""
    if run.status.report_uri:
        return ["fetch", "--prefix", run.status.report_uri.removesuffix(REPORT), "--name", REPORT]
    if not run.status.completed:
        raise ClusterError(f"{run.name} has no finished stage to report on yet: `itrain watch {run.name}`")
    return ["report", "--run-root", run.layout.root]


async def purge(access: Access, run: ClusterRun, environ: Mapping[str, str]) -> None:
    """Delete every artifact below the run's folder; the run itself stays. Raises ClusterError."""
    arguments = ["purge", "--run-root", run.layout.root]
    if on_claim(run):
        await run_in_pod(access, run, arguments)
        return
    try:
        run_pipeline(arguments, environ)
    except LocalRunError as error:
        raise ClusterError(f"the artifacts of {run.name} cannot be deleted: {error}; {AWS_HINT}") from error


def check_purgeable(run: ClusterRun) -> None:
    """Nobody may be writing there."""
    busy = run.status.current is not None and run.status.current.active > 0
    if not run.status.phase.terminal and (run.status.phase != Phase.SUSPENDED or busy):
        raise ClusterError(
            f"{run.name} is {run.status.phase.value}: its stages use these artifacts; `itrain suspend {run.name}` first"
        )


def on_claim(run: ClusterRun) -> bool:
    return run.spec is not None and run.spec.storage.pvc is not None
