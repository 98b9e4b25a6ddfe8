"""What Kueue does with a Job and its Workload: pure rules, each with the function of Kueue v0.19.2 that it follows.

Files are named below `pkg/`: `job` is controller/jobs/job/job_controller.go, `reconciler` is
controller/jobframework/reconciler.go, `names` is controller/jobframework/workload_names.go, `core` is
controller/core/workload_controller.go.
Left out is what no test here has: readiness of pods, admission checks, topologies, elastic Jobs, cohorts, several
clusters, retention.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from itrain_contract.layout import parse_indexes
from itrain_contract.names import ANNOTATION_MIN_PARALLELISM, LABEL_QUEUE, LABEL_WORKLOAD_JOB
from itrain_operator.kubeapi import JOBS, WORKLOADS, Resource, merge_diff

Object = dict[str, Any]

FINALIZER = "kueue.x-k8s.io/resource-in-use"
STOPPING = "kueue.x-k8s.io/stopping"
MANAGED_LABELS = ("job-name", "controller-uid", "batch.kubernetes.io/job-name", "batch.kubernetes.io/controller-uid")
"""job `managedLabels`: the Job controller's own, which stay on a template that is restored."""
MAIN = "main"


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """One merge patch; a `create` has no name yet."""

    resource: Resource
    namespace: str
    name: str
    body: Object
    subresource: str = ""
    create: bool = False


def workload_name(job: Object) -> str:
    """names `GetWorkloadNameForOwnerWithGVK`: job-<name>-<5 digits of a hash>, 63 characters at most."""
    metadata = job["metadata"]
    digest = hashlib.sha1(
        f"Job\nbatch\n{metadata['name']}\n{metadata['uid']}".encode(), usedforsecurity=False
    ).hexdigest()
    prefix = f"job-{metadata['name']}"[:57]
    return f"{prefix}-{digest[:5]}"


def pods_count(job: Object) -> int:
    """job `podsCount`: the parallelism, but no more than the completions."""
    parallelism = int(job["spec"].get("parallelism", 1))
    completions = job["spec"].get("completions")
    return min(parallelism, completions) if completions is not None else parallelism


def min_pods_count(job: Object) -> int | None:
    """job `minPodsCount`."""
    text = (job["metadata"].get("annotations") or {}).get(ANNOTATION_MIN_PARALLELISM)
    return int(text) if text is not None else None


def is_suspended(job: Object) -> bool:
    """job `IsSuspended`: one that is being stopped is not yet."""
    stopping = (job["metadata"].get("annotations") or {}).get(STOPPING) == "true"
    return bool(job["spec"].get("suspend")) and not stopping


def reclaimable_pods(job: Object) -> int:
    """job `ReclaimablePods`: quota that the rest of the shards cannot fill any more."""
    spec, status = job["spec"], job.get("status", {})
    parallelism = int(spec.get("parallelism", 1))
    completions = int(spec.get("completions", parallelism))
    terminal = int(status.get("succeeded", 0))
    if spec.get("completionMode") == "Indexed":
        listed = (status.get("completedIndexes", ""), status.get("failedIndexes", ""))
        terminal = len({index for text in listed for index in parse_indexes(text) if index < completions})
    if parallelism <= 1 or terminal == 0:
        return 0
    return max(0, parallelism - max(0, completions - terminal))


def new_workload(job: Object, priority: int, priority_class: str | None) -> Object:
    """reconciler `ConstructWorkload`, `prepareWorkload`, job `PodSets`."""
    metadata = job["metadata"]
    template = copy.deepcopy(job["spec"]["template"])
    for label in MANAGED_LABELS:
        if label != "batch.kubernetes.io/job-name":
            template.get("metadata", {}).get("labels", {}).pop(label, None)
    pod_set: Object = {"name": MAIN, "count": pods_count(job), "template": template}
    least = min_pods_count(job)
    if least is not None:
        pod_set["minCount"] = least
    spec: Object = {
        "queueName": metadata["labels"][LABEL_QUEUE],
        "active": True,
        "priority": priority,
        "podSets": [pod_set],
    }
    if priority_class is not None:
        spec["priorityClassRef"] = {
            "group": "kueue.x-k8s.io",
            "kind": "WorkloadPriorityClass",
            "name": priority_class,
        }
    owner = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "apiVersion": WORKLOADS.api_version,
        "kind": "Workload",
        "metadata": {
            "name": workload_name(job),
            "namespace": metadata["namespace"],
            "labels": {LABEL_WORKLOAD_JOB: metadata["uid"]},
            "finalizers": [FINALIZER],
            "ownerReferences": [owner],
        },
        "spec": spec,
    }


