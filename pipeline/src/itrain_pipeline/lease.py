"""One writer per piece of work: a lease object that names its owner.

A later attempt, or a later process of the same attempt, takes the lease over; the process that lost it (a pod that
its node still runs although the cluster gave it up) finds out before its next durable write and ends. The lease is
written once when it is taken and only read afterwards: a heartbeat that rewrote it could steal it back.

A store has no compare-and-swap, so two processes may both believe in the lease between a check and the write after it.
Results stay sound: `result.json` names its outputs by sha256 and is the last write of each of them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass

from itrain_pipeline.errors import RetryableError
from itrain_pipeline.ports import Store

log = logging.getLogger(__name__)

CHECK_INTERVAL_S = 5.0
"""Durable writes closer together than this share one look at the lease."""


class LeaseLostError(RetryableError):
    """Another process works on the same input; this one must not write any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRecord:
    owner: str
    attempt: int
    acquired: float


class Lease:
    """The lease at one URI. `owner` is unique to the process; `clock` gives Unix seconds."""

    def __init__(self, store: Store, uri: str, *, owner: str, attempt: int, clock: Callable[[], float]) -> None:
        self._store = store
        self._uri = uri
        self._mine = LeaseRecord(owner=owner, attempt=attempt, acquired=clock())
        self._clock = clock
        self._checked_at = float("-inf")

    def acquire(self) -> None:
        """Take the lease; raises `LeaseLostError` when a later attempt holds it."""
        held = self._read()
        if held is not None and held.owner != self._mine.owner:
            if held.attempt > self._mine.attempt:
                raise self._lost(held)
            log.info("taking over from %s (attempt %d)", held.owner, held.attempt)
        self._write()

    def check(self, *, force: bool = False) -> None:
        """Raises `LeaseLostError` when another process took the lease; reads it at most every few seconds."""
        now = self._clock()
        if not force and now - self._checked_at < CHECK_INTERVAL_S:
            return
        held = self._read()
        if held is None or (held.owner != self._mine.owner and held.attempt < self._mine.attempt):
            self._write()  # purged, or taken by an earlier attempt that started late: ours stands above it
        elif held.owner != self._mine.owner:
            raise self._lost(held)
        self._checked_at = now

    def _lost(self, held: LeaseRecord) -> LeaseLostError:
        return LeaseLostError(
            f"{held.owner} (attempt {held.attempt}) took over this work; {self._mine.owner} (attempt "
            f"{self._mine.attempt}) stops before writing"
        )

    def _read(self) -> LeaseRecord | None:
        data = self._store.get_bytes(self._uri)
        return None if data is None else LeaseRecord(**json.loads(data))

    def _write(self) -> None:
        self._store.put_bytes(json.dumps(asdict(self._mine)).encode(), self._uri)


class FollowedLease(Lease):
    """The lease as another node of the same attempt sees it: node 0's to take, and lost to later attempts only."""

    def acquire(self) -> None:
        self.check(force=True)

    def check(self, *, force: bool = False) -> None:
        now = self._clock()
        if not force and now - self._checked_at < CHECK_INTERVAL_S:
            return
        held = self._read()
        if held is not None and held.attempt > self._mine.attempt:
            raise self._lost(held)
        self._checked_at = now
