"""containerd with runc and bridged pods, in a node's folder: its configuration, its images."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from itrain_testing.cluster import binaries, hostpython
from itrain_testing.cluster.debian import unpacked
from itrain_testing.cluster.images import Layer, write_archive
from itrain_testing.cluster.machine import BRIDGE, POD_RANGE
from itrain_testing.daemons import Daemon
from itrain_testing.gotools import MODULES, ToolMissingError

PAUSE_IMAGE = "localhost/pause:3.10"
NFT_LIBRARIES = ("libnftables1", "libnftnl11", "libmnl0", "libjansson4", "libxtables12", "libedit2", "libgmp10")


class Containerd:
    """Runtime handlers: `host-python`, the default (see `hostpython`), and `plain`, the image and nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "containerd.sock"
        self.programs = folder / "bin"
        link_programs(self.programs)
        self._snapshotter = "native" if _is_overlay(folder) else "overlayfs"
        self._write_network()
        config = folder / "containerd.toml"
        config.write_text(self._config(self._write_base_spec()))
        self.daemon = Daemon(
            "containerd",
            [str(self.programs / "containerd"), f"--config={config}"],
            log=folder / "containerd.log",
            ready=lambda: self._ctr("version").returncode == 0,
            env={"PATH": f"{self.programs}:/usr/sbin:/usr/bin:/sbin:/bin"},
        )

    def start(self) -> None:
        self.daemon.start()
        pause = Layer(files={"pause": _pause(self.folder)})
        self._import("pause", PAUSE_IMAGE, pause, {"Entrypoint": ["/pause"], "User": "65535:65535"})
        self._import("pipeline", hostpython.IMAGE, hostpython.layer(), hostpython.config())

    def load_image(self, archive: Path) -> None:
        """An image archive (`buildah push … oci-archive:`, `docker save`) becomes usable by pods."""
        done = self._ctr("images", "import", f"--snapshotter={self._snapshotter}", str(archive))
        if done.returncode:
            raise RuntimeError(f"{archive} cannot be imported: {done.stderr.strip()[-500:]}")

    def images(self) -> list[str]:
        return self._ctr("images", "list", "-q").stdout.split()

    def _import(self, file: str, name: str, layer: Layer, config: dict[str, Any]) -> None:
        self.load_image(write_archive(self.folder / f"{file}.tar", name=name, layer=layer, config=config))

    def _ctr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.programs / "ctr"), f"--address={self.socket}", "--namespace=k8s.io", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def _write_base_spec(self) -> Path:
        """containerd's own default specification with the host's Python added."""
        said = subprocess.run([str(self.programs / "ctr"), "oci", "spec"], capture_output=True, text=True, check=True)
        spec = json.loads(said.stdout)
        spec["mounts"] += hostpython.mounts()
        path = self.folder / "host-python.json"
        path.write_text(json.dumps(spec))
        return path

    def _write_network(self) -> None:
        network = {
            "cniVersion": "0.4.0",
            "name": "itrain",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": BRIDGE,
                    "isGateway": True,
                    "hairpinMode": True,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": str(self.folder / "ipam"),
                        "ranges": [[{"subnet": POD_RANGE}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                }
            ],
        }
        folder = self.folder / "cni"
        folder.mkdir()
        (folder / "10-itrain.conflist").write_text(json.dumps(network))

    def _config(self, base_spec: Path) -> str:
        cri = 'plugins."io.containerd.grpc.v1.cri"'
        runc = json.dumps(str(self.programs / "runc"))
        runtimes = ""
        for handler, base in (("host-python", f'base_runtime_spec = "{base_spec}"'), ("plain", "")):
            runtimes += f"""
[{cri}.containerd.runtimes.{handler}]
runtime_type = "io.containerd.runc.v2"
{base}
[{cri}.containerd.runtimes.{handler}.options]
BinaryName = {runc}
SystemdCgroup = false
"""
        return f"""version = 2
root = "{self.folder / "root"}"
state = "{self.folder / "state"}"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
address = "{self.socket}"
[{cri}]
sandbox_image = "{PAUSE_IMAGE}"
restrict_oom_score_adj = true
disable_apparmor = true
disable_hugetlb_controller = true
tolerate_missing_hugetlb_controller = true
[{cri}.cni]
bin_dir = "{self.programs}"
conf_dir = "{self.folder / "cni"}"
[{cri}.containerd]
snapshotter = "{self._snapshotter}"
default_runtime_name = "host-python"
{runtimes}"""


def link_programs(folder: Path) -> None:
    """One folder with everything a node runs besides Kubernetes: from PATH, or from Debian's packages."""
    folder.mkdir()
    containerd, runc = unpacked("containerd"), unpacked("runc")
    plugins = unpacked("containernetworking-plugins") / "usr/lib/cni"
    for program in ("containerd", "containerd-shim-runc-v2", "ctr"):
        (folder / program).symlink_to(binaries.installed(program) or containerd / "usr/bin" / program)
    (folder / "runc").symlink_to(binaries.installed("runc") or runc / "usr/sbin/runc")
    for plugin in ("bridge", "host-local", "loopback"):
        (folder / plugin).symlink_to(plugins / plugin)
    nft = binaries.installed("nft")
    if nft:
        (folder / "nft").symlink_to(nft)
        return
    libraries = ":".join(str(next((unpacked(p) / "usr/lib").glob("*-linux-gnu"))) for p in NFT_LIBRARIES)
    script = f'#!/bin/sh\nLD_LIBRARY_PATH={libraries} exec {unpacked("nftables")}/usr/sbin/nft "$@"\n'
    (folder / "nft").write_text(script)
    (folder / "nft").chmod(0o755)


def _pause(folder: Path) -> bytes:
    """The pause program, compiled from the Kubernetes module's source."""
    command = ["go", "mod", "download", "-json", "k8s.io/kubernetes"]
    module = subprocess.run(command, cwd=MODULES / "kubernetes", capture_output=True, text=True, check=True)
    source = Path(json.loads(module.stdout)["Dir"]) / "build/pause/linux/pause.c"
    binary = folder / "pause"
    command = ["gcc", "-Os", "-static", "-DVERSION=3.10", "-o", str(binary), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolMissingError(f"the pause program cannot be compiled: {done.stderr.strip()[-300:]}")
    return binary.read_bytes()


def _is_overlay(folder: Path) -> bool:
    """Overlay folders cannot lie in an overlay, as inside a container."""
    said = subprocess.run(
        ["stat", "--file-system", "--format=%T", str(folder)], capture_output=True, text=True, check=True
    )
    return said.stdout.strip() == "overlayfs"


def missing() -> str:
    absent = [program for program in ("gcc", "ip", "umount", "go") if shutil.which(program) is None]
    return f"{', '.join(absent)}: not installed, and a node needs it" if absent else ""
