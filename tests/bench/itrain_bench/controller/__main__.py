"""`python -m itrain_bench.controller`: the operator under load, its figures in one flat JSON file.

Everything runs on this machine: etcd, API server, controller manager, operator and bench share its cores.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from itrain_bench.controller import statusbytes
from itrain_bench.controller.load import Figures, Scale
from itrain_bench.controller.measure import measure
from itrain_bench.controller.usage import machine
from itrain_bench.controller.world import CONTROLLER_FLAGS
from itrain_operator.settings import OperatorSettings
from itrain_testing.cluster import binaries
from itrain_testing.cluster.access import ROOT

OUT = ROOT / "build/bench/operator.json"
FULL = (
    Scale(runs=10, seconds=60),
    Scale(runs=100, seconds=90, passes=10_000),
    Scale(runs=1000, seconds=120, calm_s=60, restart=True, floor=True),
)
QUICK = (Scale(runs=100, seconds=45, restart=True),)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m itrain_bench.controller", description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--quick", action="store_true", default=bool(os.environ.get("QUICK")), help="also: QUICK=1")
    parser.add_argument("--only", type=int, help="this number of runs alone")
    parser.add_argument("--keep", type=Path, help="leave logs and audit logs in this folder")
    arguments = parser.parse_args()
    if reason := binaries.missing():
        print(f"bench-operator: {reason}", file=sys.stderr)
        return 1
    chosen = [s for s in (QUICK if arguments.quick else FULL) if arguments.only in (None, s.runs)]
    with tempfile.TemporaryDirectory(prefix="itrain-bench-") as temp:
        figures = asyncio.run(bench(chosen, arguments.keep or Path(temp)))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(arguments.out)
    return 0


async def bench(scales: list[Scale], folder: Path) -> Figures:
    """Each scale has a cluster of its own."""
    began = time.monotonic()
    figures: Figures = {**machine(), **versions(), **settings()}
    for scale in scales:
        found = await measure(scale, folder / f"runs-{scale.runs}", say)
        for name, value in found.items():
            shared = name.startswith(("restart_", "failover_"))
            figures[name if shared else f"runs_{scale.runs}_{name}"] = value
        if scale.restart:
            figures["restart_runs"] = scale.runs
    status = statusbytes.largest_status(shards=10_000, iterations=100)
    figures["status_bytes_max"] = await statusbytes.stored_bytes(folder / "status", status)
    figures["bench_seconds"] = round(time.monotonic() - began)
    return figures


def versions() -> Figures:
    said = subprocess.run([str(binaries.etcd()), "--version"], capture_output=True, text=True, check=True).stdout
    return {
        "python": platform.python_version(),
        "kubernetes": binaries.kubernetes_version(),
        "etcd": said.splitlines()[0].rpartition(" ")[2],
        "kopf": importlib.metadata.version("kopf"),
        "kubernetes_client": importlib.metadata.version("kubernetes"),
    }


def settings() -> Figures:
    """What of the operator's and the controller manager's settings the figures depend on."""
    ours = OperatorSettings()
    return {
        "operator_workers": ours.workers,
        "operator_api_qps": ours.api_qps,
        "operator_api_burst": ours.api_burst,
        "controller_manager_flags": " ".join(CONTROLLER_FLAGS),
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
