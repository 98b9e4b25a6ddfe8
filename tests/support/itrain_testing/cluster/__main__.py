"""`python -m itrain_testing.cluster up | down | tools`: a cluster to work against, in the background.

`up` starts a supervisor that owns every process; its state lies in build/cluster. `down` asks the supervisor to end: it
ends the processes it started and removes what it made, nothing else.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from itrain_testing.cluster import binaries
from itrain_testing.cluster.access import ROOT
from itrain_testing.cluster.controlplane import ControlPlane

STATE = ROOT / "build/cluster"
UP_TIMEOUT_S = 180.0
DOWN_TIMEOUT_S = 90.0


def up(state: Path) -> int:
    if reason := binaries.missing():
        print(f"cluster-up: {reason}", file=sys.stderr)
        return 1
    if supervisor(state) is None:
        shutil.rmtree(state, ignore_errors=True)
        state.mkdir(parents=True)
        with (state / "supervisor.log").open("ab") as log:
            subprocess.Popen(
                [sys.executable, "-m", __spec__.name, "serve", "--state", str(state)],
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
    shutil.rmtree(state, ignore_errors=True)
    return 0


def serve(state: Path) -> int:
    """The supervisor: everything below it ends with it, even when it is killed (PR_SET_PDEATHSIG)."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    (state / "pid").write_text(str(os.getpid()))
    control_plane = ControlPlane(state / "control-plane")
    try:
        control_plane.start()
        control_plane.access.apply_crd()
        shutil.copy(control_plane.kubeconfig, state / "kubeconfig")
        (state / "ready").touch()
        ended.wait()
    finally:
        control_plane.stop()
    return 0


def supervisor(state: Path) -> int | None:
    """The pid of the supervisor of this state folder, when it lives."""
    try:
        pid = int((state / "pid").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return None
    return pid if str(state).encode() in command else None


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:] if log.exists() else ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m itrain_testing.cluster", description=__doc__)
    parser.add_argument("action", choices=["up", "down", "tools", "serve"])
    parser.add_argument("--state", type=Path, default=STATE)
    arguments = parser.parse_args()
    if arguments.action == "tools":
        reason = binaries.missing()
        print(reason or f"Kubernetes {binaries.kubernetes_version()}: every program is there", file=sys.stderr)
        return 1 if reason else 0
    actions = {"up": up, "down": down, "serve": serve}
    return actions[arguments.action](arguments.state.resolve())


if __name__ == "__main__":
    sys.exit(main())
