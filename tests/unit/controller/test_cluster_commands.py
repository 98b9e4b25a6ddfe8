"""The commands about runs in a cluster: what is shown, what is waited for, and every refusal in one line."""

from __future__ import annotations

import asyncio
import io
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from itrain_contract.loading import SpecError
from itrain_operator.clusteraccess import ClusterError, Where, explain, field_problems, open_access
from itrain_operator.clustercommands import Goal, get_run, judge, list_table, show_run, wait_for
from itrain_operator.clusterfollow import Gone, Lost, Seen, follow
from itrain_operator.clusterlogs import Choice, LogLine, follow_logs, show_logs
from itrain_operator.clusterruns import ClusterRun, read_run
from itrain_operator.clusterstore import check_purgeable, report_arguments
from itrain_operator.clustersubmit import read_files
from itrain_operator.clusterview import age_text, facts, run_view, trouble
from itrain_operator.kubeapi import RUNS, UnavailableError, api_error
from itrain_operator.localstate import LocalRunError, StateFolder
from itrain_operator.runplace import ClusterName, choose_place
from itrain_testing.builders import T0
from itrain_testing.fakecluster import FakeServer
from itrain_testing.fakeuser import Streams, access, add_pod, add_run
from itrain_testing.recorded import Moment, lives

RUNNING = {"observedGeneration": 1, "phase": "Running", "reason": "StageRunning", "stage": "rollout", "iteration": 1}


@pytest.fixture(scope="module")
def recorded() -> dict[str, list[Moment]]:
    return lives()


def stored(status: dict[str, Any] | None = None, **spec: Any) -> ClusterRun:
    return read_run(add_run(FakeServer(), status=status, **spec))


def shown(*parts: Any, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    for part in parts:
        part(console) if callable(part) else console.print(part)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# --- reading a run ---


def test_a_field_that_a_newer_operator_added_is_left_out_and_not_an_error() -> None:
    newer = {**RUNNING, "forecast": {"a": 1}, "progress": {"done": 1, "total": 2, "percent": 50, "pace": 3}}
    run = stored(newer)
    assert (run.status.progress.percent, run.status.phase) == (50, "Running")


def test_a_status_that_cannot_be_read_says_which_itrain_can() -> None:
    with pytest.raises(ClusterError, match="use the itrain of the cluster's version"):
        stored({"phase": "Exploded"})


def test_a_spec_that_cannot_be_read_is_shown_by_its_status() -> None:
    raw = add_run(FakeServer(), status={"phase": "Pending", "reason": "InvalidSpec", "message": "spec.model: got 5"})
    run = read_run({**raw, "spec": {"model": 5}})
    assert "spec.model: got 5" in shown(lambda console: show_run(console, run, T0))


# --- what is shown ---


def test_a_running_stage_goes_on_counting_between_two_writes() -> None:
    status = {
        **RUNNING,
        "attempt": 1,
        "attemptSeconds": 100.0,
        "runningSeconds": 160.0,
        "lastObservedTime": T0.isoformat(),
        "progress": {"done": 20, "total": 100, "percent": 20, "text": "trees"},
        "current": {"jobName": "j", "active": 3, "succeeded": 2},
    }
    view = run_view(stored(status), T0 + timedelta(seconds=40))
    (line,) = [line for line in view.lines if line.live.total]
    assert (line.seconds, view.elapsed_s, line.note) == (140.0, 200.0, "trees, 2/8 shards")
    assert line.live.eta_s == 360.0  # 80 more at 5 s each, of which 40 s have passed


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (None, "no operator has seen it for over a minute: is one installed that watches namespace team?"),
        ({**RUNNING, "observedGeneration": 0}, "no operator has seen it for over a minute"),
        ({**RUNNING, "reason": "WaitingForQuota", "message": "v100: 8 short"}, "waiting for quota: v100: 8 short"),
        ({**RUNNING, "reason": "ImagePullFailed"}, "an image cannot be pulled"),
        (RUNNING, ""),
    ],
)
def test_what_keeps_a_run_from_moving_is_said(status: dict[str, Any] | None, words: str) -> None:
    assert trouble(stored(status), T0 + timedelta(minutes=5)).startswith(words)
    assert bool(words) == bool(trouble(stored(status), T0 + timedelta(minutes=5)))


