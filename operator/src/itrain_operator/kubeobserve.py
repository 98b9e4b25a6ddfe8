"""Raw Kubernetes objects to what the planner sees: a Job to a `JobRecord`, record and details to a `JobView`. Pure.

A record keeps of a Job what decisions need, little enough for ten thousand of them. Details come from pods, which are
looked at only for the one Job under way and only when it waits or has ended (`kubepods`, `kubedetails`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from sys import intern

from itrain_contract.layout import parse_indexes
from itrain_contract.names import (
    ANNOTATION_DIGEST,
    ANNOTATION_TEMPLATE_HASH,
    GROUP,
    KIND,
    LABEL_ATTEMPT,
    LABEL_ITERATION,
    LABEL_QUEUE,
    LABEL_RUN,
    LABEL_RUN_UID,
    LABEL_STAGE,
    ExitCode,
)
from itrain_contract.stageio import TerminationSummary
from itrain_contract.stages import StageKind, StageRef
from itrain_operator.kubeapi import Raw
from itrain_operator.observed import JobState, JobView, QueueView

SHARDED = (StageKind.SCORE, StageKind.ROLLOUT)
DISRUPTION = "DisruptionTarget"
COMPLETE, FAILED = "Complete", "Failed"
BACKOFF_LIMIT = "BackoffLimitExceeded"
EXIT_CODE = re.compile(r"\bexit code (\d+)\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """One Job as the API server has it."""

    namespace: str
    name: str
    uid: str
    resource_version: str
    run: str
    """Label; the key under which the record is found."""
    run_uid: str
    """Label."""
    owner_uid: str
    """Of the ITrainRun that owns it; empty when none does."""
    ref: StageRef | None
    """From the labels; None when they are not ours or have been changed."""
    attempt: int
    digest: str | None
    template_hash: str
    completions: int
    queue: str
    """Label: the queue that it waits in."""
    suspended: bool
    deleting: bool
    active: int
    ready: int
    succeeded: int
    failed: int
    finishing: bool
    """Pods have ended that the Job controller has not counted yet."""
    completed: str
    failed_indexes: str
    created: datetime | None
    started: datetime | None
    finished: datetime | None
    outcome: str
    """`Complete`, `Failed`, or empty while neither is certain."""
    reason: str
    """Of the outcome, `BackoffLimitExceeded`, `PodFailurePolicy`."""
    message: str

    @property
    def shards(self) -> int | None:
        return self.completions if self.ref is not None and self.ref.kind in SHARDED else None

    def state(self) -> JobState:
        if self.deleting:
            return JobState.DELETING
        if self.outcome:
            return JobState.COMPLETE if self.outcome == COMPLETE else JobState.FAILED
        if self.suspended:
            return JobState.WAITING
        return JobState.ACTIVE if self.ready or self.succeeded or self.failed or self.finishing else JobState.PENDING


@dataclass(frozen=True, slots=True, kw_only=True)
class JobDetails:
    """What the pods of a Job add to it."""

    state: JobState | None = None
    """Where the Job's own status says something else for a moment; None: as the status says."""
    exit_code: int | None = None
    disrupted: bool = False
    reason: str = ""
    message: str = ""
    summary: TerminationSummary | None = None
    log_tail: str = ""
    started: datetime | None = None
    finished: datetime | None = None
    progress_done: int = 0
    progress_total: int = 0
    progress_text: str = ""


NO_DETAILS = JobDetails()


def parse_job(raw: Raw) -> JobRecord:
    metadata, spec, status = raw["metadata"], raw.get("spec", {}), raw.get("status", {})
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    owner: Raw = next((o for o in metadata.get("ownerReferences") or [] if is_run_owner(o)), {})
    outcome: Raw = next((c for c in status.get("conditions") or [] if _is_outcome(c)), {})
    ref, attempt = _identity(labels)
    return JobRecord(
        namespace=intern(metadata.get("namespace", "")),
        name=metadata["name"],
        uid=metadata["uid"],
        resource_version=metadata.get("resourceVersion", ""),
        run=intern(labels.get(LABEL_RUN, "")),
        run_uid=intern(labels.get(LABEL_RUN_UID, "")),
        owner_uid=intern(owner.get("uid", "")),
        ref=ref,
        attempt=attempt,
        digest=annotations.get(ANNOTATION_DIGEST),
        template_hash=intern(annotations.get(ANNOTATION_TEMPLATE_HASH, "")),
        completions=spec.get("completions") or 1,
        queue=intern(labels.get(LABEL_QUEUE, "")),
        suspended=bool(spec.get("suspend")),
        deleting="deletionTimestamp" in metadata,
        active=status.get("active") or 0,
        ready=status.get("ready") or 0,
        succeeded=status.get("succeeded") or 0,
        failed=status.get("failed") or 0,
        finishing=any((status.get("uncountedTerminatedPods") or {}).values()),
        completed=status.get("completedIndexes", ""),
        failed_indexes=status.get("failedIndexes", ""),
        created=parse_time(metadata.get("creationTimestamp")),
        started=parse_time(status.get("startTime")),
        finished=parse_time(status.get("completionTime") or outcome.get("lastTransitionTime")),
        outcome=intern(outcome.get("type", "")),
        reason=intern(outcome.get("reason", "")),
        message=outcome.get("message", ""),
    )


