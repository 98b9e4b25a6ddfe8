"""The local reconcile shell: tick the processes, observe, plan, act in order, one status write, then events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Protocol

from itrain_contract.names import Phase
from itrain_contract.status import ITrainRunStatus
from itrain_operator.local import LocalBackend
from itrain_operator.localstate import StoredRun
from itrain_operator.machine import Emit, plan
from itrain_operator.observed import Observed, Run

PASS_S = 1.0
"""Longest time between two looks; progress on the screen needs no more."""


class Ending(StrEnum):
    """Why the loop ended."""

    FINISHED = "finished"
    SUSPENDED = "suspended"
    INTERRUPTED = "interrupted"


class Attention(Protocol):
    """What may end a wait early or ask to stop (`localsignals.Signals`)."""

    @property
    def stops(self) -> int:
        """Requests to stop so far: one asks the processes to save and end, two kill them."""

    def wait(self, seconds: float) -> None: ...


Watcher = Callable[[ITrainRunStatus, Observed, bool], None]
"""Shown after every pass: status, what was observed, whether it is stopping."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRun:
    """Everything the loop needs of one run. `clock` gives Unix seconds."""

    stored: StoredRun
    storage: str
    backend: LocalBackend
    clock: Callable[[], float]
    attention: Attention
    watch: Watcher

    def planner_run(self, status: ITrainRunStatus) -> Run:
        return Run(
            name=self.stored.name,
            namespace="",
            uid=self.stored.uid,
            generation=self.stored.generation,
            spec=self.stored.spec,
            status=status,
            created=self.stored.created,
            storage=self.storage,
        )

    def run(self, status: ITrainRunStatus) -> tuple[Ending, ITrainRunStatus]:
        """Until the run ended, was suspended by its spec, or was asked to stop; `status` is what was stored last."""
        while True:
            if self.attention.stops:
                return self._stop(status)
            self.backend.tick()
            observed = self.backend.observe()
            status, wake = self._pass(status, observed)
            self.watch(status, observed, False)
            if self.backend.idle and not self.backend.tick():
                if status.phase.terminal:
                    return Ending.FINISHED, status
                if status.phase == Phase.SUSPENDED:
                    return Ending.SUSPENDED, status
            self.attention.wait(self._pause(wake))

    def _pass(self, status: ITrainRunStatus, observed: Observed) -> tuple[ITrainRunStatus, timedelta | None]:
        made = plan(self.planner_run(status), observed, datetime.fromtimestamp(self.clock(), tz=UTC))
        events = [action for action in made.actions if isinstance(action, Emit)]
        for action in made.actions:
            if not isinstance(action, Emit):
                self.backend.apply(action, self.stored.spec)
        if made.status != status:
            self.backend.save_status(made.status)
        for event in events:
            self.backend.emit(event)
        return made.status, timedelta(0) if made.actions else made.wake_after

    def _pause(self, wake: timedelta | None) -> float:
        """Seconds to wait: what is due first, `PASS_S` at most."""
        due = [PASS_S]
        if wake is not None:
            due.append(wake.total_seconds())
        backend_due = self.backend.wake_at()
        if backend_due is not None:
            due.append(backend_due - self.clock())
        return max(0.0, min(due))

    def _stop(self, status: ITrainRunStatus) -> tuple[Ending, ITrainRunStatus]:
        """Let the processes save; the planner rests, so that what they do now is nobody's failure."""
        asked = 0
        while not self.backend.idle:
            if self.attention.stops != asked:
                asked = self.attention.stops
                self.backend.stop(kill=asked > 1)
            self.backend.tick()
            self.watch(status, self.backend.observe(), True)
            if not self.backend.idle:
                self.attention.wait(self._pause(None))
        return Ending.INTERRUPTED, status
