"""A run that has ended: its phase never changes again; what is left to do is to clean up. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta

from itrain_operator.actions import Action, DeleteJob, Plan
from itrain_operator.conditions import merge_conditions, wanted_conditions
from itrain_operator.observed import JobState, Observed, Run


def plan_terminal(run: Run, observed: Observed, now: datetime) -> Plan:
    """Delete what still runs; after `ttlSecondsAfterFinished` delete every child. The run itself stays.

    Only `observedGeneration` and the conditions of the status may still move: an edit is seen, and has no effect.
    """
    ours = [view for view in observed.ours() if view.state != JobState.DELETING]
    ttl, ended = run.spec.ttl_seconds_after_finished, run.status.completion_time
    expires = ended + timedelta(seconds=ttl) if ttl is not None and ended is not None else None
    expired = expires is not None and now >= expires
    due = {(view.name, view.uid) for view in ours if expired or view.state.live}
    actions: list[Action] = [DeleteJob(name=name, uid=uid) for name, uid in sorted(due)]
    generation = max(run.status.observed_generation, run.generation)
    wanted = wanted_conditions(run.spec, run.status, tearing_down=any(v.state.live for v in observed.ours()))
    conditions = merge_conditions(run.status.conditions, wanted, generation=generation, now=now)
    status = run.status.model_copy(update={"observed_generation": generation, "conditions": conditions})
    wake = expires - now if expires is not None and not expired and observed.ours() else None
    return Plan(actions=tuple(actions), status=status if status != run.status else run.status, wake_after=wake)
