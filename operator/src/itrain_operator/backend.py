"""Where a plan is carried out: a cluster, or child processes on this machine."""

from __future__ import annotations

from typing import Protocol

from itrain_contract.spec import ITrainRunSpec
from itrain_contract.status import ITrainRunStatus
from itrain_operator.machine import Action, Emit
from itrain_operator.observed import Observed


class Backend(Protocol):
    """One run's world. `observe` sees, `apply` changes, `save_status` remembers; the planner alone decides.

    Every call may be lost with the process that makes it: the next pass observes again and asks for what is missing.
    """

    def observe(self) -> Observed:
        """Every job of the run that exists, as it is now."""

    def apply(self, action: Action, spec: ITrainRunSpec) -> None:
        """Carry out one action of a plan; doing it twice is the same as once."""

    def save_status(self, status: ITrainRunStatus) -> None:
        """Once a pass, after its actions, only when something changed."""

    def emit(self, event: Emit) -> None:
        """Tell the user; after the status was saved."""
