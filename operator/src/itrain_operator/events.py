"""Events on a run, as `kubectl describe` shows them. The name of an event is a digest of what it says: said twice, by
this process or the one before, it is one event with a count."""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime

from itrain_contract.names import API_VERSION, KIND
from itrain_operator.actions import Emit
from itrain_operator.cache import RunRecord
from itrain_operator.kubeapi import EVENTS, AlreadyExistsError, ApiError, Cluster, Raw
from itrain_operator.ratelimit import TokenBucket

log = logging.getLogger(__name__)

COMPONENT = "itrain-operator"
MESSAGE_LIMIT = 1024
BURST, PER_SECOND = 100, 1 / 10
"""Of one run: what a healthy run says in a stage many times over, and what a flapping one may go on to say."""
REMEMBERED_RUNS = 5000


def build_event(run: RunRecord, event: Emit, *, instance: str, now: datetime) -> Raw:
    """A core/v1 Event."""
    at = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    said = f"{run.uid}\0{event.type}\0{event.reason}\0{event.message}"
    digest = hashlib.sha256(said.encode()).hexdigest()[:16]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{run.key.name}.{digest}", "namespace": run.key.namespace},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": run.key.name,
            "namespace": run.key.namespace,
            "uid": run.uid,
        },
        "type": event.type,
        "reason": event.reason.value,
        "message": event.message[:MESSAGE_LIMIT],
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": instance[:128],
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
    }


class EventPoster:
    """Posts after the status write; an event that cannot be posted is logged and let go."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        instance: str,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        on_dropped: Callable[[], None],
    ) -> None:
        self._cluster = cluster
        self._instance = instance
        self._clock = clock
        self._wall_clock = wall_clock
        self._on_dropped = on_dropped
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    async def post(self, run: RunRecord, event: Emit) -> None:
        if not self._bucket(run.uid).take(self._clock()):
            self._on_dropped()
            return
        body = build_event(run, event, instance=self._instance, now=datetime.fromtimestamp(self._wall_clock(), tz=UTC))
        try:
            await self._cluster.create(EVENTS, run.key.namespace, body)
        except AlreadyExistsError:
            await self._again(run, body)
        except ApiError as error:
            log.warning("event %s on %s was not posted: %s", event.reason, run.key, error)

    async def _again(self, run: RunRecord, body: Raw) -> None:
        name = body["metadata"]["name"]
        try:
            known = await self._cluster.get(EVENTS, run.key.namespace, name)
            patch = {"count": (known.get("count") or 1) + 1, "lastTimestamp": body["lastTimestamp"]}
            await self._cluster.merge_patch(EVENTS, run.key.namespace, name, patch)
        except ApiError as error:
            log.warning("event %s on %s was not counted: %s", body["reason"], run.key, error)

    def _bucket(self, uid: str) -> TokenBucket:
        bucket = self._buckets.get(uid)
        if bucket is None:
            bucket = self._buckets[uid] = TokenBucket(rate=PER_SECOND, burst=BURST, now=self._clock())
            while len(self._buckets) > REMEMBERED_RUNS:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(uid)
        return bucket
