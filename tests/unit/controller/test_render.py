"""What a local run shows, on a terminal and in a log."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console, RenderableType

from itrain_contract.loading import validate_run
from itrain_contract.names import Phase, Reason
from itrain_contract.spec import ITrainRunSpec
from itrain_contract.stages import StageKind, StageRef
from itrain_contract.status import ITrainRunStatus, StageRecord
from itrain_operator.display import PlainDisplay
from itrain_operator.localview import LineState, Live, View, build_view, duration, plain_lines
from itrain_operator.points import StageFigures, count_of, points, shown_metrics, summary
from itrain_operator.render import curve_table, screen, window
from itrain_testing.localruns import run_document

PREPARE = StageRef(kind=StageKind.PREPARE)
WARMUP = StageRef(kind=StageKind.WARMUP)
EVALUATE = StageRef(kind=StageKind.EVALUATE)


def spec(iterations: int = 1) -> ITrainRunSpec:
    return validate_run(run_document(iterations=iterations)).spec


def record(ref: StageRef, seconds: int = 5) -> StageRecord:
    return StageRecord(kind=ref.kind, iteration=ref.iteration, attempt=1, digest="0" * 16, seconds=seconds)


def figures(ref: StageRef, metrics: dict[str, float] | None = None, **counters: float) -> StageFigures:
    return StageFigures(ref=ref, seconds=5.0, metrics=metrics or {}, counters=counters)


def view(live: Live | None = None, *, iterations: int = 1, **changes: Any) -> View:
    """Prepare is done, warm-up is under way."""
    fields = {
        "phase": Phase.RUNNING,
        "stage": StageKind.WARMUP,
        "attempt": 1,
        "completed": [record(PREPARE)],
        **changes,
    }
    known = {PREPARE: figures(PREPARE, train=1200, dev=30, rejected=2)}
    status = ITrainRunStatus(iteration_text="0/1", **fields)
    return build_view(name="demo", spec=spec(iterations), status=status, figures=known, live=live, elapsed_s=65.0)


def text(drawn: RenderableType, width: int = 100) -> str:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=False).print(drawn)
    return out.getvalue()


def test_the_remaining_time_is_that_of_the_pace_and_runs_down_between_steps() -> None:
    at_step = Live(done=25, total=100, seconds=30.0, paced_at=30.0)
    assert at_step.eta_s == 90.0  # 30 s for 25, 75 to go
    assert Live(done=25, total=100, seconds=40.0, paced_at=30.0).eta_s == 80.0
    assert Live(done=25, total=100, seconds=400.0, paced_at=30.0).eta_s == 0.0
    assert Live(done=0, total=100, seconds=5.0, paced_at=5.0).eta_s is None
    assert Live(done=100, total=100, seconds=5.0, paced_at=5.0).eta_s is None
    assert Live(done=1, total=111, seconds=9.0, paced_at=9.0).eta_s is None  # loading the model is most of it


def test_durations_are_short() -> None:
    assert [duration(s) for s in (0.2, 7, 59.7, 184, 7500)] == ["<1s", "7s", "1m00s", "3m04s", "2h05m"]


def test_the_screen_shows_what_is_done_what_runs_and_what_comes() -> None:
    live = Live(done=25, total=100, text="loss 1.25", seconds=30.0, paced_at=30.0, running=1)
    shown = text(screen(view(live), width=100, height=0, hint="keys")).splitlines()
    assert shown[0].split() == ["demo", "Running", "iteration", "0/1", "1m05s"]
    assert "✓ prepare" in shown[1]
    assert "1,200 train, 30 dev, 2 rejected" in shown[1]
    assert "» warm-up" in shown[2]
    assert "25% 1m30s left  loss 1.25" in shown[2]
    assert "· export" in shown[-2]
    assert shown[-1].strip() == "keys"


def test_a_narrow_screen_has_no_bar_and_no_line_is_wider_than_it() -> None:
    live = Live(done=25, total=100, text="loss 1.25 and much more text than fits", seconds=30.0, running=1)
    shown = text(screen(view(live), width=50, height=0, hint=""), width=50)
    assert "━" not in shown
    assert max(len(line) for line in shown.splitlines()) <= 50


def test_a_low_screen_shows_the_stages_around_the_current_one() -> None:
    tall = view(Live(running=1), iterations=50)
    shown = text(screen(tall, width=100, height=20, hint="keys")).splitlines()
    assert len(shown) <= 20
    assert any("warm-up" in line for line in shown)
    assert f"{len(tall.lines) - 14} stages after" in shown[-2]


def test_the_window_never_leaves_the_list() -> None:
    lines = view(iterations=3).lines
    for rows in range(1, len(lines) + 3):
        first, end = window(lines, rows)
        assert 0 <= first < end <= len(lines)
        assert end - first == min(rows, len(lines))


def test_plain_lines_tell_each_transition_once() -> None:
    waiting, running = view(), view(Live(running=1))
    started = plain_lines(waiting, running, progress=False)
    assert started == ["warm-up: started"]
    assert plain_lines(running, running, progress=False) == []


def test_plain_progress_is_told_only_when_something_moved() -> None:
    before = view(Live(running=1, done=1, total=4))
    after = view(Live(running=1, done=2, total=4, text="loss 1.0", seconds=10, paced_at=10))
    assert plain_lines(before, after, progress=False) == []
    assert plain_lines(before, after, progress=True) == ["warm-up: running 2/4 (50%) loss 1.0, 10s left"]
    assert plain_lines(after, after, progress=True) == []


def test_a_run_that_continues_says_how_far_it_was() -> None:
    assert plain_lines(None, view(), progress=False) == ["1 of 8 stages are done"]


def test_another_attempt_is_named() -> None:
    again = view(Live(running=1), attempt=2)
    assert plain_lines(view(Live(running=1)), again, progress=False) == ["warm-up: started, attempt 2"]


def test_a_failure_shows_its_message() -> None:
    failed = view(phase=Phase.FAILED, reason=Reason.DATA_ERROR, message="row 3 is no JSON")
    assert failed.lines[1].state == LineState.FAILED
    assert plain_lines(view(Live(running=1)), failed, progress=False)[-1] == "row 3 is no JSON"


def test_stages_that_an_early_stop_leaves_out_are_not_shown() -> None:
    assert len(view(iterations=3).lines) == 16
    assert len(view(iterations=3, last_iteration=1).lines) == 8


def test_the_plain_display_reports_progress_at_most_every_ten_seconds() -> None:
    clock, lines = [0.0], list[str]()
    display = PlainDisplay(lines.append, lambda: clock[0])
    for second in range(26):
        clock[0] = float(second)
        display.show(view(Live(running=1, done=second, total=100)), stopping=False)
    assert [line for line in lines if "running" in line] == [
        "demo: warm-up: running 10/100 (10%)",
        "demo: warm-up: running 20/100 (20%)",
    ]


@pytest.mark.parametrize("width", [60, 80, 140])
def test_a_long_note_is_cut_and_takes_nothing_from_marks_and_times(width: int) -> None:
    live = Live(
        running=1, done=31, total=120, text="310/1200 trees, " + "4,210 pairs, " * 12, seconds=103, paced_at=100
    )
    lines = text(screen(view(live), width=width, height=0, hint=""), width=width).splitlines()
    running = next(line for line in lines if "25%" in line)
    assert running.startswith("» ")
    assert "1m43s" in running
    assert running.rstrip().endswith("…")
    assert len(running) <= width


def test_iteration_0_holds_base_and_warm_up() -> None:
    both = figures(EVALUATE, {"base/dev/accuracy": 0.2, "dev/accuracy": 0.4})
    first = figures(StageRef(kind=StageKind.EVALUATE, iteration=1), {"dev/accuracy": 0.5})
    curve = points([first, both])
    assert [(p.name, p.metrics["dev/accuracy"]) for p in curve] == [
        ("base", 0.2),
        ("warmup", 0.4),
        ("iteration_1", 0.5),
    ]


def test_without_anything_before_the_iterations_the_plain_names_are_the_base() -> None:
    assert [p.name for p in points([figures(EVALUATE, {"dev/accuracy": 0.4})], warmed_up=False)] == ["base"]


def test_a_run_that_continues_another_starts_from_its_adapter() -> None:
    both = figures(EVALUATE, {"base/dev/accuracy": 0.2, "dev/accuracy": 0.4})
    assert [p.name for p in points([both], warmed_up=False)] == ["base", "resumed"]


def test_the_curve_shows_accuracy_standard_error_and_n_and_a_gap_where_there_is_none() -> None:
    metrics = {"dev/call_accuracy": 0.25, "dev/call_accuracy_se": 0.0433, "dev/call_n": 100.0}
    more = {**metrics, "bfcl/accuracy": 0.5, "bfcl/accuracy_se": 0.1, "bfcl/n": 25.0}
    curve = points([figures(EVALUATE, metrics), figures(StageRef(kind=StageKind.EVALUATE, iteration=1), more)])
    assert shown_metrics(curve) == ["dev/call_accuracy", "bfcl/accuracy"]
    assert count_of(more, "bfcl/accuracy") == 25
    rows = [line.split() for line in text(curve_table(curve, width=100)).splitlines()]
    assert rows[1] == ["base", "0.250", "±", "0.043", "100", "–"]
    assert rows[2] == ["iteration", "1", "0.250", "±", "0.043", "100", "0.500", "±", "0.100", "25"]


def test_a_narrow_curve_leaves_metrics_out_rather_than_breaking_its_rows() -> None:
    names = ("dev/call_accuracy", "bfcl/accuracy", "dev/accuracy", "bfcl/live")
    metrics = dict.fromkeys(names, 0.25) | {f"{name}_se": 0.0433 for name in names} | {"dev/n": 12345.0}
    curve = points([figures(EVALUATE, metrics)])
    for width, shown in ((20, 1), (64, 2), (88, 3), (200, 4)):
        lines = text(curve_table(curve, width=width), width=max(width, 40)).splitlines()
        assert len(lines) == 2
        assert lines[1].count("±") == shown


def test_the_summary_adds_iterations_up() -> None:
    rollouts = [
        figures(StageRef(kind=StageKind.ROLLOUT, iteration=i), pairs=10.0 * i, trees=5, failed_trees=i) for i in (1, 2)
    ]
    flat = summary(rollouts, seconds_total=12.3456)
    assert (flat["pairs_iteration_1"], flat["pairs_iteration_2"], flat["pairs"]) == (10, 20, 30)
    assert (flat["failed_trees"], flat["trees"], flat["seconds_total"]) == (3, 10, 12.346)
    assert flat["seconds_rollout_iteration_2"] == 5.0