class Conditions:
    """The conditions of a Workload while they are changed; `meta.SetStatusCondition` keeps the time of what stays."""

    def __init__(self, workload: Object, now: str) -> None:
        self._found = {c["type"]: dict(c) for c in (workload.get("status") or {}).get("conditions") or []}
        self._generation = workload["metadata"].get("generation", 1)
        self._now = now

    def get(self, kind: str) -> Object:
        return self._found.get(kind, {})

    def is_true(self, kind: str) -> bool:
        return self.get(kind).get("status") == "True"

    def set(self, kind: str, status: bool, reason: str, message: str) -> None:
        text, before = "True" if status else "False", self.get(kind)
        at = before["lastTransitionTime"] if before.get("status") == text else self._now
        self._found[kind] = {
            "type": kind,
            "status": text,
            "reason": reason,
            "message": message,
            "observedGeneration": self._generation,
            "lastTransitionTime": at,
        }

    def reset(self, kind: str, reason: str) -> None:
        """workload `resetActiveCondition`."""
        if self.is_true(kind):
            self.set(kind, False, reason, f"Previously: {self.get(kind)['message']}")

    def list(self) -> list[Object]:
        return list(self._found.values())


def plan_job(
    job: Object, workload: Object | None, *, now: str, flavors: dict[str, Object], make: Callable[[Object], Object]
) -> list[Write]:
    """reconciler `ReconcileGenericJob`, in its order; `make` builds the Workload of a Job that has none."""
    if workload is not None and "deletionTimestamp" in workload["metadata"]:
        return [*stop(job, workload), without_finalizer(workload)]  # 1.1
    if "deletionTimestamp" in job["metadata"]:
        return [without_finalizer(workload)] if workload is not None else []  # `finalize`
    ended = next(
        (
            c
            for c in job.get("status", {}).get("conditions") or []
            if c["type"] in ("Complete", "Failed") and c["status"] == "True"
        ),
        None,
    )
    if workload is not None and Conditions(workload, now).is_true("Finished"):
        return [without_finalizer(workload)] if FINALIZER in workload["metadata"].get("finalizers", []) else []
    if ended is not None:  # 3
        return [_finish(workload, ended, now)] if workload is not None else []
    if workload is None:  # 3, `ensureOneWorkload` and `handleJobWithNoWorkload`
        if not is_suspended(job):
            return stop(job, None)
        if job.get("status", {}).get("active"):
            return []
        body = make(job)
        namespace = job["metadata"]["namespace"]
        return [Write(resource=WORKLOADS, namespace=namespace, name="", body=body, create=True)]
    conditions = Conditions(workload, now)
    count = reclaimable_pods(job)
    known = sum(pods["count"] for pods in (workload.get("status") or {}).get("reclaimablePods") or [])
    if count != known:  # 4
        told = [{"name": MAIN, "count": count}] if count else []
        return [_status(workload, {"reclaimablePods": told})]
    if conditions.is_true("Evicted"):  # 6
        return _evicted(job, workload, conditions)
    if is_suspended(job):  # 7
        return [start(job, workload, flavors)] if conditions.is_true("Admitted") else []
    return [] if conditions.is_true("Admitted") else stop(job, workload)  # 8


