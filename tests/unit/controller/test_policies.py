"""Single decisions by their numbers: back-off, quorum, early stop, accounting of time."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itrain_contract.layout import parse_indexes
from itrain_contract.names import Phase, Reason
from itrain_contract.spec import IterationsSpec
from itrain_contract.stageio import TerminationSummary
from itrain_contract.stages import StageKind, stage_sequence
from itrain_contract.stagespec import PrepareStage, RolloutStage
from itrain_contract.status import STATUS_LIMIT_BYTES, Best, CurrentJob, ITrainRunStatus, Progress, size_bytes
from itrain_operator.accounting import elapsed
from itrain_operator.earlystop import gained, judge
from itrain_operator.observed import JobState
from itrain_operator.policies import backoff, quorum
from itrain_operator.progress import (
    SEARCH_COUNTERS,
    add_history,
    best_text,
    clip_indexes,
    progress,
    progress_text,
    select_metrics,
)
from itrain_operator.sequence import order_key
from itrain_testing.builders import after, drive_to, make_run, make_spec, ref, step, view_of

METRIC = "dev/call_accuracy"


# --- back-off and quorum ---


def test_back_off_is_the_base_doubled_per_failure_and_bounded() -> None:
    stage = PrepareStage.model_validate({"retry": {"backoffSeconds": 7, "maxBackoffSeconds": 100}})
    assert [backoff(stage, n).total_seconds() for n in (1, 2, 3, 4, 5, 1000)] == [7, 14, 28, 56, 100, 100]


@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 100))
def test_the_quorum_of_any_job_is_possible_and_never_nothing(shards: int, needed: int, made_with: int) -> None:
    stage = RolloutStage.model_validate({"shards": shards, "minSucceeded": min(needed, shards)})
    assert 1 <= quorum(stage, made_with) <= made_with
    assert quorum(stage, shards) == stage.quorum


# --- early stop ---


@pytest.mark.parametrize(
    ("delta", "se", "factor", "counts"),
    [
        (0.010, 0.02, 0.5, True),  # exactly half a standard error
        (0.009, 0.02, 0.5, False),
        (0.001, 0.00, 0.5, True),  # no standard error: any rise counts
        (0.000, 0.00, 0.5, False),
        (0.000, 0.02, 0.0, False),  # equal is no gain even where none is asked for
        (-0.01, 0.02, 0.0, False),
    ],
)
def test_a_gain_is_above_zero_and_at_least_so_many_standard_errors(
    delta: float, se: float, factor: float, counts: bool
) -> None:
    assert gained(delta, se, factor) == counts


def judged(values: list[float | None], *, se: float = 0.02, patience: int = 1, factor: float = 0.5) -> ITrainRunStatus:
    """The status after evaluations 0, 1, 2 …; None is one without the metric."""
    iterations = IterationsSpec.model_validate({"max": 100, "stopWhen": {"minDeltaSE": factor, "patience": patience}})
    status = ITrainRunStatus()
    for i, value in enumerate(values):
        metrics = {} if value is None else {METRIC: value, f"{METRIC}_se": se}
        found = judge(status, iterations, metric=METRIC, iteration=i, metrics=metrics, adapter_uri=f"a{i}")
        status = status.model_copy(update={"best": found.best, "without_gain": found.without_gain})
        if found.stop:
            return status.model_copy(update={"last_iteration": i})
    return status


@pytest.mark.parametrize(
    ("values", "patience", "stopped", "best"),
    [
        # threshold 0.5 · 0.02 = 0.01
        ([0.50, 0.52, 0.54], 1, None, 2),
        ([0.50, 0.52, 0.525], 1, 2, 2),  # +0.005: too little, and still the best
        ([0.50, 0.49], 1, 1, 0),  # the warm-up stays the best
        ([0.50, 0.52, 0.51, 0.525], 2, 3, 3),  # two in a row: −0.01 and +0.005 against 0.52
        ([0.50, 0.52, 0.51, 0.54, 0.54], 2, None, 3),  # a gain in between starts the count again
        ([0.50, 0.50], 1, 1, 0),  # ties go to the earlier one
        ([1.00, 1.00], 1, 1, 0),
        ([None, 0.50, 0.40], 1, 2, 1),  # the first value only sets the mark
        ([0.50, None, 0.49], 1, 2, 0),  # an iteration without the metric is not counted
    ],
)
def test_the_early_stop_by_hand(values: list[float | None], patience: int, stopped: int | None, best: int) -> None:
    status = judged(values, patience=patience)
    assert (status.last_iteration, status.best and status.best.iteration) == (stopped, best)


def test_small_steps_that_never_gain_enough_one_by_one_still_raise_the_mark() -> None:
    """Each +0.004 is less than 0.01 over the best before it: three in a row stop the run, the last is the best."""
    status = judged([0.500, 0.504, 0.508, 0.512], patience=3)
    assert status.best is not None
    assert (status.last_iteration, status.best.iteration) == (3, 3)


def test_without_stop_when_the_best_is_chosen_and_nothing_stops() -> None:
    status = ITrainRunStatus()
    for i, value in enumerate([0.5, 0.7, 0.6]):
        found = judge(status, IterationsSpec(), metric=METRIC, iteration=i, metrics={METRIC: value}, adapter_uri="")
        assert not found.stop
        status = status.model_copy(update={"best": found.best})
    assert status.best is not None
    assert status.best.iteration == 1


def test_another_metric_starts_a_new_comparison() -> None:
    status = judged([0.9])
    found = judge(
        status, IterationsSpec(), metric="bfcl/accuracy", iteration=1, metrics={"bfcl/accuracy": 0.2}, adapter_uri=""
    )
    assert found.best is not None
    assert (found.best.metric, found.best.iteration) == ("bfcl/accuracy", 1)


def test_a_run_stops_early_and_exports_the_best_iteration() -> None:
    spec = make_spec(iterations={"max": 5, "stopWhen": {"metric": METRIC, "minDeltaSE": 0.5, "patience": 1}})
    values = {i: {METRIC: v, f"{METRIC}_se": 0.02} for i, v in enumerate((0.50, 0.60, 0.55))}
    run = drive_to(make_run(spec), ref("export"), values)
    assert (run.status.last_iteration, run.status.iteration_text) == (2, "2/2")
    assert run.status.best is not None
    assert run.status.best.adapter_uri == "s3://bucket/prefix/run-0f1e2d3c/i1/train/a1/adapter/"
    run, planned = step(run)
    assert planned.actions[0].stage_input.best_iteration == 1
    run, _ = step(run, view_of(run, JobState.COMPLETE))
    assert (run.status.phase, run.status.reason) == (Phase.SUCCEEDED, Reason.STOPPED_EARLY)
    assert run.status.message == "completed 2 of 5 iterations; best: iteration 1, dev/call_accuracy 0.6"


def test_gaining_too_little_in_the_last_iteration_is_no_early_stop() -> None:
    spec = make_spec(iterations={"max": 1, "stopWhen": {"patience": 1}})
    run = drive_to(make_run(spec), ref("export"), {0: {METRIC: 0.5}, 1: {METRIC: 0.4}})
    run, _ = step(run, view_of(run, JobState.COMPLETE))
    assert run.status.reason == Reason.RUN_COMPLETED


def test_a_metric_that_does_not_exist_is_said_and_the_newest_adapter_is_exported() -> None:
    run = drive_to(make_run(make_spec(iterations={"max": 2, "metric": "dev/acuracy"})), ref("evaluate"))
    run, planned = step(run, view_of(run, JobState.COMPLETE))
    said = [a.message for a in planned.actions if getattr(a, "reason", "") == "MetricMissing"]
    assert said == [
        "i0/evaluate has no metric 'dev/acuracy': best and stopWhen cannot judge it; it has none at all",
    ]
    run = drive_to(run, ref("export"))
    _, planned = step(run)
    assert planned.actions[0].stage_input.best_iteration == 2


# --- accounting ---


def seen_running(active: int = 1) -> ITrainRunStatus:
    return ITrainRunStatus(
        phase=Phase.RUNNING, last_observed_time=after(100), current=CurrentJob(job_name="j", active=active)
    )


@pytest.mark.parametrize(
    ("state", "started", "finished", "seconds"),
    [
        (JobState.ACTIVE, 0, None, 50),  # since the last pass, not since its start
        (JobState.ACTIVE, 130, None, 20),  # it started in between
        (JobState.ACTIVE, None, None, 50),
        (JobState.COMPLETE, 0, 110, 10),  # it ended in between
        (JobState.FAILED, 0, 90, 0),  # it had ended before, which the last pass did not see
        (JobState.COMPLETE, 120, 145, 25),
        (JobState.WAITING, None, None, 50),  # evicted at an unknown moment
        (JobState.COMPLETE, 0, 9999, 50),  # a node whose clock is ahead
    ],
)
def test_running_time_is_the_part_since_the_last_pass_in_which_pods_ran(
    state: JobState, started: float | None, finished: float | None, seconds: float
) -> None:
    run, _ = step(make_run())
    view = view_of(
        run,
        state,
        started=None if started is None else after(started),
        finished=None if finished is None else after(finished),
    )
    assert elapsed(seen_running(), view, 1, after(150)).running == seconds


def test_what_stopped_at_an_unknown_moment_is_charged_five_minutes_at_most() -> None:
    assert elapsed(seen_running(), None, 1, after(100_000)).running == 300


def test_a_job_that_was_not_seen_before_is_charged_from_its_start() -> None:
    run, _ = step(make_run())
    view = view_of(run, JobState.ACTIVE, started=after(40))
    assert elapsed(ITrainRunStatus(), view, 1, after(50)).running == 10
    assert elapsed(ITrainRunStatus(), view_of(run, JobState.PENDING), 1, after(50)).running == 0


@pytest.mark.parametrize(
    ("before", "active", "done", "pods"),
    [(8, 2, 0, 8), (0, 2, 0, 2), (0, 0, 8, 4), (0, 0, 0, 1)],
)
def test_gpu_time_counts_the_pods_that_ran(before: int, active: int, done: int, pods: int) -> None:
    """As seen by the last pass; else now; else of an ended Job its indexes, at most `parallelism` of 4 at a time."""
    run = drive_to(make_run(), ref("rollout", 1))
    state = JobState.COMPLETE if done else JobState.ACTIVE
    view = view_of(run, state, active=active, completed=frozenset(range(done)), started=after(120), finished=after(130))
    assert elapsed(seen_running(before), view, 4, after(150)).pods == pods


@given(
    st.lists(st.tuples(st.sampled_from(JobState), st.integers(-5000, 5000)), max_size=12),
    st.booleans(),
)
def test_no_clock_makes_time_negative(passes: list[tuple[JobState, int]], suspend: bool) -> None:
    run, _ = step(make_run(make_spec(suspend=suspend, maxGpuHours=5, activeDeadlineSeconds=900)))
    for state, at in passes:
        jobs = [view_of(run, state, started=after(-at))] if run.status.stage else []
        before = run.status
        run, planned = step(run, *jobs, at=at)
        assert run.status.running_seconds >= before.running_seconds
        assert run.status.gpu_seconds >= before.gpu_seconds
        assert planned.wake_after is None or planned.wake_after >= timedelta(0)


# --- what the status shows ---


def test_the_order_of_stages_is_the_order_of_the_sequence() -> None:
    sequence = stage_sequence(make_spec(iterations={"max": 12}))
    assert sorted(sequence, key=order_key) == list(sequence)
    assert len(set(map(order_key, sequence))) == len(sequence)


def test_progress_prefers_what_the_stage_reports_and_carries_its_rate_on() -> None:
    """30 of 120 rows in 60 s: 90 rows take 180 s."""
    run = drive_to(make_run(), ref("rollout", 1))
    reported = view_of(run, JobState.ACTIVE, progress_done=30, progress_total=120, progress_text="trees")
    shown = progress(reported, 60)
    assert (shown.percent, shown.eta_seconds, shown.text) == (25, 180, "trees")
    silent = view_of(run, JobState.ACTIVE, completed=frozenset({0, 1}))
    assert (progress(silent, 60).done, progress(silent, 60).total) == (2, 8)
    assert progress(view_of(run, JobState.ACTIVE), 0).eta_seconds is None


def test_what_was_said_of_a_job_stands_while_nothing_newer_is_known() -> None:
    """After a restart of the operator a thousand runs must not lose their progress, and get it back, by two writes."""
    run = drive_to(make_run(), ref("train", 1))
    told = view_of(run, JobState.ACTIVE, progress_done=30, progress_total=120, progress_text="loss 0.4")
    run, _ = step(run, told)
    assert run.status.progress_text == "25% loss 0.4"
    restarted, planned = step(run, view_of(run, JobState.ACTIVE))
    assert restarted.status.progress == run.status.progress
    assert planned.status == run.status


@pytest.mark.parametrize(
    ("shown", "phase", "text"),
    [
        (Progress(done=30, total=120, percent=25, text="loss 0.65"), Phase.RUNNING, "25% loss 0.65"),
        (Progress(done=2, total=8, percent=25), Phase.RUNNING, "2/8"),
        (Progress(text="reading rows"), Phase.RUNNING, "reading rows"),
        (Progress(done=3, total=3, percent=100, text="done"), Phase.SUCCEEDED, ""),
        (Progress(done=1, total=2, percent=50, text="x" * 128), Phase.RUNNING, "50% " + "x" * 36),
    ],
)
def test_a_table_cell_tells_how_far_a_run_is(shown: Progress, phase: Phase, text: str) -> None:
    assert progress_text(ITrainRunStatus(progress=shown, phase=phase)) == text


def test_a_table_cell_tells_the_best_value_and_where_it_was_reached() -> None:
    assert best_text(ITrainRunStatus()) == ""
    best = Best(iteration=2, metric="dev/call_accuracy", value=0.6236559)
    assert best_text(ITrainRunStatus(best=best)) == "0.6237 i2"


@given(st.frozensets(st.integers(0, 9999), max_size=2000))
def test_clipped_indexes_fit_and_name_only_indexes_that_are_there(indexes: frozenset[int]) -> None:
    text = clip_indexes(indexes)
    assert len(text) <= 1024
    listed = parse_indexes(text.removesuffix(",…"))
    assert listed <= indexes
    assert text.endswith("…") or listed == indexes


def test_the_deciding_metric_is_kept_when_there_are_too_many() -> None:
    metrics = {f"bfcl/category_{n}/accuracy": 0.1 for n in range(100)} | {
        METRIC: 0.5,
        f"{METRIC}_se": 0.02,
        "bfcl/n": 9,
    }
    names = [m.name for m in select_metrics(metrics, METRIC, 5)]
    assert names[:3] == [METRIC, f"{METRIC}_se", "bfcl/n"]
    assert len(names) == 5


def test_the_history_holds_each_iteration_with_its_stages_and_no_more_than_its_limit() -> None:
    values = {i: {METRIC: i / 10} for i in range(4)}
    run = drive_to(make_run(make_spec(iterations={"max": 3}, historyLimit=2)), ref("export"), values)
    assert [entry.iteration for entry in run.status.history] == [2, 3]
    assert set(run.status.history[1].stage_seconds) == {"score", "rollout", "train", "evaluate"}
    assert [(m.name, m.value) for m in run.status.history[1].metrics] == [(METRIC, 0.3)]


def test_the_history_keeps_what_the_search_counted_and_nothing_else() -> None:
    counted = {**dict.fromkeys(SEARCH_COUNTERS, 7.0), "pairs": 5.0, "failed_trees": 1.0, "held_requests": 9.0}
    run = drive_to(make_run(make_spec()), ref("rollout", 1))
    view = view_of(run, JobState.COMPLETE, summary=TerminationSummary(exit_code=0, counters=counted))
    (entry,) = add_history([], ref("rollout", 1), view, iteration=1, seconds=3.0, first_metric=METRIC, limit=10)
    assert (entry.pairs, entry.failed_trees) == (5, 1)
    assert entry.search == dict.fromkeys(SEARCH_COUNTERS, 7)
    (scored,) = add_history([], ref("score", 1), view, iteration=1, seconds=3.0, first_metric=METRIC, limit=10)
    assert scored.search == {}


def test_a_hundred_iterations_of_ten_thousand_shards_with_holes_keep_the_status_within_its_budget() -> None:
    sharded = {"shards": 10_000, "parallelism": 100, "minSucceeded": 1}
    spec = make_spec(stages={"score": sharded, "rollout": sharded}, iterations={"max": 100}, historyLimit=100)
    run = make_run(spec)
    holed = frozenset(range(0, 10_000, 2))
    names = [f"bfcl/live_parallel_multiple_{n}/accuracy" for n in range(70)]
    metrics = TerminationSummary(
        exit_code=0,
        metrics={METRIC: 0.5} | dict.fromkeys(names, 0.123456789),
        counters=dict.fromkeys(("pairs", "failed_trees", *SEARCH_COUNTERS), 1e12),
    )
    for _ in range(500):
        pointed = run.status.stage
        view = []
        if pointed is not None:
            some = {"completed": holed} if pointed in (StageKind.SCORE, StageKind.ROLLOUT) else {}
            view = [view_of(run, JobState.COMPLETE, summary=metrics, **some)]
        run, _ = step(run, *view)
        assert size_bytes(run.status) <= STATUS_LIMIT_BYTES
        if run.status.phase.terminal:
            break
    assert run.status.phase == Phase.SUCCEEDED
    assert [r.ref for r in run.status.completed] == list(stage_sequence(spec))
    stored = run.status.model_dump_json(by_alias=True, exclude_none=True)
    assert ITrainRunStatus.model_validate_json(stored) == run.status
