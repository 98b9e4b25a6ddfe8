"""The operator's own client for what stands beside it in a test: without its rate limit, metrics and lease."""

from __future__ import annotations

import time
from pathlib import Path

from itrain_operator.kube import KubeCluster, load_configuration


async def open_cluster(kubeconfig: Path, *, may_write: bool = True) -> KubeCluster:
    return KubeCluster(
        await load_configuration(str(kubeconfig)),
        qps=1000.0,
        burst=1000,
        timeout_s=30.0,
        clock=time.monotonic,
        on_request=lambda verb, code: None,
        may_write=lambda: may_write,
    )
