"""Leadership by a Lease: one replica acts, the others stand by with filled caches.

The decisions are pure. A candidate measures by its own clock how long a Lease has not changed, so clocks of different
machines are never compared. A leader stops at `renew_s` after it sent its last successful renewal; nobody else starts
before `duration_s` after that renewal was stored.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum

from itrain_operator.kubeapi import LEASES, ApiError, Cluster, ConflictError, NotFoundError, Raw

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTimes:
    """Seconds: retry < renew < duration."""

    duration_s: float
    renew_s: float
    retry_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A Lease as it was read, and since when (own clock) it has looked like that."""

    holder: str
    renewed: str
    duration_s: float
    since: float


class Step(Enum):
    """What to do about the Lease now."""

    CREATE = "create"
    TAKE = "take"
    RENEW = "renew"
    WAIT = "wait"


def see(lease: Raw, before: Seen | None, now: float) -> Seen:
    """A Lease just read; what has not changed keeps its time."""
    spec = lease.get("spec") or {}
    holder, renewed = spec.get("holderIdentity") or "", spec.get("renewTime") or ""
    same = before is not None and (before.holder, before.renewed) == (holder, renewed)
    return Seen(
        holder=holder,
        renewed=renewed,
        duration_s=float(spec.get("leaseDurationSeconds") or 0),
        since=before.since if before is not None and same else now,
    )


def decide(seen: Seen | None, identity: str, now: float) -> Step:
    """`seen` is None when there is no Lease."""
    if seen is None:
        return Step.CREATE
    if seen.holder == identity:
        return Step.RENEW
    if not seen.holder or now >= seen.since + seen.duration_s:
        return Step.TAKE
    return Step.WAIT


def patience_s(seen: Seen | None, retry_s: float, now: float) -> float:
    """Until a standby tries again: the usual pause, or the moment at which the Lease runs out if that comes first."""
    left = seen.since + seen.duration_s - now if seen is not None else 0.0
    return min(retry_s, left) if left > 0 else retry_s


def lease_spec(lease: Raw | None, identity: str, times: LeaseTimes, now: datetime) -> Raw:
    """The Lease's spec once `identity` holds it."""
    old = (lease or {}).get("spec") or {}
    stamp = now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    mine = old.get("holderIdentity") == identity
    return {
        "holderIdentity": identity,
        "leaseDurationSeconds": round(times.duration_s),
        "acquireTime": old.get("acquireTime") or stamp if mine else stamp,
        "renewTime": stamp,
        "leaseTransitions": (old.get("leaseTransitions") or 0) + (0 if mine else 1),
    }


class Leadership:
    """The candidate. `clock` gives seconds that never run backwards and that go on while a machine sleeps."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        namespace: str,
        name: str,
        identity: str,
        times: LeaseTimes,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._times = times
        self._clock = clock
        self._wall_clock = wall_clock
        self._seen: Seen | None = None
        self._until = float("-inf")

    @property
    def leading(self) -> bool:
        """Whether it may act at this very moment."""
        return self._clock() < self._until

    async def run(self, act: Callable[[], Awaitable[None]]) -> None:
        """Stand by, lead, and stand by again when leadership was lost; `act` runs while leading, then is cancelled."""
        while True:
            while not await self._try():
                await asyncio.sleep(patience_s(self._seen, self._times.retry_s, self._clock()))
            log.info("%s leads", self._identity)
            await self._lead(act)
            log.warning("%s leads no more", self._identity)

    async def _lead(self, act: Callable[[], Awaitable[None]]) -> None:
        acting = asyncio.ensure_future(act())
        renewing = asyncio.ensure_future(self._renew())
        try:
            await asyncio.wait((acting, renewing), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (acting, renewing):
                task.cancel()
            await asyncio.gather(acting, renewing, return_exceptions=True)
        if not acting.cancelled() and (error := acting.exception()) is not None:
            raise error

    async def _renew(self) -> None:
        """Renew until that fails for longer than may be."""
        while self.leading:
            await asyncio.sleep(min(self._times.retry_s, max(0.0, self._until - self._clock())))
            try:
                async with asyncio.timeout(max(0.0, self._until - self._clock())):
                    if not await self._try() and self._seen is not None and self._seen.holder != self._identity:
                        self._until = float("-inf")
            except TimeoutError:
                continue

    async def _try(self) -> bool:
        """One round: read the Lease and take, renew or leave it. True when it is ours afterwards."""
        asked = self._clock()
        try:
            lease: Raw | None = await self._cluster.get(LEASES, self._namespace, self._name)
        except NotFoundError:
            lease = None
        except ApiError as error:
            log.warning("lease %s/%s cannot be read: %s", self._namespace, self._name, error)
            return False
        self._seen = None if lease is None else see(lease, self._seen, asked)
        step = decide(self._seen, self._identity, asked)
        if step == Step.WAIT:
            return False
        spec = lease_spec(lease, self._identity, self._times, datetime.fromtimestamp(self._wall_clock(), tz=UTC))
        try:
            stored = await self._store(lease, spec)
        except ApiError as error:
            log.info("lease %s/%s was not written: %s", self._namespace, self._name, error)
            return False
        self._seen = see(stored, self._seen, asked)
        self._until = asked + self._times.renew_s
        return True

    async def _store(self, lease: Raw | None, spec: Raw) -> Raw:
        if lease is not None:
            return await self._cluster.replace(LEASES, self._namespace, self._name, {**lease, "spec": spec})
        manifest = {
            "apiVersion": LEASES.api_version,
            "kind": "Lease",
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": spec,
        }
        return await self._cluster.create(LEASES, self._namespace, manifest)

    async def release(self) -> None:
        """Give the Lease up, for a standby to take it at its next look; nothing to do for a standby."""
        if not self.leading:
            return
        self._until = float("-inf")
        try:
            lease = await self._cluster.get(LEASES, self._namespace, self._name)
            if (lease.get("spec") or {}).get("holderIdentity") == self._identity:
                spec = {**lease["spec"], "holderIdentity": ""}
                await self._cluster.replace(LEASES, self._namespace, self._name, {**lease, "spec": spec})
        except (ApiError, ConflictError) as error:
            log.warning("lease %s/%s was not released and will expire: %s", self._namespace, self._name, error)