def _evicted(job: Object, workload: Object, conditions: Conditions) -> list[Write]:
    """Step 6: the Job is stopped; the quota is given back with its last active pod."""
    stopping = stop(job, workload)
    if stopping or not conditions.is_true("QuotaReserved") or job.get("status", {}).get("active"):
        return stopping
    why = conditions.get("Evicted")
    conditions.set("Requeued", why["reason"] in ("Preempted", "NodeFailures"), why["reason"], why["message"])
    unset_quota(conditions, "Pending", why["message"])
    return [_status(workload, {"admission": None, "conditions": conditions.list()})]


def unset_quota(conditions: Conditions, reason: str, message: str) -> None:
    """workload `UnsetQuotaReservationWithCondition` and `SyncAdmittedCondition`."""
    conditions.set("QuotaReserved", False, reason, message)
    if conditions.is_true("Admitted"):
        conditions.set("Admitted", False, "NoReservation", "The workload has no reservation")


def start(job: Object, workload: Object, flavors: dict[str, Object]) -> Write:
    """reconciler `startJob`, `getPodSetsInfoFromStatus`; job `RunWithPodSetsInfo`; podset `Merge`."""
    admission = workload["status"]["admission"]
    assignment = admission["podSetAssignments"][0]
    template = copy.deepcopy(job["spec"]["template"])
    metadata, spec = template.setdefault("metadata", {}), template["spec"]
    metadata["labels"] = {
        **(metadata.get("labels") or {}),
        "kueue.x-k8s.io/podset": assignment["name"],
        "kueue.x-k8s.io/local-queue-name": workload["spec"]["queueName"],
        "kueue.x-k8s.io/cluster-queue-name": admission["clusterQueue"],
    }
    metadata["annotations"] = {
        **(metadata.get("annotations") or {}),
        "kueue.x-k8s.io/workload": workload["metadata"]["name"],
    }
    for name in dict.fromkeys(assignment["flavors"].values()):
        flavor = flavors[name].get("spec") or {}
        if flavor.get("nodeLabels"):
            spec["nodeSelector"] = {**(spec.get("nodeSelector") or {}), **flavor["nodeLabels"]}
        if flavor.get("tolerations"):
            spec["tolerations"] = [*(spec.get("tolerations") or []), *flavor["tolerations"]]
    new = {**job["spec"], "suspend": False, "template": template}
    if min_pods_count(job) is not None:
        new["parallelism"] = assignment["count"]
    return _job(job, {"spec": merge_diff(job["spec"], new)})


def stop(job: Object, workload: Object | None) -> list[Write]:
    """job `Stop`: suspended, its start time cleared so that its template may change, its template as it was given."""
    writes = []
    if not is_suspended(job):
        annotations = {"annotations": {STOPPING: "true"}}
        writes.append(_job(job, {"metadata": annotations, "spec": {"suspend": True}}))
    if job.get("status", {}).get("startTime") is not None:
        writes.append(_job(job, {"status": {"startTime": None}}, subresource="status"))
    if not writes:
        return []
    restored: Object = {"metadata": {"annotations": {STOPPING: None}}}
    if workload is not None:
        restored["spec"] = _restored(job, workload)
    return [*writes, _job(job, restored)]


def _restored(job: Object, workload: Object) -> Object:
    """job `RestorePodSetsInfo`, podset `RestorePodSpec`."""
    given, spec = workload["spec"]["podSets"][0], job["spec"]
    new = copy.deepcopy(spec)
    if min_pods_count(job) is not None:
        new["parallelism"] = given["count"]
    metadata, before = new["template"].setdefault("metadata", {}), given["template"].get("metadata", {})
    kept = {label: value for label, value in (metadata.get("labels") or {}).items() if label in MANAGED_LABELS}
    metadata["labels"] = {**(before.get("labels") or {}), **kept}
    metadata["annotations"] = before.get("annotations")
    for field in ("nodeSelector", "tolerations", "schedulingGates"):
        new["template"]["spec"][field] = given["template"]["spec"].get(field)
    changed = merge_diff(spec, new)
    changed.pop("suspend", None)
    return changed


