"""Edits of a run: the Python twin of the CRD's transition rules."""

from __future__ import annotations

from itrain_contract.loading import SpecProblem
from itrain_contract.names import Phase
from itrain_contract.spec import ITrainRunSpec

IMMUTABLE_FIELDS = ("model", "data", "storage", "seed", "adapter")


def changes_refused(old: ITrainRunSpec, new: ITrainRunSpec, phase: Phase) -> list[SpecProblem]:
    """What the API server would refuse of an edit; empty when the edit is allowed."""
    problems = [
        SpecProblem(
            field=f"spec.{name}",
            got="a change",
            allowed="the value that the run was created with",
            remedy="create a new run (resumeFrom continues this one's adapter)",
        )
        for name in IMMUTABLE_FIELDS
        if getattr(old, name) != getattr(new, name)
    ]
    was, now = old.iterations.max, new.iterations.max
    if now < was:
        problems.append(
            SpecProblem(
                field="spec.iterations.max",
                got=str(now),
                allowed=f"at least {was}",
                remedy="use iterations.stopWhen or suspend to end early",
            )
        )
    if now > was and phase.terminal:
        problems.append(
            SpecProblem(
                field="spec.iterations.max",
                got=str(now),
                allowed=f"{was}: the run has ended ({phase.value})",
                remedy="create a new run with resumeFrom",
            )
        )
    return problems
