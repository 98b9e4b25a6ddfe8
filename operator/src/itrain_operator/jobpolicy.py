"""How a stage's Job counts, retries and fails. Pure.

Sharded stages are retried index by index, by Kubernetes. Everything else fails at its first failure, and the planner
decides about the next attempt.

A pod that its node or the scheduler ended (condition DisruptionTarget) is replaced in a sharded Job: the other shards
go on, nothing is counted. In an unsharded Job, and in a training on several nodes, whose ranks cannot go on without
it, it fails the Job. The alternative, to ignore it and let the Job make a new pod, would hide the preemption: no new
attempt, no count, no back-off, and a run that is preempted for ever without a word. As a rule of the policy, rather
than by the back-off limit, since the Job's condition then names the rule: an evicted pod is deleted, and its own
conditions with it. For the same reason every exit code fails the Job by a rule: the condition's message carries it.

But 143 has no rule. A queue that takes its quota back suspends the Job, whose pods then save and end with 143, and the
Job controller holds its rules against every pod that is there, counted or not: a rule would fail a suspended Job
whenever a pod takes a second to vanish. Without one such a pod is not counted. Where no one suspended the Job, 143
fails it by the back-off limit of 0, and `kubeobserve` knows what that means: no other exit code comes there.
"""

from __future__ import annotations

from typing import Any

from itrain_contract.names import ExitCode
from itrain_operator.actions import EnsureJob
from itrain_operator.podspec import CONTAINER

Object = dict[str, Any]
DISRUPTED: Object = {"onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}


def build_job_shape(action: EnsureJob, *, retries: int, nodes: int) -> Object:
    """The Job's spec but for its template. `retries` per index of a sharded stage, `nodes` of a training."""
    if action.shards is not None:
        return {
            "completionMode": "Indexed",
            "completions": action.shards,
            "parallelism": action.parallelism,
            "backoffLimitPerIndex": retries,
            "maxFailedIndexes": action.max_failed_indexes,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": [{"action": "Ignore", **DISRUPTED}, *_index_rules()]},
        }
    return {
        "completionMode": "Indexed" if nodes > 1 else "NonIndexed",
        "completions": nodes,
        "parallelism": nodes,
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {
            "rules": [{"action": "FailJob", **DISRUPTED}, _on_exit("FailJob", "NotIn", 0, ExitCode.INTERRUPTED)]
        },
    }


def _index_rules() -> list[Object]:
    """What no other attempt can mend: a shard's own failure (70), or one of configuration or data, which all share."""
    return [
        _on_exit("FailIndex", "In", ExitCode.PERMANENT),
        _on_exit("FailJob", "In", ExitCode.CONFIG, ExitCode.DATA),
    ]


def _on_exit(action: str, operator: str, *codes: int) -> Object:
    requirement = {"containerName": CONTAINER, "operator": operator, "values": [int(code) for code in codes]}
    return {"action": action, "onExitCodes": requirement}
