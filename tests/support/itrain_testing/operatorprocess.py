"""The operator as a process of its own, `python -m itrain_operator`, against a cluster of the test."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from itrain_testing.daemons import Daemon, free_port


class OperatorProcess(Daemon):
    """`settings` are merged over short intervals that suit a test; `ready` waits for filled caches."""

    def __init__(
        self,
        folder: Path,
        *,
        kubeconfig: Path,
        namespace: str,
        name: str = "operator",
        env: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        """It watches `namespace`, and its Lease lies there."""
        folder.mkdir(parents=True, exist_ok=True)
        self.health_port, self.metrics_port = free_port(), free_port()
        document = {
            "healthPort": self.health_port,
            "metricsPort": self.metrics_port,
            "images": {"current": {"pipeline": "example.org/itrain:1"}},
            "namespaces": [namespace],
            "lease": {"durationSeconds": 4, "renewSeconds": 3, "retrySeconds": 1, "namespace": namespace},
            "progress": {"intervalSeconds": 2},
            **settings,
        }
        config = folder / f"{name}.yaml"
        config.write_text(json.dumps(document))
        command = [sys.executable, "-m", "itrain_operator", f"--config={config}", f"--kubeconfig={kubeconfig}"]
        super().__init__(name, command, log=folder / f"{name}.log", ready=lambda: self.answers("/readyz"), env=env)

    def answers(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health_port}{path}", timeout=2) as response:
                return bool(response.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def metrics(self) -> dict[str, float]:
        """Sample by name and labels, as they are written."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as response:
            lines = response.read().decode().splitlines()
        samples = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    @property
    def leads(self) -> bool:
        return self.running and self.metrics().get("itrain_is_leader") == 1.0

    def said(self) -> str:
        return self.log.read_text(errors="replace")
