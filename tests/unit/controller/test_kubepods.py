"""What pods say, in the words that a kubelet and a scheduler use."""

from __future__ import annotations

from typing import Any

import pytest

from itrain_contract.stageio import TerminationSummary
from itrain_operator.kubeobserve import JobRecord, parse_job
from itrain_operator.kubepods import (
    PodFacts,
    decisive_pod,
    ended_details,
    parse_pod,
    parse_progress,
    parse_summary,
    pending_details,
)


def pod(name: str = "p", phase: str = "Pending", index: int | None = None, **status: Any) -> PodFacts:
    labels = {} if index is None else {"batch.kubernetes.io/job-completion-index": str(index)}
    return parse_pod({"metadata": {"name": name, "labels": labels}, "status": {"phase": phase, **status}})


def ended(
    code: int, *, name: str = "p", index: int | None = None, reason: str = "", minute: int = 0, **summary: Any
) -> PodFacts:
    said = TerminationSummary(exit_code=code, **summary).to_message().decode()
    terminated = {
        "exitCode": code,
        "reason": reason or ("Error" if code else "Completed"),
        "message": said,
        "startedAt": "2026-11-25T16:00:00Z",
        "finishedAt": f"2026-11-25T16:{minute:02}:00Z",
    }
    containers = [{"name": "stage", "state": {"terminated": terminated}}]
    return pod(name, "Failed" if code else "Succeeded", index, containerStatuses=containers)


def disrupted(name: str = "gone") -> PodFacts:
    conditions = [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]
    terminated = {"exitCode": 143, "reason": "Error", "finishedAt": "2026-11-25T16:00:00Z"}
    containers = [{"name": "stage", "state": {"terminated": terminated}}]
    return pod(name, "Failed", conditions=conditions, containerStatuses=containers)


def failed_job(stage: str = "train", failed_indexes: str = "", reason: str = "PodFailurePolicy") -> JobRecord:
    labels = {"itrain.dev/stage": stage, "itrain.dev/iteration": "1", "itrain.dev/attempt": "1"}
    condition = {"type": "Failed", "status": "True", "reason": reason, "message": "it failed"}
    return parse_job(
        {
            "metadata": {"name": "j", "namespace": "n", "uid": "u", "labels": labels},
            "spec": {"completions": 3},
            "status": {"failedIndexes": failed_indexes, "conditions": [condition]},
        }
    )


def complete_job(stage: str) -> JobRecord:
    labels = {"itrain.dev/stage": stage, "itrain.dev/iteration": "1", "itrain.dev/attempt": "1"}
    return parse_job(
        {
            "metadata": {"name": "j", "namespace": "n", "uid": "u", "labels": labels},
            "spec": {"completions": 3},
            "status": {"conditions": [{"type": "Complete", "status": "True"}]},
        }
    )


def test_an_image_that_cannot_be_pulled_goes_before_a_pod_that_fits_nowhere() -> None:
    unschedulable = pod(
        conditions=[
            {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
            }
        ]
    )
    waiting = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "x"'}
    pulling = pod("q", containerStatuses=[{"name": "stage", "state": {"waiting": waiting}}])
    assert pending_details([unschedulable]).message == "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    assert pending_details([unschedulable, pulling]).reason == "ImagePullBackOff"


def test_a_container_that_is_being_made_is_no_news_and_a_missing_secret_is() -> None:
    creating = pod(containerStatuses=[{"name": "stage", "state": {"waiting": {"reason": "ContainerCreating"}}}])
    assert pending_details([creating]).reason == ""
    missing = {"reason": "CreateContainerConfigError", "message": 'secret "s3" not found'}
    assert pending_details([pod(containerStatuses=[{"name": "stage", "state": {"waiting": missing}}])]).message == (
        'secret "s3" not found'
    )


def test_pods_that_nobody_may_create_are_the_quotas_word() -> None:
    details = pending_details([], 'pods "x" is forbidden: exceeded quota: team')
    assert (details.reason, details.message) == ("FailedCreate", 'pods "x" is forbidden: exceeded quota: team')


def test_the_failure_of_an_unsharded_stage_is_told_with_code_words_and_pod() -> None:
    details, decisive = ended_details(failed_job(), [ended(75, name="pod-1", message="bucket unreachable")])
    assert (details.exit_code, details.message, decisive) == (75, "exit code 75: bucket unreachable", "pod-1")
    assert details.summary is not None
    assert details.reason == "PodFailurePolicy"


