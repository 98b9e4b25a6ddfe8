"""When children finished and when their successors were made, by the clock of whoever watches. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from itrain_contract.names import LABEL_RUN, LABEL_STAGE
from itrain_contract.stages import StageKind
from itrain_operator.kubeapi import Raw


@dataclass(slots=True)
class Transition:
    """A child that finished and is not its run's last, and when the watch showed the next one."""

    run: str
    finished: float
    created: float | None = None

    @property
    def seconds(self) -> float:
        """Infinite while there is no successor."""
        return math.inf if self.created is None else self.created - self.finished


class Ledger:
    """Fed with every version of every Job in the watch's order. A run's name is never used twice."""

    def __init__(self) -> None:
        self.transitions: list[Transition] = []
        self.created: dict[str, float] = {}
        """By the Job's name."""
        self.finished: dict[str, float] = {}
        self._open: dict[str, Transition] = {}

    def see(self, job: Raw, at: float) -> None:
        metadata = job["metadata"]
        name, run = metadata["name"], metadata["labels"][LABEL_RUN]
        if name not in self.created:
            self.created[name] = at
            waiting = self._open.pop(run, None)
            if waiting is not None:
                waiting.created = at
        if name not in self.finished and is_complete(job):
            self.finished[name] = at
            if metadata["labels"][LABEL_STAGE] != StageKind.EXPORT:
                self._open[run] = Transition(run=run, finished=at)
                self.transitions.append(self._open[run])

    def between(self, since: float, until: float) -> list[Transition]:
        """Transitions whose child finished in this time."""
        return [t for t in self.transitions if since <= t.finished < until]

    def waiting(self) -> list[Transition]:
        """Those without a successor yet."""
        return list(self._open.values())

    def made_between(self, since: float, until: float) -> int:
        """Children that were made in this time, a run's first ones too."""
        return sum(1 for at in self.created.values() if since <= at < until)


def is_complete(job: Raw) -> bool:
    conditions = job.get("status", {}).get("conditions") or []
    return any(c["type"] == "Complete" and c["status"] == "True" for c in conditions)


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile; NaN of nothing."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
