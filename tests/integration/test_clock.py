"""The wall clock of the operator's machine jumps, made by libfaketime: the process asks the clock and is lied to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from itrain_contract.stages import StageRef
from itrain_testing.cluster import sessions
from itrain_testing.cluster.access import Access
from itrain_testing.cluster.debian import unpacked
from itrain_testing.gotools import ToolMissingError
from itrain_testing.operatorprocess import OperatorProcess
from itrain_testing.podstatus import PodRun
from itrain_testing.simkubelet import SimulatedNode
from itrain_testing.watchrun import STAGES, WatchedRun

HOURS_S = 7200


class WallClock:
    """The offset of one process's wall clock; its steady clocks stay true."""

    def __init__(self, library: Path, file: Path) -> None:
        self._file = file
        self.jump(0)
        self.environ = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def jump(self, seconds: int) -> None:
        """To so many seconds before or after the true time."""
        self._file.write_text(f"{seconds:+d}")


@pytest.fixture
def wall_clock(tmp_path: Path) -> WallClock:
    try:
        folder = unpacked("libfaketime")
    except ToolMissingError as error:
        sessions.unavailable(str(error))
    return WallClock(next(folder.glob("usr/lib/*/faketime/libfaketimeMT.so.1")), tmp_path / "offset")


@pytest.fixture
def operator(cluster: Access, namespace: str, tmp_path: Path, wall_clock: WallClock) -> Iterator[OperatorProcess]:
    process = OperatorProcess(tmp_path, kubeconfig=cluster.kubeconfig, namespace=namespace, env=wall_clock.environ)
    process.start()
    yield process
    process.stop()


@pytest.mark.parametrize("first", [HOURS_S, -HOURS_S], ids=["forwards", "backwards"])
def test_a_clock_that_jumps_and_jumps_back_costs_no_attempt_no_lease_and_no_time(
    first: int, run: WatchedRun, node: SimulatedNode, operator: OperatorProcess, wall_clock: WallClock
) -> None:
    """Two hours lie beyond the deadline of the run, its back-off, and every wait for a clean-up."""

    def script(ref: StageRef, attempt: int, index: int) -> PodRun:
        if (ref.kind, attempt) == ("warmup", 1):
            return PodRun(seconds=4.0, exit_code=75)
        return PodRun(seconds=4.0 if ref.kind in ("warmup", "rollout") else 0.2)

    node.script = script
    run.apply(activeDeadlineSeconds=3600)
    run.wait_for_running("warmup")
    wall_clock.jump(first)
    told = datetime.fromisoformat(run.wait(attempt=2)["lastObservedTime"]).timestamp()
    assert abs(told - time.time() - first) < 60, "the clock of the process did not jump"
    wall_clock.jump(-first)
    run.wait(stage="rollout", reason="StageRunning")
    wall_clock.jump(0)
    done = run.wait(phase="Succeeded", timeout_s=120)
    assert (done["retries"], done["preemptions"]) == (1, 0)
    assert done["runningSeconds"] < 300
    assert run.job_names() == [name.replace("warmup-a1", "warmup-a2") for name in STAGES]
    assert "leads no more" not in operator.said()
