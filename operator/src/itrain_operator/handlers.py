"""kopf as watcher: every event of a run or a Job goes into the cache and its run into the queue. Nothing else.

Only `on.event` handlers: they put no annotation and no finalizer on a run, so nothing drifts and nothing gets stuck.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import kopf

from itrain_contract.names import GROUP, LABEL_RUN, PLURAL, VERSION
from itrain_operator.app import App
from itrain_operator.kube import credentials
from itrain_operator.kubeapi import PAGE_SIZE
from itrain_operator.settings import OperatorSettings

BACKOFFS_S = (1.0, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0)


IDLE_S = 0.1
"""How long kopf keeps a task for an object that is silent: its handlers only enqueue."""


class CappedBackoffs:
    """Delays between tries of a request, for ever: an API server that is away for an hour comes back."""

    def __iter__(self) -> Iterator[float]:
        yield from BACKOFFS_S
        while True:
            yield BACKOFFS_S[-1]


class NothingKept(kopf.DiffBaseStorage):
    """No snapshot of what was handled: kopf copies every object several times to make one, and nobody asks for it."""

    def build(self, *, body: Any, extra_fields: Any = None) -> Any:
        return {}

    def fetch(self, *, body: Any) -> None:
        return None

    def store(self, *, body: Any, patch: Any, essence: Any) -> None:
        raise RuntimeError("event handlers keep nothing on an object")


def configure(settings: kopf.OperatorSettings, ours: OperatorSettings) -> None:
    """kopf's settings (API document, "Reconcile"); its inactivity_timeout stays: it notices a watch that died."""
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.scanning.disabled = bool(ours.namespaces)
    settings.networking.request_timeout = ours.request_timeout_seconds
    settings.networking.error_backoffs = CappedBackoffs()
    settings.watching.chunk_size = PAGE_SIZE
    settings.queueing.idle_timeout = IDLE_S
    settings.persistence.diffbase_storage = NothingKept()
    settings.watching.label_selectors["batch", "v1", "jobs"] = LABEL_RUN


@kopf.on.startup()
async def start(memo: Any, settings: kopf.OperatorSettings, **_: Any) -> None:
    app: App = memo.app
    configure(settings, app.settings)
    await app.start()


@kopf.on.cleanup()
async def stop(memo: Any, **_: Any) -> None:
    await memo.app.stop()


@kopf.on.login()
async def login(memo: Any, **_: Any) -> kopf.ConnectionInfo:
    """The same credentials as the operator's own client."""
    known = await credentials(memo.app.configuration)
    return kopf.ConnectionInfo(
        server=known.server,
        ca_path=known.ca_path,
        insecure=known.insecure,
        certificate_path=known.certificate_path,
        private_key_path=known.key_path,
        scheme=known.scheme,
        token=known.token,
    )


@kopf.on.event(GROUP, VERSION, PLURAL)
async def see_run(memo: Any, event: Any, **_: Any) -> None:
    memo.app.see_run(event["object"], deleted=event["type"] == "DELETED")


@kopf.on.event("batch", "v1", "jobs", labels={LABEL_RUN: kopf.PRESENT})
async def see_job(memo: Any, event: Any, **_: Any) -> None:
    memo.app.see_job(event["object"], deleted=event["type"] == "DELETED")
