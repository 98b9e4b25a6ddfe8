"""`python -m itrain_testing.cluster up | down | tools`: a cluster to work against, in the background.

`up` starts a supervisor that owns every process; its state lies in build/cluster. Where there can be no node (see
`itrain_testing.cluster.node.missing`) it says why and starts the control plane alone. `down` asks the supervisor to
end: it ends the processes it started and removes what it made, nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from itrain_testing.cluster import binaries, machine
from itrain_testing.cluster import node as nodes
from itrain_testing.cluster.access import ROOT
from itrain_testing.cluster.controlplane import ControlPlane
from itrain_testing.daemons import Daemon
from itrain_testing.gotools import ToolMissingError

STATE = ROOT / "build/cluster"
UP_TIMEOUT_S = 360.0
DOWN_TIMEOUT_S = 90.0


def up(state: Path, *, with_node: bool) -> int:
    if reason := binaries.missing():
        print(f"cluster-up: {reason}", file=sys.stderr)
        return 1
    if with_node and (reason := nodes.missing()):
        print(f"cluster-up: without a node, pods will stay Pending: {reason}", file=sys.stderr)
        with_node = False
    if supervisor(state) is None:
        shutil.rmtree(state, ignore_errors=True)
        state.mkdir(parents=True)
        with (state / "supervisor.log").open("ab") as log:
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "itrain_testing.cluster",
                    "serve",
                    f"--state={state}",
                    f"--{'' if with_node else 'no-'}node",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
    deadline = time.monotonic() + UP_TIMEOUT_S
    while not (state / "ready").exists():
        if time.monotonic() > deadline or (supervisor(state) is None and (state / "pid").exists()):
            print(f"cluster-up: not ready; see {state}/*.log\n{_tail(state / 'supervisor.log')}", file=sys.stderr)
            return 1
        time.sleep(0.1)
    print(f"export KUBECONFIG={state / 'kubeconfig'}")
    return 0


def down(state: Path) -> int:
    pid = supervisor(state)
    if pid is not None:
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + DOWN_TIMEOUT_S
        while supervisor(state) is not None:
            if time.monotonic() > deadline:
                print(f"cluster-down: process {pid} does not end; see {state}/supervisor.log", file=sys.stderr)
                return 1
            time.sleep(0.1)
    machine.clean_up_after_a_killed_node()
    shutil.rmtree(state, ignore_errors=True)
    return 0


def serve(state: Path, *, with_node: bool) -> int:
    """The supervisor: everything below it ends with it, even when it is killed (PR_SET_PDEATHSIG)."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    (state / "pid").write_text(str(os.getpid()))
    with _node() if with_node else _control_plane(state / "control-plane") as (kubeconfig, daemons):
        shutil.copy(kubeconfig, state / "kubeconfig")
        (state / "processes.json").write_text(json.dumps({d.name: d.pid for d in daemons}, indent=1))
        (state / "ready").touch()
        ended.wait()
    return 0


@contextmanager
def _node() -> Iterator[tuple[Path, tuple[Daemon, ...]]]:
    with nodes.running_node() as node:
        yield node.access.kubeconfig, (*node.control_plane.daemons, *node.daemons)


@contextmanager
def _control_plane(folder: Path) -> Iterator[tuple[Path, tuple[Daemon, ...]]]:
    control_plane = ControlPlane(folder)
    try:
        control_plane.start()
        control_plane.access.apply_crd()
        yield control_plane.kubeconfig, control_plane.daemons
    finally:
        control_plane.stop()


def supervisor(state: Path) -> int | None:
    """The pid of the supervisor of this state folder, when it lives."""
    try:
        pid = int((state / "pid").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return None
    return pid if f"--state={state}".encode() in command else None


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:] if log.exists() else ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m itrain_testing.cluster", description=__doc__)
    parser.add_argument("action", choices=["up", "down", "tools", "serve"])
    parser.add_argument("--state", type=Path, default=STATE)
    parser.add_argument("--node", action=argparse.BooleanOptionalAction, default=True, help="run pods, as root")
    arguments = parser.parse_args()
    state: Path = arguments.state.resolve()
    match arguments.action:
        case "up":
            return up(state, with_node=arguments.node)
        case "serve":
            try:
                return serve(state, with_node=arguments.node)
            except ToolMissingError as error:
                print(error, file=sys.stderr)
                return 1
        case "down":
            return down(state)
        case _:
            return tools(with_node=arguments.node)


def tools(*, with_node: bool) -> int:
    """Build or fetch everything now."""
    reason = binaries.missing() or (nodes.missing() if with_node else "")
    print(reason or f"Kubernetes {binaries.kubernetes_version()}: every program is there", file=sys.stderr)
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main())
