"""Where a planted credential could show: objects, logs, process arguments, files."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from itrain_testing.cluster.access import Access
from itrain_testing.cluster.machine import in_pod

KINDS = (
    "itrainruns,jobs,pods,configmaps,events,services,endpointslices,leases,serviceaccounts,deployments,replicasets,"
    "persistentvolumeclaims,roles,rolebindings"
)
"""Everything but Secrets."""
EVERY_S = 0.25
CHUNK = 1 << 20
PIPELINE = b"itrain_pipeline"


def spellings(credential: str) -> tuple[bytes, ...]:
    """As it is, and as a Secret's data has it, wherever it may begin in a longer base64 text."""
    found = [credential.encode()]
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + credential.encode())
        found.append(encoded[4 if before else 0 : -4])
    return tuple(found)


def tells(text: bytes, credentials: Iterable[str]) -> bool:
    return any(spelt in text for credential in credentials for spelt in spellings(credential))


def told_by_objects(access: Access, namespace: str, credentials: Iterable[str]) -> list[str]:
    """Lines of the namespace's objects that hold a credential."""
    said = access.kubectl("get", KINDS, "-o", "yaml", "--show-managed-fields", namespace=namespace)
    return [line.strip()[:200] for line in said.splitlines() if tells(line.encode(), credentials)]


def told_by_logs(access: Access, namespace: str, credentials: Iterable[str]) -> list[str]:
    """Names of pods whose logs hold a credential."""
    names = [pod["metadata"]["name"] for pod in access.get("pods", namespace=namespace)["items"]]
    logs = {name: access.try_kubectl("logs", name, "--all-containers", namespace=namespace).stdout for name in names}
    assert any(logs.values()), f"no pod of {namespace} has a log"
    return [name for name, log in logs.items() if tells(log.encode(), credentials)]


def told_by_files(folder: Path, credentials: Iterable[str]) -> list[str]:
    """Files below a folder that hold a credential."""
    wanted = [spelt for credential in credentials for spelt in spellings(credential)]
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    assert files, f"{folder} is empty"
    return [str(path.relative_to(folder)) for path in files if _holds(path, wanted)]


def _holds(path: Path, wanted: list[bytes]) -> bool:
    before = b""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            if any(spelt in before + chunk for spelt in wanted):
                return True
            before = chunk[-256:]
    return False


class CommandLines(threading.Thread):
    """Every command line that processes of this machine, those in pods included, had while it watched."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: set[bytes] = set()
        self.in_pods: set[bytes] = set()
        self._stop_asked = threading.Event()

    def run(self) -> None:
        while not self._stop_asked.wait(EVERY_S):
            for folder in Path("/proc").glob("[0-9]*"):
                try:
                    line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").strip()
                    self.seen.add(line)
                    if PIPELINE in line and line not in self.in_pods and in_pod(folder):
                        self.in_pods.add(line)
                except OSError:
                    continue  # it ended meanwhile

    def stages(self) -> set[str]:
        """Stages whose processes were seen in pods."""
        words = [line.split() for line in self.in_pods]
        return {w[w.index(PIPELINE) + 1].decode() for w in words if PIPELINE in w[:-1]}

    def stop(self) -> None:
        self._stop_asked.set()
        self.join()


@contextmanager
def watched_command_lines() -> Iterator[CommandLines]:
    watch = CommandLines()
    watch.start()
    try:
        yield watch
    finally:
        watch.stop()
