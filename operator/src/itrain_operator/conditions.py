"""Conditions of a run, after kstatus: `Reconciling` and `Stalled` are abnormal-true, there is no `Ready`. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from itrain_contract.names import ConditionType, Phase, Reason
from itrain_contract.spec import ITrainRunSpec
from itrain_contract.status import Condition, ITrainRunStatus
from itrain_operator.progress import clip

NEEDS_A_PERSON = (
    Reason.IMAGE_PULL_FAILED,
    Reason.CREATE_FORBIDDEN,
    Reason.CREATE_REJECTED,
    Reason.INVALID_SPEC,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A condition as it should be now."""

    type: ConditionType
    status: bool
    reason: Reason
    message: str = ""


def wanted_conditions(
    spec: ITrainRunSpec | None, status: ITrainRunStatus, *, tearing_down: bool = False
) -> tuple[Wanted, ...]:
    """All conditions that a status implies; those not named are absent.

    Reconciling: until the first child was seen, and while children are torn down. Stalled: failed, or a person must
    act. Suspended: by the user alone. QuotaReserved: of runs in a queue, while a child exists.
    """
    phase, reason, message = status.phase, status.reason, status.message
    stalled = phase == Phase.FAILED or reason in NEEDS_A_PERSON
    starting = phase == Phase.PENDING and status.start_time is None and status.current is None
    running = status.current is not None and status.current.active > 0
    wanted = [
        Wanted(type=ConditionType.RECONCILING, status=tearing_down or (starting and not stalled), reason=reason),
        Wanted(type=ConditionType.STALLED, status=stalled, reason=reason, message=message if stalled else ""),
        Wanted(type=ConditionType.RUNNING, status=running and not phase.terminal, reason=reason),
        Wanted(type=ConditionType.SUSPENDED, status=phase == Phase.SUSPENDED, reason=reason),
    ]
    if spec is not None and spec.queue is not None and status.current is not None and not phase.terminal:
        # A pause gives the quota back, with the last pod.
        waiting = reason == Reason.WAITING_FOR_QUOTA or (phase == Phase.SUSPENDED and not running)
        text = message if waiting else ""
        wanted.append(Wanted(type=ConditionType.QUOTA_RESERVED, status=not waiting, reason=reason, message=text))
    if phase.terminal:
        succeeded = phase == Phase.SUCCEEDED
        wanted.append(Wanted(type=ConditionType.SUCCEEDED, status=succeeded, reason=reason, message=message))
        wanted.append(Wanted(type=ConditionType.FAILED, status=not succeeded, reason=reason, message=message))
    return tuple(wanted)


def merge_conditions(
    old: list[Condition], wanted: tuple[Wanted, ...], *, generation: int, now: datetime
) -> list[Condition]:
    """The wanted conditions; the transition time moves only where the condition's status changed."""
    before = {condition.type: condition for condition in old}
    merged = []
    for want in wanted:
        text: Literal["True", "False"] = "True" if want.status else "False"
        former = before.get(want.type)
        kept = former is not None and former.status == text
        merged.append(
            Condition(
                type=want.type,
                status=text,
                # A condition that is and stays false has nothing new to say: its reason stays with its time.
                reason=former.reason if former is not None and kept and not want.status else want.reason,
                message=clip(want.message),
                observed_generation=generation,
                last_transition_time=former.last_transition_time if former is not None and kept else now,
            )
        )
    return merged
