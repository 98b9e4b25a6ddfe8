"""What a node changes on the machine, and how it is undone: an address, a bridge, nftables, mounts, processes, cgroups.

One node at a time: a lock says whose. Everything is found again from the node's folder, so the node after one that was
killed cleans up behind it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from itrain_testing.gotools import ToolMissingError

ADDRESS = "198.18.0.1"
POD_RANGE = "198.18.1.0/24"
BRIDGE = "itrain0"
LOCK = Path("/run/itrain-test-node.lock")
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
CGROUPS = Path("/sys/fs/cgroup")
LOCK_TIMEOUT_S = 300.0


@contextmanager
def node_folder() -> Iterator[Path]:
    """This machine's one node: a new folder with a short path, the node address on the loopback device.

    Raises ToolMissingError when another node stays there. Whatever a killed predecessor left is removed first.
    """
    with _lock(LOCK_TIMEOUT_S) as lock:
        if (CGROUPS / "kubepods").is_dir() or any(CGROUPS.glob("*/kubepods")):
            raise ToolMissingError("a kubelet runs on this machine already: use its cluster (ITRAIN_TEST_KUBECONFIG)")
        folder = Path(tempfile.mkdtemp(prefix="itrain-node-"))
        folder.chmod(0o711)
        _remember(lock, str(folder))
        (folder / "machine.json").write_text(json.dumps({"forwarding": FORWARDING.read_text().strip()}))
        subprocess.run(["ip", "address", "replace", f"{ADDRESS}/32", "dev", "lo"], check=True)
        try:
            yield folder
        finally:
            clean_up(folder)
            _remember(lock, "")


def in_pod(process: Path) -> bool:
    """Whether the process of this folder of /proc has a pod's control group. Raises OSError when it has ended."""
    return "kubepods" in (process / "cgroup").read_text()


def clean_up_after_a_killed_node() -> None:
    """What a node left whose processes were killed; a node that lives is let be."""
    if os.geteuid() == 0:
        with contextlib.suppress(ToolMissingError), _lock(0):
            pass


@contextmanager
def _lock(timeout_s: float) -> Iterator[int]:
    """Held by the one who runs a node; the file names its folder, and a folder that is still there is cleaned up."""
    with LOCK.open("a+") as lock:
        _wait_for(lock.fileno(), timeout_s)
        lock.seek(0)
        if left := lock.read().strip():
            clean_up(Path(left))
            _remember(lock.fileno(), "")
        yield lock.fileno()


def _wait_for(lock: int, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ToolMissingError(
                    f"another test node runs on this machine ({LOCK} is held): "
                    "end it (make cluster-down) or use it (ITRAIN_TEST_KUBECONFIG)"
                ) from None
            time.sleep(0.5)
        else:
            return


def _remember(lock: int, folder: str) -> None:
    os.ftruncate(lock, 0)
    os.write(lock, folder.encode())


def clean_up(folder: Path) -> None:
    """Undo everything that a node in `folder` made; nothing that is not there is missed."""
    namespaces = _end_containers(folder)
    _unmount([*namespaces, *_mounts_below(folder)])
    for namespace in namespaces:
        Path(namespace).unlink(missing_ok=True)
    for command in (
        ["ip", "link", "delete", BRIDGE],
        ["ip", "address", "delete", f"{ADDRESS}/32", "dev", "lo"],
        [str(folder / "bin/nft"), "delete", "table", "ip", "kube-proxy"],
        [str(folder / "bin/nft"), "delete", "table", "ip6", "kube-proxy"],
    ):
        with contextlib.suppress(FileNotFoundError):
            subprocess.run(command, capture_output=True, check=False)
    _remove_cgroups()
    before = folder / "machine.json"
    if before.exists():
        FORWARDING.write_text(json.loads(before.read_text())["forwarding"])
    shutil.rmtree(folder, ignore_errors=True)


def _end_containers(folder: Path) -> list[str]:
    """Kill every container and shim of the containerd in `folder`; the network namespaces that they had."""
    namespaces = set()
    for bundle in (folder / "state/io.containerd.runtime.v2.task").glob("*/*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
            os.kill(int((bundle / "init.pid").read_text()), signal.SIGKILL)
        with contextlib.suppress(FileNotFoundError, ValueError):
            spec = json.loads((bundle / "config.json").read_text())
            namespaces |= {n["path"] for n in spec["linux"]["namespaces"] if n["type"] == "network" and n.get("path")}
    socket = str(folder / "containerd.sock").encode()
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            words = command.read_bytes().split(b"\0")
            if b"containerd-shim" in words[0] and any(word.startswith(socket) for word in words):
                os.kill(int(command.parent.name), signal.SIGKILL)
    return sorted(path for path in namespaces if not path.startswith("/proc/"))


def _mounts_below(folder: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4].encode().decode("unicode_escape") for line in lines]
    return [point for point in points if point.startswith(f"{folder}/")]


def _unmount(points: list[str]) -> None:
    """Lazily: a killed container's last process may still hold its mount."""
    for point in reversed(points):
        subprocess.run(["umount", "--lazy", point], capture_output=True, check=False)


def _remove_cgroups() -> None:
    """kubelet's tree. A cgroup can be removed once its last process is gone, a moment after the kill."""
    tops = [path for path in (CGROUPS / "kubepods", *CGROUPS.glob("*/kubepods")) if path.is_dir()]
    deadline = time.monotonic() + 5
    while any(top.is_dir() for top in tops) and time.monotonic() < deadline:
        for top in tops:
            for folder, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()
        time.sleep(0.1)
