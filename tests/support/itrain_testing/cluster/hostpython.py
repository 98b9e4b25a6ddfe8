"""This environment's Python inside pods, before there is an image that holds it.

The image `localhost/itrain/pipeline:dev` is only a skeleton. The runtime handler `host-python` binds the interpreter,
the virtual environment, the packages' sources and the system's libraries read-only at their own paths. Folders above
them, such as a home folder that only root may enter, are made by runc in the container's root, open to everybody.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from itrain_testing.cluster.access import ROOT
from itrain_testing.cluster.images import Layer

IMAGE = "localhost/itrain/pipeline:dev"
SYSTEM = ("/usr", "/etc/ssl", "/etc/alternatives", "/etc/ld.so.cache")
MERGED = ("bin", "sbin", "lib", "lib32", "lib64")
"""Links into /usr on a system with merged folders."""
USER = 10001


def mounts() -> list[dict[str, Any]]:
    """Read-only bind mounts of an OCI runtime specification."""
    merged = [f"/{name}" for name in MERGED if Path(f"/{name}").is_dir() and not Path(f"/{name}").is_symlink()]
    system = [path for path in (*SYSTEM, *merged) if Path(path).exists()]
    python = [str(Path(path).resolve()) for path in (sys.base_prefix, sys.prefix)]
    sources = [str(ROOT / package) for package in ("crds", "operator", "pipeline")]
    wanted = [*system, *(path for path in [*python, *sources] if not path.startswith("/usr/"))]
    return [
        {"destination": path, "type": "bind", "source": path, "options": ["rbind", "ro", "nosuid", "nodev"]}
        for path in dict.fromkeys(wanted)
    ]


def missing() -> str:
    """Why no container can see this machine's Python, in one line; empty where it can."""
    hidden = [path for path in (sys.base_prefix, sys.prefix, str(ROOT)) if Path(path).resolve().is_relative_to("/tmp")]
    return (
        f"{hidden[0]} lies below /tmp, where every pod has a folder of its own: use a checkout elsewhere"
        if hidden
        else ""
    )


def layer() -> Layer:
    links = {name: str(Path(f"/{name}").readlink()) for name in MERGED if Path(f"/{name}").is_symlink()}
    accounts = f"root:x:0:0:root:/:/bin/sh\nitrain:x:{USER}:{USER}:itrain:/tmp:/bin/sh\n"
    return Layer(
        files={"etc/passwd": accounts.encode(), "etc/group": f"root:x:0:\nitrain:x:{USER}:\n".encode()},
        links=links,
        folders=("etc", "tmp", "proc", "sys", "dev", "run", "usr", "var", "home"),
    )


def config() -> dict[str, Any]:
    path = f"{Path(sys.prefix).resolve() / 'bin'}:/usr/local/bin:/usr/bin:/bin"
    return {
        "User": f"{USER}:{USER}",
        "WorkingDir": "/tmp",
        "Env": [f"PATH={path}", "HOME=/tmp", "HF_HUB_OFFLINE=1", "PYTHONDONTWRITEBYTECODE=1"],
        "Cmd": ["python", "-m", "itrain_pipeline"],
    }
