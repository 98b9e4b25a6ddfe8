"""A Kubernetes control plane of this test's own: etcd, API server, controller manager and scheduler as child processes.

Everything lies in one folder and listens on free ports of one address. Each process is a `Daemon`: a test stops, kills
and starts it again by itself, `control_plane.apiserver.restart()`.
"""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from itrain_testing.cluster import binaries
from itrain_testing.cluster.access import Access, write_kubeconfig
from itrain_testing.cluster.pki import Authority, KeyPair
from itrain_testing.daemons import Daemon, free_port

LOOPBACK = "127.0.0.1"
SERVICE_RANGE = "198.19.0.0/24"
API_SERVICE_ADDRESS = "198.19.0.1"
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}


class ControlPlane:
    """`flags` adds flags by process name: {"kube-controller-manager": ["--node-monitor-grace-period=8s"]}."""

    def __init__(
        self,
        folder: Path,
        *,
        address: str = LOOPBACK,
        audit: bool = False,
        flags: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.address = address
        self.audit_file = folder / "audit.log"
        self.authority = Authority(folder / "pki")
        self._flags = flags or {}
        self._audit = audit
        self._port = free_port(address)
        hosts = [address, LOOPBACK, API_SERVICE_ADDRESS, "localhost", "kubernetes", "kubernetes.default"]
        self._serving = self.authority.server("serving", [*hosts, "kubernetes.default.svc"])
        self._tokens = self.authority.server("service-accounts", ["kubernetes.default.svc"])
        self.access = self.access_for("admin", ["system:masters"])
        self.etcd = self._etcd()
        self.apiserver = self._apiserver()
        self.controller_manager = self._controller_manager()
        self.scheduler = self._scheduler()

    @property
    def server(self) -> str:
        return f"https://{self.address}:{self._port}"

    @property
    def kubeconfig(self) -> Path:
        """The admin's."""
        return self.access.kubeconfig

    @property
    def daemons(self) -> tuple[Daemon, ...]:
        return (self.etcd, self.apiserver, self.controller_manager, self.scheduler)

    def start(self) -> None:
        self.etcd.start()
        self.apiserver.start()
        self.controller_manager.launch()
        self.scheduler.launch()
        self.controller_manager.wait_until_ready()
        self.scheduler.wait_until_ready()

    def stop(self) -> None:
        """The end of this control plane: nothing is saved, so nothing is waited for."""
        for daemon in reversed(self.daemons):
            daemon.kill()

    def compact(self) -> None:
        """Let etcd forget all revisions but the newest, as it does every few minutes."""
        revision = self._etcd_call("maintenance/status", {})["header"]["revision"]
        self._etcd_call("kv/compaction", {"revision": revision, "physical": True})

    def _etcd_call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """etcd's JSON gateway."""
        request = urllib.request.Request(f"{self._etcd_url}/v3/{path}", data=json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=10) as response:
            answer: dict[str, Any] = json.load(response)
            return answer

    def access_for(self, user: str, groups: Sequence[str] = (), *, namespace: str = "default") -> Access:
        """Any user, by a client certificate: what it may do is up to RBAC."""
        client = self.authority.client(user, groups)
        return self._access(client.certificate.stem, client=client, namespace=namespace)

    def access_by_token(self, name: str, token: str, *, namespace: str = "default") -> Access:
        """For a service account's token (`kubectl create token`)."""
        return self._access(f"token-{name}", token=token, namespace=namespace)

    def audit_events(self) -> list[dict[str, Any]]:
        """What the audit log (`audit=True`) holds so far, one event a request."""
        with self.audit_file.open() as lines:
            return [json.loads(line) for line in lines]

    def _access(self, name: str, *, namespace: str, client: KeyPair | None = None, token: str = "") -> Access:
        kubeconfig = write_kubeconfig(
            self.folder / f"{name}.kubeconfig",
            server=self.server,
            authority=self.authority.pair.certificate,
            client=client,
            token=token,
            namespace=namespace,
        )
        return Access(kubeconfig=kubeconfig, kubectl_binary=binaries.kubernetes("kubectl"))

    def _etcd(self) -> Daemon:
        port, peers = free_port(), free_port()
        self._etcd_url = f"http://{LOOPBACK}:{port}"
        peer_url = f"http://{LOOPBACK}:{peers}"
        command = [
            str(binaries.etcd()),
            "--name=itrain",
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={self._etcd_url}",
            f"--advertise-client-urls={self._etcd_url}",
            f"--listen-peer-urls={peer_url}",
            f"--initial-advertise-peer-urls={peer_url}",
            f"--initial-cluster=itrain={peer_url}",
            "--unsafe-no-fsync",
        ]
        return self._daemon("etcd", command, f"{self._etcd_url}/health")

    def _apiserver(self) -> Daemon:
        command = [
            str(binaries.kubernetes("kube-apiserver")),
            f"--etcd-servers={self._etcd_url}",
            f"--bind-address={self.address}",
            f"--advertise-address={self.address}",
            f"--secure-port={self._port}",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            f"--client-ca-file={self.authority.pair.certificate}",
            f"--tls-cert-file={self._serving.certificate}",
            f"--tls-private-key-file={self._serving.key}",
            f"--service-account-key-file={self._tokens.certificate}",
            f"--service-account-signing-key-file={self._tokens.key}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--kubelet-preferred-address-types=InternalIP",
        ]
        if self.address == LOOPBACK:  # a Service may not point to a loopback address
            command.append("--endpoint-reconciler-type=none")
        if self._audit:
            policy = self.folder / "audit-policy.json"
            policy.write_text(json.dumps(AUDIT_POLICY))
            command += [f"--audit-policy-file={policy}", f"--audit-log-path={self.audit_file}"]
        return self._daemon("kube-apiserver", command, f"{self.server}/readyz")

    def _controller_manager(self) -> Daemon:
        port = free_port()
        command = [
            str(binaries.kubernetes("kube-controller-manager")),
            *self._client_flags("system:kube-controller-manager", port),
            "--use-service-account-credentials",
            f"--service-account-private-key-file={self._tokens.key}",
            f"--root-ca-file={self.authority.pair.certificate}",
        ]
        return self._daemon("kube-controller-manager", command, f"https://{LOOPBACK}:{port}/healthz")

    def _scheduler(self) -> Daemon:
        port = free_port()
        command = [
            str(binaries.kubernetes("kube-scheduler")),
            *self._client_flags("system:kube-scheduler", port),
        ]
        return self._daemon("kube-scheduler", command, f"https://{LOOPBACK}:{port}/readyz")

    def _client_flags(self, user: str, port: int) -> list[str]:
        kubeconfig = self.access_for(user).kubeconfig
        return [
            f"--kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            f"--bind-address={LOOPBACK}",
            f"--secure-port={port}",
            f"--tls-cert-file={self._serving.certificate}",
            f"--tls-private-key-file={self._serving.key}",
            "--leader-elect=false",
        ]

    def _daemon(self, name: str, command: list[str], health: str) -> Daemon:
        admin = self.authority.client("admin", ["system:masters"])
        return Daemon(
            name,
            [*command, *self._flags.get(name, ())],
            log=self.folder / f"{name}.log",
            ready=lambda: answers(health, authority=self.authority.pair.certificate, client=admin),
            patience_s=3.0,  # the API server would wait a minute for its watchers to leave
        )


def answers(url: str, *, authority: Path, client: KeyPair) -> bool:
    """Whether a health endpoint says 200."""
    context = None
    if url.startswith("https:"):
        context = ssl.create_default_context(cafile=str(authority))
        context.load_cert_chain(str(client.certificate), str(client.key))
    try:
        with urllib.request.urlopen(url, timeout=2, context=context) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False
