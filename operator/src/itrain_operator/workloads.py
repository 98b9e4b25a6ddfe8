"""What a queue says of a Job: the Kueue Workload that stands for it, read while the Job waits or its run is paused.

Nothing is watched: a wait lasts minutes to days, and what it is for is asked for now and then, as for pods.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from itrain_contract.names import LABEL_WORKLOAD_JOB
from itrain_operator.actions import SetActive
from itrain_operator.kubeapi import WORKLOADS, ApiError, Cluster, NotFoundError, Raw, RefusedError
from itrain_operator.kubeobserve import JobRecord
from itrain_operator.observed import JobState, QueueView

log = logging.getLogger(__name__)

AGAIN_S = 20.0
"""A Job that waits is asked after this often: what it waits for shows within a minute."""
SOON_S = 3.0
"""A Job that was just given to the queue has its Workload after a moment."""
PER_SECOND = 10.0
"""Of all Jobs that wait together."""
NOT_QUEUED = QueueView(
    reason="NoWorkload",
    message="there is no Workload for it: is Kueue installed, does it manage this namespace, "
    "and does the priority class exist?",
)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is known of one Job."""

    view: QueueView | None
    again: float
    """Clock time before which there is no need to ask again."""


class WorkloadReader:
    """Workloads by the Job's UID. `clock` gives seconds that never run backwards."""

    def __init__(self, cluster: Cluster, *, enabled: bool, clock: Callable[[], float]) -> None:
        self._cluster = cluster
        self._enabled = enabled
        self._clock = clock
        self._seen: dict[str, _Seen] = {}

    async def view(self, record: JobRecord, *, needed: bool) -> QueueView | None:
        """None where nobody may ask, or there is nothing to tell. Raises ApiError when what is `needed` cannot be read.

        A right that is missing, or a server that knows no Workloads, is no error: then there are none.
        """
        if not self._enabled or not record.queue or not record.state().live:
            self._seen.pop(record.uid, None)
            return None
        seen = self._seen.get(record.uid)
        waits = record.state() == JobState.WAITING
        if needed or (waits and (seen is None or self._clock() >= seen.again)):
            seen = await self._ask(record, seen, needed=needed)
        elif not waits:
            self._seen.pop(record.uid, None)
            return None
        return seen.view if seen is not None else None

    def wake_s(self, record: JobRecord) -> float | None:
        """Seconds until it is worth asking again although no event came; None when only an event matters.

        What is not active stays as it is until somebody sets it free, and then its Job tells.
        """
        seen = self._seen.get(record.uid)
        if seen is None or record.state() != JobState.WAITING or (seen.view is not None and not seen.view.active):
            return None
        return max(0.0, seen.again - self._clock())

    async def set_active(self, namespace: str, action: SetActive) -> None:
        """Raises ApiError; a Workload that is gone is none: its Job goes too, or gets another one."""
        patch: Raw = {"spec": {"active": action.active}}
        try:
            changed = await self._cluster.merge_patch(WORKLOADS, namespace, action.workload, patch)
        except NotFoundError:
            self._seen.pop(action.job_uid, None)
            return
        self._seen[action.job_uid] = _Seen(queue_view(changed), self._clock() + SOON_S)

    def forget(self, keep: frozenset[str], among: frozenset[str]) -> None:
        """Drop what is known of the Jobs `among`, those to `keep` excepted."""
        for uid in among - keep:
            self._seen.pop(uid, None)

    async def _ask(self, record: JobRecord, seen: _Seen | None, *, needed: bool) -> _Seen:
        again_s = max(AGAIN_S, len(self._seen) / PER_SECOND)
        view: QueueView | None
        try:
            page = await self._cluster.list(
                WORKLOADS, record.namespace, labels=f"{LABEL_WORKLOAD_JOB}={record.uid}", limit=10
            )
            found = [raw for raw in page.items if "deletionTimestamp" not in raw["metadata"]]
            view = queue_view(max(found, key=_age)) if found else NOT_QUEUED
            if not found and seen is None and not needed:
                view, again_s = None, SOON_S
        except (NotFoundError, RefusedError) as error:
            log.warning("what %s/%s waits for cannot be read: %s", record.namespace, record.name, error)
            view = None
        except ApiError as error:
            if needed:
                raise
            log.warning("what %s/%s waits for cannot be read: %s", record.namespace, record.name, error)
            view = seen.view if seen is not None else None
        known = self._seen[record.uid] = _Seen(view, self._clock() + again_s)
        return known


def queue_view(raw: Raw) -> QueueView:
    """A Workload (kueue.x-k8s.io/v1beta2) in one reason and one message.

    An eviction is the reason until quota is reserved again (`workload.SetQuotaReservation` resets it); the message is
    the last attempt's at admission, which says what is missing.
    """
    status = raw.get("status") or {}
    conditions: dict[str, Raw] = {condition["type"]: condition for condition in status.get("conditions") or []}
    quota, evicted, admitted = (conditions.get(name, {}) for name in ("QuotaReserved", "Evicted", "Admitted"))
    reason = message = ""
    if quota.get("status") == "True" and admitted.get("status") == "False":
        reason, message = admitted.get("reason", ""), admitted.get("message", "")
    if quota.get("status") == "False":
        reason, message = quota.get("reason", ""), quota.get("message", "")
    if evicted.get("status") == "True":
        reason, message = evicted.get("reason", ""), message or evicted.get("message", "")
    active = (raw.get("spec") or {}).get("active") is not False
    if not active and not reason.startswith("Deactivated"):
        reason, message = "Deactivated", f"spec.active of Workload {raw['metadata']['name']} is false"
    return QueueView(workload=raw["metadata"]["name"], active=active, reason=reason, message=message)


def _age(raw: Raw) -> str:
    return str(raw["metadata"].get("creationTimestamp", ""))
