"""The stages of a plan as a table and as JSON. Pure."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from itrain_contract.stages import EXPORT
from itrain_operator.estimate import Estimate


def bound_text(made: Estimate) -> str:
    if made.gpu_hours_bound is None:
        return f"no bound on GPU-hours ({made.bound_by})"
    return f"at most {made.gpu_hours_bound:.1f} GPU-hours ({made.bound_by})" if made.peak_gpus else made.bound_by


def plan_table(made: Estimate, *, explain: bool) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="bold")
    table.add_column("stage", no_wrap=True)
    for heading in ("pods", "at a time", "GPUs each"):
        table.add_column(heading, justify="right", no_wrap=True)
    if explain:
        for heading in ("quorum", "retries", "deadline"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("reads", overflow="fold")
    for stage in made.stages:
        cells = [str(stage.ref), str(stage.pods), str(stage.parallel), str(stage.gpus)]
        if explain:
            deadline = "–" if stage.deadline_s is None else f"{stage.deadline_s} s"
            reads = "every stage" if stage.ref == EXPORT else " ".join(str(ref) for ref in stage.reads) or "–"
            cells += [str(stage.quorum), str(stage.retries), deadline, reads]
        table.add_row(*cells)
    return table


def estimate_json(name: str, made: Estimate) -> dict[str, Any]:
    return {
        "name": name,
        "stages": [
            {
                "stage": stage.ref.kind.value,
                "iteration": stage.ref.iteration,
                "pods": stage.pods,
                "parallel": stage.parallel,
                "gpus": stage.gpus,
                "quorum": stage.quorum,
                "retries": stage.retries,
                "deadlineSeconds": stage.deadline_s,
                "reads": [str(ref) for ref in stage.reads],
            }
            for stage in made.stages
        ],
        "pods": made.pods,
        "peakGpus": made.peak_gpus,
        "gpuHoursBound": made.gpu_hours_bound,
        "boundBy": made.bound_by,
    }
