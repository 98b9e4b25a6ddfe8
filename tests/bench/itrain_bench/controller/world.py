"""What is measured and what it lives on: API server, etcd, controller manager, operator, the bench's node and watches.

The Jobs' statuses are made by the real Job controller. There is no scheduler: the node binds its pods itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from itrain_bench.controller.audit import AuditTail, build_policy
from itrain_bench.controller.errands import Errands
from itrain_bench.controller.ledger import Ledger
from itrain_bench.controller.node import BenchNode
from itrain_bench.controller.population import Population
from itrain_bench.controller.usage import cpu_s, machine_cpu_s
from itrain_bench.controller.watching import See, follow
from itrain_contract.names import LABEL_RUN
from itrain_operator.app import ENV_POD_UID
from itrain_operator.kube import KubeCluster, load_configuration
from itrain_operator.kubeapi import JOBS, LEASES, PODS, Raw
from itrain_testing.cluster.controlplane import ControlPlane
from itrain_testing.operatorprocess import OperatorProcess

NAMESPACE = "bench"
USER = "itrain-operator"
OPERATOR_SETTINGS: dict[str, Any] = {
    "lease": {"namespace": NAMESPACE, "durationSeconds": 10, "renewSeconds": 7, "retrySeconds": 2},
    "progress": {"intervalSeconds": 15, "requestsPerSecond": 2},
}
"""The defaults again, where `OperatorProcess` has values that suit a test; everything else is at its default."""
CONTROLLER_FLAGS = ("--kube-api-qps=500", "--kube-api-burst=1000", "--concurrent-job-syncs=20")
"""The Job controller must not be what is measured: its defaults are 20 requests a second and 5 Jobs at a time."""
LAG_EVERY_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """CPU seconds of each process so far."""

    at: float
    by_name: dict[str, float]


class Maker(Protocol):
    """Who makes the Jobs' successors, or has them made."""

    errands: Errands

    @property
    def see(self) -> See: ...


class World:
    """Everything of one measurement; `open_world` starts it."""

    def __init__(self, control_plane: ControlPlane, cluster: KubeCluster, settings: Mapping[str, Any]) -> None:
        self.clock = time.monotonic
        self.control_plane = control_plane
        self.cluster = cluster
        self._settings = settings
        self._pods = 0
        self.operator = self.new_pod()
        self.ledger = Ledger()
        self.node = BenchNode(cluster, control_plane.folder / "node", clock=self.clock)
        self.population = Population(cluster, NAMESPACE)
        self._maker: Maker = self.population
        self.template: Raw | None = None
        """A Job as it was first seen."""
        self.audit = AuditTail(control_plane.audit_file)
        self.renewals: list[float] = []
        """When the watch showed the Lease taken or renewed."""
        self.lags: list[tuple[float, float]] = []
        """(when, by how much) the bench's own loop was late: times are no more exact than that."""
        self._tasks: list[asyncio.Task[None]] = []

    def new_pod(self) -> OperatorProcess:
        """From now on the operator is a process of another pod, not started yet."""
        self._pods += 1
        name = f"operator-{self._pods}"
        self.operator = OperatorProcess(
            self.control_plane.folder,
            kubeconfig=self.control_plane.access_for(USER).kubeconfig,
            namespace=NAMESPACE,
            name=name,
            env={ENV_POD_UID: name},
            **{**OPERATOR_SETTINGS, **self._settings},
        )
        return self.operator

    def start(self) -> None:
        """Watch, and keep the node alive."""
        watches = (
            follow(self.cluster, JOBS, NAMESPACE, self._see_job, self.clock, labels=LABEL_RUN),
            follow(self.cluster, PODS, NAMESPACE, self.node.see, self.clock, labels=LABEL_RUN),
            follow(self.cluster, LEASES, NAMESPACE, self._see_lease, self.clock),
        )
        self._tasks = [asyncio.create_task(work) for work in (*watches, self.node.beat(), self._measure_lag())]

    def watch_jobs(self, maker: Maker) -> None:
        """Tell `maker` of Jobs instead of the population."""
        self._maker = maker

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def check(self) -> None:
        """Raises what a part of the bench died of: its figures would be worth nothing."""
        ended = [task.exception() for task in self._tasks if task.done() and not task.cancelled()]
        for failure in (*ended, self.node.errands.failure, self._maker.errands.failure):
            if failure is not None:
                raise failure

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self.check()

    def cpu(self) -> Cpu:
        plane = self.control_plane
        daemons = {
            "operator": self.operator,
            "apiserver": plane.apiserver,
            "etcd": plane.etcd,
            "controller_manager": plane.controller_manager,
        }
        spent = {name: cpu_s(daemon.pid) for name, daemon in daemons.items() if daemon.pid is not None}
        spent["bench"] = cpu_s(os.getpid())
        spent["others"] = machine_cpu_s() - sum(spent.values())
        return Cpu(at=self.clock(), by_name=spent)

    def _see_job(self, job: Raw, deleted: bool, at: float) -> None:
        if not deleted:
            self.ledger.see(job, at)
            self.template = self.template or job
        self._maker.see(job, deleted, at)

    def _see_lease(self, lease: Raw, deleted: bool, at: float) -> None:
        if not deleted and lease["spec"].get("holderIdentity"):
            self.renewals.append(at)

    async def _measure_lag(self) -> None:
        while True:
            due = self.clock() + LAG_EVERY_S
            await asyncio.sleep(LAG_EVERY_S)
            self.lags.append((due, self.clock() - due))


@asynccontextmanager
async def open_world(folder: Path, *, operator: bool = True, **settings: Any) -> AsyncIterator[World]:
    """A control plane and an operator of this measurement's own; `settings` are the operator's, over the defaults.

    Without `operator` the process is not started.
    """
    folder.mkdir(parents=True)
    policy = folder / "audit-policy.json"
    policy.write_text(json.dumps(build_policy(USER)))
    flags = {
        "kube-controller-manager": CONTROLLER_FLAGS,
        "kube-apiserver": [f"--audit-policy-file={policy}", f"--audit-log-path={folder / 'audit.log'}"],
    }
    plane = ControlPlane(folder, flags=flags)
    async with AsyncExitStack() as stack:
        stack.callback(plane.stop)
        for daemon in (plane.etcd, plane.apiserver, plane.controller_manager):
            daemon.start()
        plane.access.apply_crd()
        plane.access.create_namespace(NAMESPACE)
        # A right for everything, but no place in system:masters: the server's fairness holds for it as for anybody.
        plane.access.kubectl("create", "clusterrolebinding", USER, "--clusterrole=cluster-admin", f"--user={USER}")
        cluster = await _client(plane)
        stack.push_async_callback(cluster.close)
        world = World(plane, cluster, settings)
        logs = await world.node.register()
        stack.push_async_callback(logs.cleanup)
        stack.push_async_callback(world.stop)
        world.start()
        stack.callback(lambda: world.operator.stop())
        if operator:
            world.operator.start()
        yield world


async def _client(plane: ControlPlane) -> KubeCluster:
    configuration = await load_configuration(str(plane.kubeconfig))
    return KubeCluster(
        configuration,
        qps=10_000.0,
        burst=10_000,
        timeout_s=60.0,
        clock=time.monotonic,
        on_request=lambda verb, code: None,
        may_write=lambda: True,
    )
