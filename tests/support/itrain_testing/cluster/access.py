"""A way into a cluster: a kubeconfig file, and kubectl that uses it."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itrain_testing.cluster.pki import KeyPair

ROOT = Path(__file__).resolve().parents[4]
CRD_FILE = ROOT / "crds/itrainruns.itrain.dev.yaml"


class KubectlError(RuntimeError):
    """kubectl failed; the message is what it wrote to stderr."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What a test needs of a cluster, whoever started it."""

    kubeconfig: Path
    kubectl_binary: Path

    def kubectl(self, *arguments: str, stdin: str | None = None, namespace: str = "") -> str:
        """stdout of kubectl; raises KubectlError."""
        done = self.try_kubectl(*arguments, stdin=stdin, namespace=namespace)
        if done.returncode:
            raise KubectlError(done.stderr.strip())
        return done.stdout

    def try_kubectl(
        self, *arguments: str, stdin: str | None = None, namespace: str = ""
    ) -> subprocess.CompletedProcess[str]:
        command = [str(self.kubectl_binary), f"--kubeconfig={self.kubeconfig}"]
        command += [f"--namespace={namespace}"] if namespace else []
        return subprocess.run([*command, *arguments], input=stdin, capture_output=True, text=True, check=False)

    def get(self, *arguments: str, namespace: str = "") -> dict[str, Any]:
        """`get ('job', 'x')` as a dict; `get('jobs')` is a list object."""
        found: dict[str, Any] = json.loads(self.kubectl("get", *arguments, "-o", "json", namespace=namespace))
        return found

    def create(self, *objects: dict[str, Any], namespace: str = "") -> None:
        """POST, as `kubectl create` does: an object that exists is an error."""
        self.kubectl("create", "-f", "-", stdin=as_list(objects), namespace=namespace)

    def apply(self, *objects: dict[str, Any], namespace: str = "") -> None:
        self.kubectl("apply", "--server-side", "-f", "-", stdin=as_list(objects), namespace=namespace)

    def apply_crd(self) -> None:
        """The committed CRD; returns when the API server serves it."""
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRD_FILE))
        # Not `kubectl wait`: it fails at a CRD so young that its status has no conditions yet.
        eventually(self._crd_is_established, what="the CRD is established")

    def _crd_is_established(self) -> bool:
        conditions = self.get("-f", str(CRD_FILE)).get("status", {}).get("conditions") or []
        return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)

    def create_namespace(self, name: str) -> None:
        """A namespace in which pods can be created: its default service account exists."""
        self.kubectl("create", "namespace", name)
        self.kubectl("wait", "--for=create", "--timeout=30s", "serviceaccount/default", namespace=name)

    def delete_namespace(self, name: str) -> None:
        """Asked for, not waited for."""
        self.kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")


def as_list(objects: tuple[dict[str, Any], ...]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})


def write_kubeconfig(
    path: Path,
    *,
    server: str,
    authority: Path,
    client: KeyPair | None = None,
    token: str = "",
    namespace: str = "default",
) -> Path:
    """A kubeconfig for a user who has a client certificate or a token."""
    user: dict[str, Any] = {"token": token} if token else {}
    if client:
        user = {"client-certificate": str(client.certificate), "client-key": str(client.key)}
    context = {"cluster": "itrain", "user": "itrain", "namespace": namespace}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "itrain", "cluster": {"server": server, "certificate-authority": str(authority)}}],
        "users": [{"name": "itrain", "user": user}],
        "contexts": [{"name": "itrain", "context": context}],
        "current-context": "itrain",
    }
    path.write_text(json.dumps(document, indent=2))
    path.chmod(0o600)
    return path


def eventually(check: Callable[[], Any], *, timeout_s: float = 30.0, every_s: float = 0.2, what: str = "") -> Any:
    """The first true value that `check` returns; AssertionError with its last value when none comes in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = check()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what or check}; last: {found!r}")
        time.sleep(every_s)