def test_the_facts_are_one_line() -> None:
    run = stored(
        {**RUNNING, "gpuSeconds": 7200.0, "gpuHours": "2.00", "retries": 1, "preemptions": 2}, queue={"name": "q"}
    )
    assert facts(run) == "namespace team · 2.00 GPU-hours · 1 retry · 2 preemptions · queue q"


@pytest.mark.parametrize("width", [80, 140])
def test_a_list_never_breaks_a_row_nor_cuts_anything_but_names_and_notes(
    width: int, recorded: dict[str, list[Moment]]
) -> None:
    runs = [read_run(life[-1].raw) for life in recorded.values()]
    lines = shown(list_table(runs, T0 + timedelta(hours=1), everywhere=True, width=width), width=width).splitlines()
    assert len(lines) == len(runs) + 1
    assert lines[0].split() == ["namespace", "name", "phase", "iter", "stage", "progress", "best", "age"]
    assert all("60m" in line for line in lines[1:])
    assert ("ConfigError" in "\n".join(lines)) == (width == 140)


@pytest.mark.parametrize(("seconds", "text"), [(5, "5s"), (600, "10m"), (7300, "2h"), (200_000, "2d")])
def test_an_age_is_written_as_kubectl_writes_it(seconds: float, text: str) -> None:
    assert age_text(seconds) == text