def plan_active(workload: Object, *, now: str) -> list[Write]:
    """core `Reconcile`: a deactivated Workload is evicted, one that is active again goes back into its queue."""
    conditions = Conditions(workload, now)
    if conditions.is_true("Finished") or "deletionTimestamp" in workload["metadata"]:
        return []
    if workload["spec"].get("active", True):
        requeued = conditions.get("Requeued")
        if requeued.get("status") != "False" or requeued.get("reason") != "Deactivated":
            return []
        conditions.set("Requeued", True, "Reactivated", "The workload was reactivated")
        return [_status(workload, {"conditions": conditions.list()})]
    if conditions.is_true("Evicted"):
        return []
    conditions.set("Evicted", True, "Deactivated", "The workload is deactivated")
    return [_status(workload, {"conditions": conditions.list()})]


def preempt(target: Object, by: Object, *, now: str) -> Write:
    """scheduler/preemption `IssuePreemptions`, `applyPreemption`."""
    uid, job_uid = by["metadata"]["uid"], by["metadata"]["labels"][LABEL_WORKLOAD_JOB]
    message = (
        f"Preempted to accommodate a workload (UID: {uid}, JobUID: {job_uid}) due to prioritization in the ClusterQueue"
    )
    conditions = Conditions(target, now)
    conditions.set("Evicted", True, "Preempted", message)
    conditions.set("Preempted", True, "InClusterQueue", message)
    return _status(target, {"conditions": conditions.list()})


def admit(workload: Object, queue: str, flavor: str, resources: dict[str, str], count: int, *, now: str) -> Write:
    """scheduler `admit`, workload `SetQuotaReservation`."""
    assignment = {
        "name": MAIN,
        "flavors": dict.fromkeys(resources, flavor),
        "resourceUsage": resources,
        "count": count,
    }
    conditions = Conditions(workload, now)
    conditions.set("QuotaReserved", True, "QuotaReserved", f"Quota reserved in ClusterQueue {queue}")
    conditions.reset("Evicted", "QuotaReserved")
    conditions.reset("Preempted", "QuotaReserved")
    conditions.set("Admitted", True, "Admitted", "The workload is admitted")
    admission = {"clusterQueue": queue, "podSetAssignments": [assignment]}
    return _status(workload, {"admission": admission, "conditions": conditions.list()})


def refuse(workload: Object, message: str, *, now: str) -> list[Write]:
    """scheduler `requeueAndUpdate`: why it waits, said once."""
    conditions = Conditions(workload, now)
    before = conditions.get("QuotaReserved")
    if before.get("status") == "False" and before.get("message") == message:
        return []
    conditions.set("QuotaReserved", False, "Pending", message)
    return [_status(workload, {"conditions": conditions.list()})]


def _finish(workload: Object | None, ended: Object, now: str) -> Write:
    """workload/finish `Finish`."""
    assert workload is not None
    conditions = Conditions(workload, now)
    reason = "Failed" if ended["type"] == "Failed" else "Succeeded"
    conditions.set("Finished", True, reason, ended.get("message", ""))
    return _status(workload, {"conditions": conditions.list()})


def without_finalizer(workload: Object) -> Write:
    """workload `RemoveFinalizer`."""
    metadata = workload["metadata"]
    left = [name for name in metadata.get("finalizers", []) if name != FINALIZER]
    body = {"metadata": {"finalizers": left}}
    return Write(resource=WORKLOADS, namespace=metadata["namespace"], name=metadata["name"], body=body)


def _status(workload: Object, status: Object) -> Write:
    metadata = workload["metadata"]
    body = {"metadata": {"resourceVersion": metadata["resourceVersion"]}, "status": status}
    return Write(
        resource=WORKLOADS,
        namespace=metadata["namespace"],
        name=metadata["name"],
        body=body,
        subresource="status",
    )


def _job(job: Object, body: Object, *, subresource: str = "") -> Write:
    metadata = job["metadata"]
    return Write(
        resource=JOBS, namespace=metadata["namespace"], name=metadata["name"], body=body, subresource=subresource
    )