def test_lack_of_memory_is_named() -> None:
    details, _ = ended_details(failed_job(), [ended(137, reason="OOMKilled")])
    assert (details.exit_code, details.reason) == (137, "OOMKilled")


def test_of_several_ranks_the_one_that_broke_decides_and_not_those_stopped_with_it() -> None:
    ranks = [ended(143, name="rank-1", index=1), ended(70, name="rank-0", index=0, minute=5), ended(143, name="rank-2")]
    found = decisive_pod(failed_job(), ranks)
    assert found is not None
    assert found.name == "rank-0"


def test_of_shards_only_those_that_were_given_up_decide() -> None:
    pods = [
        ended(75, name="retried", index=0, minute=1),
        ended(70, name="given-up", index=2, minute=9),
        ended(0, name="done", index=0, minute=3),
    ]
    details, decisive = ended_details(failed_job("rollout", "2", "FailedIndexes"), pods)
    assert decisive == "given-up"
    assert details.message == "shard 2: exit code 70"


def test_a_shard_with_a_configuration_error_decides_although_its_index_was_not_given_up() -> None:
    found = decisive_pod(failed_job("rollout", "1"), [ended(64, name="config", index=0), ended(75, index=1)])
    assert found is not None
    assert found.name == "config"


def test_a_disrupted_pod_decides_only_where_there_is_no_other() -> None:
    broken = ended(1, name="broken", minute=30)
    both = decisive_pod(failed_job(), [disrupted(), broken])
    assert both == broken
    details, _ = ended_details(failed_job(), [disrupted()])
    assert details.disrupted


def test_without_any_pod_left_there_is_nothing_to_tell() -> None:
    details, decisive = ended_details(failed_job(), [])
    assert (details.exit_code, details.message, decisive) == (None, "", "")


def test_counters_of_shards_are_summed_and_an_index_counts_once() -> None:
    pods = [
        ended(0, name="a", index=0, counters={"pairs": 3, "trees": 2}),
        ended(0, name="b", index=1, counters={"pairs": 4}, seconds=9.0),
        ended(0, name="b-again", index=1, counters={"pairs": 4}, seconds=9.0),
        ended(75, name="c", index=2, counters={"pairs": 100}),
    ]
    details, _ = ended_details(complete_job("rollout"), pods)
    assert details.summary is not None
    assert details.summary.counters == {"pairs": 7, "trees": 2}


def test_metrics_of_an_unsharded_stage_are_those_of_its_pod_that_succeeded() -> None:
    pods = [ended(143, name="evicted"), ended(0, name="done", metrics={"dev/accuracy": 0.5})]
    details, _ = ended_details(complete_job("evaluate"), pods)
    assert details.summary is not None
    assert details.summary.metrics == {"dev/accuracy": 0.5}


def test_a_termination_message_that_is_no_summary_is_ignored() -> None:
    assert parse_summary("panic: runtime error") is None
    assert parse_summary("") is None
    assert parse_summary('{"exitCode": 0, "surprise": 1}') is None


@pytest.mark.parametrize("count", ["1e308", "-1", "NaN", "Infinity", "1e999", "9007199254740994"])
def test_a_count_that_a_status_cannot_hold_makes_no_summary(count: str) -> None:
    assert parse_summary('{"exitCode": 0, "counters": {"pairs": 9007199254740992}}') is not None
    assert parse_summary(f'{{"exitCode": 0, "counters": {{"pairs": {count}}}}}') is None


def test_the_newest_progress_line_of_a_stages_log_is_found() -> None:
    log = (
        "2026-03-01T12:00:00Z INFO    itrain_pipeline.progress: 3/120 step\n"
        "2026-03-01T12:00:05Z INFO    itrain_pipeline.progress: 8/120 step, loss 0.41\n"
        "2026-03-01T12:00:06Z INFO    itrain_pipeline.learn.sft: 5/7 of something else\n"
        "cut off in the mid"
    )
    assert parse_progress(log) == (8, 120, "step, loss 0.41")
    assert parse_progress("nothing of the kind") is None
    assert parse_progress("2026-03-01T12:00:05Z INFO    itrain_pipeline.progress: 8/120 ") == (8, 120, "")