def test_every_recorded_status_can_be_shown_at_every_width(recorded: dict[str, list[Moment]]) -> None:
    for life in recorded.values():
        for moment in (life[0], life[len(life) // 2], life[-1]):
            run = read_run(moment.raw)
            for width in (40, 80, 140):
                text = shown(lambda console, run=run: show_run(console, run, T0), width=width)
                assert text.startswith(f"run  {run.status.phase.value}")


# --- following ---


def collect(server: FakeServer, streams: Streams, *, most: int = 20) -> list[Seen]:
    async def all_seen() -> list[Seen]:
        found: list[Seen] = []
        async for seen in follow(access(server, streams), "run"):
            found.append(seen)
            if len(found) == most:
                break
        return found

    return asyncio.run(all_seen())


def event(kind: str, raw: dict[str, Any]) -> str:
    return json.dumps({"type": kind, "object": raw})


def test_a_watch_that_breaks_is_opened_again_from_a_fresh_read_and_nothing_is_told_twice() -> None:
    server = FakeServer()
    raw = add_run(server)
    changed = {**raw, "status": RUNNING, "metadata": {**raw["metadata"], "resourceVersion": "9"}}
    streams = Streams(script=[[UnavailableError("connection reset")], [event("MODIFIED", changed)], []])
    seen = collect(server, streams, most=3)
    assert isinstance(seen[0], ClusterRun)
    assert isinstance(seen[1], Lost)
    assert isinstance(seen[2], ClusterRun)
    assert seen[2].status.phase == "Running"
    assert [query["resourceVersion"] for _, query in streams.opened] == ["1", "1"]


def test_a_deletion_ends_it_and_so_does_another_run_of_the_same_name() -> None:
    server = FakeServer()
    raw = add_run(server)
    assert isinstance(collect(server, Streams(script=[[event("DELETED", raw)]]))[-1], Gone)

    def replaced() -> None:
        server.remove(RUNS, raw)
        add_run(server)

    assert isinstance(collect(server, Streams(script=[[replaced]]))[-1], Gone)


def test_a_version_that_is_too_old_is_read_anew() -> None:
    server = FakeServer()
    raw = add_run(server)
    gone = {"code": 410, "reason": "Expired", "message": "too old resource version"}
    streams = Streams(script=[[event("ERROR", gone)], [event("DELETED", raw)]])
    assert [type(seen) for seen in collect(server, streams)] == [ClusterRun, Gone]


# --- waiting ---


def test_a_suspension_counts_once_its_pods_are_gone() -> None:
    status = {**RUNNING, "phase": "Suspended", "reason": "SuspendedByUser", "current": {"jobName": "j", "active": 1}}
    assert judge(stored(status), Goal.SUSPENDED) is None
    assert judge(stored({**status, "current": {"jobName": "j"}}), Goal.SUSPENDED) == 0
    assert judge(stored({**status, "current": {"jobName": "j"}, "observedGeneration": 0}), Goal.SUSPENDED) is None


def test_a_wait_in_vain_says_how_the_run_is() -> None:
    server = FakeServer()
    add_run(server, status=RUNNING)
    waited = asyncio.run(wait_for(access(server), "run", Goal.SUCCEEDED, timeout_s=0.3))
    assert (waited.code, waited.message) == (124, "run is not succeeded after 0.3 s: it is Running (StageRunning)")


# --- logs ---


def told(server: FakeServer, choice: Choice, streams: Streams | None = None) -> tuple[list[str], list[str]]:
    """Lines of the logs, and what was said beside them."""
    lines: list[str] = []
    notices: list[str] = []

    def sink(line: LogLine) -> None:
        lines.append(f"{line.pod.name}: {line.text}")

    show = show_logs if streams is None else follow_logs
    asyncio.run(show(access(server, streams), "run", choice, sink, notices.append))
    return lines, notices


ANY = Choice(stage=None, shard=None, lines=10)


def test_logs_are_those_of_the_newest_attempt_and_of_the_newest_pod_of_an_index() -> None:
    server = FakeServer()
    run = add_run(server, status=RUNNING)
    add_pod(server, run, stage="score", shard=0, log="old")
    add_pod(server, run, attempt=1, shard=0, log="first attempt")
    add_pod(server, run, attempt=2, shard=0, phase="Failed", log="failed index")
    second = add_pod(server, run, attempt=2, shard=0, retry=1, log="again")
    third = add_pod(server, run, attempt=2, shard=1, log="other shard")
    assert told(server, ANY)[0] == [f"{second}: again", f"{third}: other shard"]
    assert told(server, Choice(stage="i1/score", shard=None, lines=10))[0] == ["run-i1-score-a1-0-a: old"]
    assert told(server, Choice(stage="rollout", shard=1, lines=10))[0] == [f"{third}: other shard"]


def test_no_pod_says_why() -> None:
    server = FakeServer()
    add_run(server, status={**RUNNING, "reason": "WaitingForQuota"})
    with pytest.raises(ClusterError, match="run has no pod of stage train: waiting for quota"):
        told(server, Choice(stage="train", shard=None, lines=10))


def test_a_followed_log_that_breaks_off_goes_on_without_repeating_a_line() -> None:
    server = FakeServer()
    run = add_run(server, status={**RUNNING, "phase": "Succeeded"})
    pod = add_pod(server, run, phase="Succeeded")
    stamps = [f"2026-03-01T12:00:0{second}.000000000Z" for second in range(3)]
    broken = [f"{stamps[0]} one", f"{stamps[1]} two", UnavailableError("reset")]
    streams = Streams(script=[broken, [f"{stamps[1]} two", f"{stamps[2]} three"]])
    lines, notices = told(server, ANY, streams)
    assert lines == [f"{pod}: one", f"{pod}: two", f"{pod}: three"]
    assert notices == ["==> i1/rollout attempt 1 <==", f"{pod}: the log broke off, reading on: reset"]
    assert [query.get("sinceTime") for _, query in streams.opened] == [None, "2026-03-01T12:00:01Z"]


def test_following_goes_on_with_the_next_attempt() -> None:
    server = FakeServer()
    run = add_run(server, status=RUNNING)
    first = add_pod(server, run, phase="Failed")

    def retried() -> None:
        add_pod(server, run, attempt=2, phase="Succeeded")
        server.edit(RUNS, "team", "run", lambda raw: raw["status"].update(phase="Succeeded"))

    streams = Streams(script=[["2026-03-01T12:00:00.0Z dying", retried], ["2026-03-01T12:01:00.0Z living"]])
    lines, notices = told(server, ANY, streams)
    assert lines == [f"{first}: dying", "run-i1-rollout-a2-a: living"]
    assert notices == ["==> i1/rollout attempt 1 <==", "==> i1/rollout attempt 2 <=="]


# --- which run ---


def test_options_say_where_a_run_is(tmp_path: Path) -> None:
    never = lambda name: pytest.fail("nobody asked the cluster")  # noqa: E731
    assert choose_place("run", Where(namespace="team"), never) == ClusterName(name="run")
    assert choose_place("run", Where(plugin=True), never) == ClusterName(name="run")
    with pytest.raises(LocalRunError, match="leave one out"):
        choose_place("run", Where(namespace="team", local=True), never)
    with pytest.raises(LocalRunError, match="itrain list"):
        choose_place(None, Where(namespace="team"), never)


def test_without_options_a_state_folder_goes_first_and_any_other_name_is_the_cluster_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".itrain/mine").mkdir(parents=True)
    (tmp_path / ".itrain/mine/run.json").write_text("{}")
    nowhere = Where()
    found = choose_place("mine", nowhere, lambda name: "")
    assert isinstance(found, StateFolder)
    assert found.path == Path(".itrain/mine")
    assert choose_place("other", nowhere, lambda name: "") == ClusterName(name="other", guessed=True)
    with pytest.raises(LocalRunError, match="no run in build/other"):
        choose_place("build/other", nowhere, lambda name: "")
    with pytest.raises(LocalRunError, match="write --local for the first, -n for the second"):
        choose_place("mine", nowhere, lambda name: "namespace team")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/run.json").write_text("{}")
    with pytest.raises(LocalRunError, match=r"two state folders: write \./mine or \.itrain/mine"):
        choose_place("mine", nowhere, lambda name: "")


# --- refusals ---

CRD = '{"kind":"Status","reason":"Invalid","message":"x is invalid","details":{"causes":[%s]}}'


@pytest.mark.parametrize(
    ("code", "body", "words", "exit_code"),
    [
        (404, "404 page not found", "this cluster has no ITrainRun resource", 64),
        (404, '{"message":"itrainruns.itrain.dev \\"run\\" not found"}', "no run run in namespace team", 64),
        (404, '{"message":"namespaces \\"team\\" not found"}', "create it, or give another namespace", 64),
        (403, '{"message":"itrainruns is forbidden: User x"}', "not allowed: itrainruns is forbidden", 64),
        (401, '{"message":"Unauthorized"}', "log in again", 64),
        (429, '{"message":"too many requests"}', "busy", 75),
        (503, "", "cannot be reached", 75),
    ],
)
def test_every_refusal_is_one_line_with_a_remedy(code: int, body: str, words: str, exit_code: int) -> None:
    error = explain(api_error(code, body, {}), access(FakeServer()), "run")
    assert words in str(error)
    assert (error.code, len(str(error).splitlines())) == (exit_code, 1)


def test_the_server_s_refusal_is_told_field_by_field() -> None:
    causes = (
        '{"field":"spec.iterations.max","message":"Invalid value: -1: must be at least 0"},'
        '{"field":"spec","message":"Invalid value: \\"object\\": model is immutable"},'
        '{"field":"spec.model.uri","message":"Required value"}'
    )
    said = [str(problem) for problem in field_problems(api_error(422, CRD % causes, {}))]
    assert said[0].startswith("spec.iterations.max: got -1, allowed: must be at least 0; see kubectl explain")
    assert said[1].startswith("spec: got a value that the server refuses, allowed: model is immutable")
    assert said[2].startswith("spec.model.uri: got a value that the server refuses, allowed: Required value")


def test_no_kubeconfig_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def opened() -> None:
        async with open_access(Where()):
            pytest.fail("there is no cluster")

    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ClusterError, match="does not exist; give --kubeconfig FILE"):
        asyncio.run(opened())


