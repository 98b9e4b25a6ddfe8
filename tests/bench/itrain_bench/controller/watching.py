"""Every object of a kind and every change of it, as an API server tells, with the moment at which it was read."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing

from itrain_operator.kube import KubeCluster
from itrain_operator.kubeapi import Raw, Resource, pages, watch

SILENCE_S = 300.0
"""Bookmarks come every minute: a watch that says nothing for so long is dead, and the measurement with it."""

See = Callable[[Raw, bool, float], None]
"""An object, whether it was deleted, and when."""


async def follow(
    cluster: KubeCluster, resource: Resource, namespace: str, see: See, clock: Callable[[], float], *, labels: str = ""
) -> None:
    """Until it is cancelled. Raises ApiError when the watch breaks: a gap would falsify the times."""
    version = ""
    async for page in pages(cluster, resource, namespace, labels=labels):
        version = page.resource_version
        for raw in page.items:
            see(raw, False, clock())
    while True:
        changes = watch(cluster, resource, namespace, version=version, silence_s=SILENCE_S, labelSelector=labels)
        async with aclosing(changes) as events:
            async for kind, raw in events:
                at, version = clock(), raw["metadata"]["resourceVersion"]
                if kind != "BOOKMARK":
                    see(raw, kind == "DELETED", at)