def job_view(
    record: JobRecord,
    *,
    run_uid: str,
    ref: StageRef,
    details: JobDetails = NO_DETAILS,
    queue: QueueView | None = None,
) -> JobView:
    """The planner's view of a Job under one of the run's names; `ref` stands in where its labels say nothing.

    Ours is what the run with this UID owns and labelled; what belongs to another UID of the same name is a former
    run's; everything else is foreign.
    """
    former = _former(record, run_uid)
    ours = record.owner_uid == run_uid and record.ref is not None and not former
    state, shards = details.state or record.state(), record.shards
    failed = state == JobState.FAILED
    return JobView(
        name=record.name,
        uid=record.uid,
        ref=record.ref or ref,
        attempt=record.attempt,
        state=state,
        digest=record.digest,
        shards=shards,
        active=record.ready if state in (JobState.ACTIVE, JobState.DELETING) else 0,
        succeeded=record.succeeded,
        failed=record.failed,
        completed=indexes(record.completed) if shards is not None else frozenset(),
        failed_indexes=indexes(record.failed_indexes) if shards is not None else frozenset(),
        started=details.started or record.started,
        finished=details.finished or record.finished if state.ended else None,
        exit_code=details.exit_code
        if details.exit_code is not None or not failed
        else _told_exit_code(record, details),
        disrupted=failed and (details.disrupted or DISRUPTION in record.message),
        reason=details.reason or (record.reason if failed else ""),
        message=details.message or (record.message if failed else ""),
        summary=details.summary,
        log_tail=details.log_tail,
        foreign=not ours and not former,
        former_run=former,
        progress_done=details.progress_done,
        progress_total=details.progress_total,
        progress_text=details.progress_text,
        queue_name=record.queue,
        queue=queue,
    )


def is_run_owner(owner: Raw) -> bool:
    """Whether an owner reference names an ITrainRun."""
    return owner.get("kind") == KIND and str(owner.get("apiVersion", "")).startswith(f"{GROUP}/")


def _former(record: JobRecord, run_uid: str) -> bool:
    """Owned or labelled by an ITrainRun of the same name and another UID."""
    if record.owner_uid:
        return record.owner_uid != run_uid
    return bool(record.run_uid) and record.run_uid != run_uid


def _identity(labels: Raw) -> tuple[StageRef | None, int]:
    """Stage and attempt by the labels."""
    try:
        kind = StageKind(labels.get(LABEL_STAGE, ""))
        iteration, attempt = int(labels.get(LABEL_ITERATION, "")), int(labels.get(LABEL_ATTEMPT, ""))
    except ValueError:
        return None, 0
    return StageRef(kind=kind, iteration=iteration), attempt


def _is_outcome(condition: Raw) -> bool:
    return condition.get("type") in (COMPLETE, FAILED) and condition.get("status") == "True"


def _told_exit_code(record: JobRecord, details: JobDetails) -> int | None:
    """The exit code in a Job's own message (PodFailurePolicy names it): the pod may be gone.

    Where no pod said why, the back-off limit alone fails only a Job whose pod was asked to stop: `jobpolicy` has a rule
    for every other exit code.
    """
    if record.reason == BACKOFF_LIMIT and not details.reason:
        return ExitCode.INTERRUPTED
    found = EXIT_CODE.search(record.message)
    return int(found.group(1)) if found else None


def indexes(text: str) -> frozenset[int]:
    """Completion indexes as the Job controller writes them; it may write what cannot be parsed, never what is true."""
    try:
        return parse_indexes(text)
    except ValueError:
        return frozenset()


def parse_time(text: str | None) -> datetime | None:
    """An RFC 3339 time of the API server."""
    return datetime.fromisoformat(text) if text else None
