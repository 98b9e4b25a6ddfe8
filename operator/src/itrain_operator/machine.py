"""The planner: what to do next for a run. Pure and total; no I/O, no clock, no logging."""

from __future__ import annotations

from datetime import datetime

from itrain_operator.actions import Action, DeleteJob, Emit, EnsureJob, Plan
from itrain_operator.observed import Observed, Run

__all__ = ["Action", "DeleteJob", "Emit", "EnsureJob", "Plan", "plan"]


def plan(run: Run, observed: Observed, now: datetime) -> Plan:
    """The next pass over a run."""
    raise NotImplementedError