def test_a_run_that_is_not_there_is_named() -> None:
    with pytest.raises(ClusterError, match="no run run in namespace team"):
        asyncio.run(get_run(access(FakeServer()), "run"))


def test_the_problems_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    files = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    for file in files:
        file.write_text("kind: ITrainRun\n")
    with pytest.raises(SpecError) as told_of:
        read_files(files)
    assert {line.split(": ")[0] for line in str(told_of.value).splitlines()} == {str(file) for file in files}


# --- artifacts ---


def test_a_report_is_the_exported_one_or_one_of_the_results_so_far(recorded: dict[str, list[Moment]]) -> None:
    done = read_run(recorded["succeeds"][-1].raw)
    assert report_arguments(done)[0] == "fetch"
    assert report_arguments(done)[2] == "s3://bucket/prefix/run-0f1e2d3c/i0/export/a1/"
    half = read_run(recorded["configuration"][-1].raw)
    assert report_arguments(half) == ["report", "--run-root", "s3://bucket/prefix/run-0f1e2d3c/"]
    with pytest.raises(ClusterError, match="no finished stage"):
        report_arguments(stored(RUNNING))


def test_what_is_still_written_is_not_purged() -> None:
    with pytest.raises(ClusterError, match="itrain suspend run"):
        check_purgeable(stored(RUNNING))
    suspended = {**RUNNING, "phase": "Suspended", "reason": "SuspendedByUser"}
    check_purgeable(stored(suspended))
    with pytest.raises(ClusterError, match="its stages use these artifacts"):
        check_purgeable(stored({**suspended, "current": {"jobName": "j", "active": 1}}))
