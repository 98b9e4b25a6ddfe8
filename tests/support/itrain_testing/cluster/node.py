"""A real node for the control plane: containerd, kubelet, kube-proxy and CoreDNS on 198.18.0.1, as root.

    with running_node() as node:
        node.access.create(job, namespace="default")

Pods run without a registry: `localhost/itrain/pipeline:dev` holds this environment's Python (see `hostpython`), other
images come by `node.containerd.load_image`. A pod with `runtimeClassName: plain` gets its image and nothing else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from itrain_testing.cluster import binaries, containerd, hostpython
from itrain_testing.cluster.access import Access, eventually
from itrain_testing.cluster.containerd import Containerd
from itrain_testing.cluster.controlplane import LOOPBACK, ControlPlane
from itrain_testing.cluster.machine import ADDRESS, POD_RANGE, node_folder
from itrain_testing.daemons import Daemon, free_port, listens
from itrain_testing.gotools import ToolMissingError

NAME = "itrain-node"
DOMAIN = "cluster.local"
RUNTIME_CLASSES = ("host-python", "plain")


class Node:
    """The four daemons of a node; `containerd`, `kubelet` and the others can be stopped, killed and started again."""

    def __init__(self, folder: Path, control_plane: ControlPlane) -> None:
        self.folder = folder
        self.control_plane = control_plane
        self.access: Access = control_plane.access
        self.containerd = Containerd(folder)
        self.kubelet = self._kubelet()
        self.kube_proxy = self._kube_proxy()
        self.coredns = self._coredns()

    @property
    def daemons(self) -> tuple[Daemon, ...]:
        return (self.containerd.daemon, self.kubelet, self.kube_proxy, self.coredns)

    def start(self) -> None:
        """Returns when the node is Ready and names resolve."""
        self.containerd.start()
        for daemon in self.daemons[1:]:
            daemon.launch()
        classes = [{"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "handler": h} for h in RUNTIME_CLASSES]
        self.access.apply(*({**c, "metadata": {"name": c["handler"]}} for c in classes))
        for daemon in self.daemons[1:]:
            daemon.wait_until_ready()
        eventually(self.is_ready, timeout_s=60, what=f"node {NAME} is Ready; see {self.kubelet.log}")

    def stop(self) -> None:
        for daemon in reversed(self.daemons):
            daemon.kill()

    def is_ready(self) -> bool:
        found = self.access.try_kubectl("get", "node", NAME, "-o", "json")
        if found.returncode:
            return False
        conditions = json.loads(found.stdout)["status"].get("conditions", [])
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    def pretend_gpus(self, count: int, product: str = "Tesla-V100-SXM2-32GB") -> None:
        """The node says that it has GPUs: pods that ask for them are scheduled and run. 0 takes them away."""
        capacity = {"nvidia.com/gpu": str(count) if count else None}
        patch = json.dumps({"status": {"capacity": capacity, "allocatable": capacity}})
        self.access.kubectl("patch", "node", NAME, "--subresource=status", "--type=merge", "-p", patch)
        label = f"nvidia.com/gpu.product={product}" if count else "nvidia.com/gpu.product-"
        self.access.kubectl("label", "node", NAME, "--overwrite", label)

    def _kubelet(self) -> Daemon:
        health = free_port()
        resolv_conf = self.folder / "resolv.conf"
        resolv_conf.write_text(f"nameserver {ADDRESS}\n")
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": ADDRESS,
            "port": free_port(ADDRESS),
            "healthzBindAddress": LOOPBACK,
            "healthzPort": health,
            # Bound to an address that only this machine has.
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "containerRuntimeEndpoint": f"unix://{self.containerd.socket}",
            "cgroupDriver": "cgroupfs",
            "failCgroupV1": False,
            "failSwapOn": False,
            "enforceNodeAllocatable": [],
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "evictionHard": {"memory.available": "10Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
            "clusterDNS": [ADDRESS],
            "clusterDomain": DOMAIN,
            "resolvConf": str(resolv_conf),
            "podLogsDir": str(self.folder / "pods"),
            "volumePluginDir": str(self.folder / "plugins"),
            "makeIPTablesUtilChains": False,
            "oomScoreAdj": 0,
            "nodeStatusUpdateFrequency": "4s",
            "serializeImagePulls": False,
        }
        path = self._write("kubelet.json", config)
        kubeconfig = self.control_plane.access_for(f"system:node:{NAME}", ["system:nodes"]).kubeconfig
        command = [
            str(binaries.kubernetes("kubelet")),
            f"--config={path}",
            f"--kubeconfig={kubeconfig}",
            f"--hostname-override={NAME}",
            f"--node-ip={ADDRESS}",
            f"--root-dir={self.folder / 'kubelet'}",
            f"--cert-dir={self.folder / 'kubelet-pki'}",
        ]
        return self._daemon("kubelet", command, lambda: listens(health))

    def _kube_proxy(self) -> Daemon:
        """nftables mode: all its rules are one table, which goes as a whole."""
        health = free_port()
        config = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "hostnameOverride": NAME,
            "bindAddress": ADDRESS,
            "healthzBindAddress": f"{LOOPBACK}:{health}",
            "metricsBindAddress": f"{LOOPBACK}:{free_port()}",
            "clusterCIDR": POD_RANGE,
            # Pods of one bridge answer each other directly; masqueraded, the answer comes back through the rules.
            "nftables": {"masqueradeAll": True},
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
            "clientConnection": {"kubeconfig": str(self.control_plane.access_for("system:kube-proxy").kubeconfig)},
        }
        path = self._write("kube-proxy.json", config)
        return self._daemon(
            "kube-proxy", [str(binaries.kubernetes("kube-proxy")), f"--config={path}"], lambda: listens(health)
        )

    def _coredns(self) -> Daemon:
        """Names of Services and of pods behind headless ones; any other name does not exist."""
        ready = free_port()
        kubeconfig = self.control_plane.kubeconfig
        path = self.folder / "Corefile"
        path.write_text(
            f"{DOMAIN} in-addr.arpa {{\n bind {ADDRESS}\n errors\n ready {LOOPBACK}:{ready}\n"
            f" kubernetes {DOMAIN} in-addr.arpa {{\n  kubeconfig {kubeconfig}\n  ttl 0\n }}\n}}\n"
            f". {{\n bind {ADDRESS}\n template ANY ANY {{\n  rcode NXDOMAIN\n }}\n}}\n"
        )
        return self._daemon("coredns", [str(binaries.coredns()), f"-conf={path}"], lambda: listens(ready))

    def _daemon(self, name: str, command: list[str], ready: Any) -> Daemon:
        path = f"{self.containerd.programs}:/usr/sbin:/usr/bin:/sbin:/bin"
        return Daemon(name, command, log=self.folder / f"{name}.log", ready=ready, env={"PATH": path}, patience_s=5.0)

    def _write(self, name: str, config: dict[str, Any]) -> Path:
        path = self.folder / name
        path.write_text(json.dumps(config, indent=1))
        return path


@contextmanager
def running_node(*, audit: bool = False) -> Iterator[Node]:
    """A control plane with the CRD and a node, for as long as the context lasts; the machine is as before afterwards.

    Raises ToolMissingError, see `missing`.
    """
    if reason := missing():
        raise ToolMissingError(reason)
    with node_folder() as folder:
        control_plane = ControlPlane(folder / "control-plane", address=ADDRESS, audit=audit)
        try:
            control_plane.start()
            control_plane.access.apply_crd()
            node = Node(folder, control_plane)
            try:
                node.start()
                yield node
            finally:
                node.stop()
        finally:
            control_plane.stop()


def missing() -> str:
    """Why there can be no node here, in one line; empty when there can be one. Builds what is not built yet."""
    if os.geteuid() != 0:
        return "a node needs root: it makes cgroups, mounts and network interfaces"
    reason = hostpython.missing() or containerd.missing() or binaries.missing() or binaries.missing(binaries.NODE)
    if reason:
        return reason
    try:
        binaries.coredns()
    except ToolMissingError as error:
        return str(error)
    return ""
