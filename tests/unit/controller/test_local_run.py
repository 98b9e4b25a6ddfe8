"""Whole local runs with a pipeline that starts in milliseconds: order, retries, resume; killed at any moment."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from itrain_contract.loading import SpecError, load_run
from itrain_contract.names import Phase
from itrain_contract.status import ITrainRunStatus
from itrain_operator.cli_local import RunOptions, pipeline_command, run_locally
from itrain_operator.local import LocalBackend, scratch_folder
from itrain_operator.localmachine import Machine
from itrain_operator.localrun import Attention, Ending, LocalRun
from itrain_operator.localsignals import Signals
from itrain_operator.localspec import absolute_paths, storage_root
from itrain_operator.localstate import LocalRunError, LockedError, StateFolder, StoredRun, new_run
from itrain_testing.localruns import LocalWorld, alive, run_document

ORDER = [
    ("i0/prepare", "-"),
    ("i0/warmup", "-"),
    ("i0/evaluate", "-"),
    ("i1/score", "0"),
    ("i1/score", "1"),
    ("i1/rollout", "0"),
    ("i1/rollout", "1"),
    ("i1/train", "-"),
    ("i1/evaluate", "-"),
    ("i0/export", "-"),
]
METRICS = {"dev/call_accuracy": 0.5, "dev/call_accuracy_se": 0.02, "dev/call_n": 300}


def world(path: Path, script: dict[str, Any] | None = None, **stages: dict[str, Any]) -> LocalWorld:
    document = run_document(**stages)
    document["spec"]["storage"]["uri"] = str(path / "artifacts")
    return LocalWorld(path, document, script)


def go(here: LocalWorld, **options: Any) -> int:
    return run_locally(RunOptions(file=here.file, folder=here.folder, **options), here.environ)


def ordered(done: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Shards of one stage may finish in any order."""
    return sorted(done, key=lambda item: ([ref for ref, _ in ORDER].index(item[0]), item[1]))


def assert_every_stage_ran_once_in_order(here: LocalWorld) -> None:
    """A stage may be killed between its last write and its ledger line; the next process then finds it done."""
    finished: list[tuple[str, str]] = []
    for line in here.ledger():
        item = (line.ref, line.shard)
        if line.event in ("start", "done"):
            assert item not in finished, f"{line} although it was finished"
        if line.event in ("done", "skip") and item not in finished:
            finished.append(item)
    assert ordered(finished) == ORDER
    assert list(dict.fromkeys(ref for ref, _ in finished)) == list(dict.fromkeys(ref for ref, _ in ORDER))


def test_every_stage_runs_once_in_the_order_of_the_run(tmp_path: Path) -> None:
    here = world(tmp_path, {"evaluate": {"metrics": METRICS}})
    assert go(here) == 0
    assert_every_stage_ran_once_in_order(here)
    assert here.status()["phase"] == "Succeeded"
    assert all(line.event == "done" or line.event == "start" for line in here.ledger())


def test_shards_run_side_by_side_as_the_machine_allows(tmp_path: Path) -> None:
    here = world(tmp_path, {"score": {"seconds": 0.4}})
    with prepared(here, Machine(cores=4, memory_bytes=2**35)) as (stored, backend):
        assert loop(here, stored, backend).run(ITrainRunStatus())[0] == Ending.FINISHED
    events = [(line.event, line.shard) for line in here.ledger() if line.ref == "i1/score"]
    assert sorted(events[:2]) == [("start", "0"), ("start", "1")]


def test_a_machine_with_one_core_runs_them_one_after_the_other(tmp_path: Path) -> None:
    here = world(tmp_path, {"score": {"seconds": 0.1}})
    with prepared(here, Machine(cores=1, memory_bytes=2**35)) as (stored, backend):
        assert loop(here, stored, backend).run(ITrainRunStatus())[0] == Ending.FINISHED
    events = [(line.event, line.shard) for line in here.ledger() if line.ref == "i1/score"]
    assert events == [("start", "0"), ("done", "0"), ("start", "1"), ("done", "1")]


def test_a_second_call_of_a_finished_run_starts_nothing_and_says_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = world(tmp_path, {"evaluate": {"metrics": METRICS}})
    assert go(here) == 0
    first, lines = capsys.readouterr().out, here.ledger()
    assert go(here) == 0
    assert capsys.readouterr().out == first
    assert "0.500 ± 0.020" in first
    assert here.ledger() == lines


def test_retryable_failures_are_tried_again_unsharded_as_attempts_sharded_within_the_job(tmp_path: Path) -> None:
    here = world(tmp_path, {"warmup": {"exits": [75, 1]}, "rollout": {"exits": [75]}})
    assert go(here) == 0
    assert ordered(here.done()) == ORDER
    starts = [(line.ref, line.shard, line.attempt) for line in here.ledger() if line.event == "start"]
    assert [s for s in starts if s[0] == "i0/warmup"] == [("i0/warmup", "-", n) for n in (1, 2, 3)]
    assert sorted(s for s in starts if s[0] == "i1/rollout") == [
        ("i1/rollout", shard, 1) for shard in ("0", "0", "1", "1")
    ]
    assert here.status()["retries"] == 2


@pytest.mark.parametrize(
    ("exits", "code", "reason"),
    [
        ([64], 64, "ConfigError"),
        ([65], 65, "DataError"),
        ([70], 70, "PermanentError"),
        ([75] * 3, 75, "RetriesExhausted"),
    ],
)
def test_a_failed_run_ends_with_the_code_of_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], exits: list[int], code: int, reason: str
) -> None:
    here = world(tmp_path, {"warmup": {"exits": exits}})
    assert go(here) == code
    assert here.status()["reason"] == reason
    said = capsys.readouterr().out
    assert "scripted failure" in said
    assert "itrain logs" in said
    assert len([line for line in here.ledger() if line.event == "start" and line.ref == "i0/warmup"]) == len(exits)


def test_a_shard_that_may_fail_does_not_stop_the_run(tmp_path: Path) -> None:
    script = {"rollout": {"exits_of_shard": {"1": [70]}}}
    here = world(tmp_path, script, rollout={"shards": 2, "minSucceeded": 1})
    assert go(here) == 0
    assert ("i1/rollout", "1") not in here.done()
    assert ("i1/train", "-") in here.done()


def test_a_failed_run_is_not_touched_again_but_by_retry(tmp_path: Path) -> None:
    here = world(tmp_path, {"train": {"exits": [70]}})
    assert go(here) == 70
    lines = here.ledger()
    assert go(here) == 70
    assert here.ledger() == lines
    assert go(here, retry=True) == 0
    assert ordered(here.done()) == ORDER


def test_fresh_forgets_the_run_and_keeps_what_else_lies_in_its_folder(tmp_path: Path) -> None:
    here = world(tmp_path)
    assert go(here) == 0
    (here.folder / "artifacts-of-mine").write_text("kept")
    uid = json.loads((here.folder / "run.json").read_text())["uid"]
    assert go(here, fresh=True) == 0
    assert json.loads((here.folder / "run.json").read_text())["uid"] != uid
    assert len(here.done()) == 2 * len(ORDER)
    assert (here.folder / "artifacts-of-mine").read_text() == "kept"


def test_an_edit_that_is_allowed_applies_and_one_that_is_not_says_why(tmp_path: Path) -> None:
    here = world(tmp_path, {"train": {"exits": [70]}})
    assert go(here) == 70
    document = run_document(train={"learningRate": 0.5})
    document["spec"]["storage"]["uri"] = str(tmp_path / "artifacts")
    here.write(document)
    here.script = {}
    assert go(here, retry=True) == 0
    stored = json.loads((here.folder / "run.json").read_text())
    assert (stored["generation"], stored["spec"]["stages"]["train"]["learningRate"]) == (2, 0.5)
    document["spec"]["seed"] = 7
    here.write(document)
    with pytest.raises(SpecError, match=r"spec\.seed"):
        go(here)


def test_another_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    here = world(tmp_path)
    assert go(here) == 0
    here.write(run_document("other"))
    with pytest.raises(LocalRunError, match="holds the run 'demo', not 'other'"):
        go(here)


def test_a_second_itrain_on_the_same_run_is_told_the_process(tmp_path: Path) -> None:
    here = world(tmp_path)
    folder = StateFolder(here.folder)
    with folder.lock(), pytest.raises(LockedError, match=f"process {os.getpid()}"):
        go(here)
    assert folder.holder() is None
    assert go(here) == 0


def test_a_suspended_run_starts_nothing_and_goes_on_when_told(tmp_path: Path) -> None:
    here = world(tmp_path)
    assert go(here, settings=("suspend=true",)) == 75
    assert here.ledger() == []
    assert here.status()["phase"] == "Suspended"
    assert go(here) == 0
    assert_every_stage_ran_once_in_order(here)


def test_the_summary_file_is_flat(tmp_path: Path) -> None:
    metrics = {**METRICS, "base/dev/call_accuracy": 0.25, "base/dev/call_accuracy_se": 0.025}
    script = {"i0/evaluate": {"metrics": metrics}, "i1/evaluate": {"metrics": METRICS}}
    here = world(tmp_path, {**script, "rollout": {"counters": {"pairs": 10, "trees": 4, "failed_trees": 1}}})
    assert go(here, summary_file=tmp_path / "summary.json") == 0
    figures = json.loads((tmp_path / "summary.json").read_text())
    assert figures["dev_call_accuracy_base"] == 0.25
    assert figures["dev_call_accuracy_base_se"] == 0.025
    assert figures["dev_call_accuracy_warmup"] == figures["dev_call_accuracy_iteration_1"] == 0.5
    assert figures["dev_call_n_iteration_1"] == 300
    assert figures["pairs_iteration_1"] == figures["pairs"] == 20  # 10 from each of two shards
    assert figures["failed_trees"] == 2
    assert figures["seconds_total"] > 0
    assert {f"seconds_{kind}" for kind in ("prepare", "warmup", "evaluate", "export")} <= figures.keys()


def test_the_report_of_export_lies_in_the_state_folder(tmp_path: Path) -> None:
    here = world(tmp_path)
    assert go(here) == 0
    assert (here.folder / "report.html").read_text() == "<html></html>"


def test_back_off_is_waited_for_on_the_given_clock(tmp_path: Path) -> None:
    retry = {"limit": 2, "backoffSeconds": 3600, "maxBackoffSeconds": 36000}
    here = world(
        tmp_path, {"warmup": {"exits": [75]}, "score": {"exits": [75]}}, warmup={"retry": retry}, score={"retry": retry}
    )
    clock = Skipping()
    with prepared(here, Machine(cores=4, memory_bytes=2**35), clock=clock.now) as (stored, backend):
        made = loop(here, stored, backend, clock=clock.now, attention=clock)
        assert made.run(ITrainRunStatus())[0] == Ending.FINISHED
    assert clock.skipped >= 2 * 3600 - 10
    assert ordered(here.done()) == ORDER


# Killed at any moment --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("calls", [range(1, 7), range(2, 13)])
def test_a_process_that_dies_after_every_few_calls_still_ends_the_run_once(tmp_path: Path, calls: range) -> None:
    here = world(tmp_path, {"evaluate": {"metrics": METRICS}})
    deaths = 0
    while True:
        with Signals() as signals, prepared(here, Machine(cores=2, memory_bytes=2**35)) as (stored, backend):
            mortal = Mortal(backend, calls[deaths % len(calls)])
            try:
                made = loop(here, stored, mortal, attention=signals)
                ending, status = made.run(StateFolder(here.folder).status())
                break
            except Died:
                deaths += 1
                assert deaths < 500
    assert (ending, status.phase) == (Ending.FINISHED, Phase.SUCCEEDED)
    assert deaths > 10
    assert_every_stage_ran_once_in_order(here)


def test_kill_9_at_many_moments_leaves_no_process_and_the_run_ends_the_same(tmp_path: Path) -> None:
    here = world(tmp_path, {"default": {"seconds": 0.1}, "evaluate": {"metrics": METRICS}})
    kills = 0
    while True:
        seen = len(here.ledger())
        process = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(go(here)))
        process.start()
        wait_until(lambda: not process.is_alive() or len(here.ledger()) >= seen + 1 + kills % 4)  # noqa: B023
        if not process.is_alive():
            break
        process.kill()
        process.join()
        kills += 1
        wait_until(lambda: not any(alive(line.pid) for line in here.ledger()))
    assert process.exitcode == 0
    assert kills >= 6
    assert not scratch_folder(here.folder).exists()
    assert_every_stage_ran_once_in_order(here)


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    here = world(tmp_path, {"warmup": {"seconds": 30}})
    process = here.start("--plain")
    wait_until(lambda: ("start", "i0/warmup") in events(here))
    process.send_signal(2)
    said, told = process.communicate()
    assert process.returncode == 130
    assert "Continue with: itrain run" in said
    assert "saving and stopping" in told
    assert ("saved", "i0/warmup") in events(here)
    assert here.status()["phase"] == "Running"
    here.script = {}
    assert go(here) == 0
    assert ordered(here.done()) == ORDER
    starts = [line.attempt for line in here.ledger() if (line.event, line.ref) == ("start", "i0/warmup")]
    assert starts == [1, 1]  # the same attempt: an interruption is no failure
    assert here.status()["retries"] == 0


def test_a_second_ctrl_c_kills_what_does_not_listen(tmp_path: Path) -> None:
    here = world(tmp_path, {"prepare": {"seconds": 30, "ignore_term": True, "grandchild": True}})
    process = here.start("--plain")
    wait_until(lambda: ("grandchild", "i0/prepare") in events(here))
    process.send_signal(2)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(2)
    process.communicate()
    assert process.returncode == 130
    wait_until(lambda: not any(alive(line.pid) for line in here.ledger()))


def test_sigterm_is_told_by_its_own_code(tmp_path: Path) -> None:
    here = world(tmp_path, {"prepare": {"seconds": 30}})
    process = here.start("--plain")
    wait_until(lambda: ("start", "i0/prepare") in events(here))
    process.terminate()
    process.communicate()
    assert process.returncode == 143


# Helpers ---------------------------------------------------------------------------------------------------------


class Died(BaseException):
    """kill -9 as far as code can see it."""


class Mortal:
    """A backend that dies at its n-th call, alternately before and after doing it."""

    def __init__(self, inner: LocalBackend, calls: int) -> None:
        self._inner, self._left = inner, calls

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in ("tick", "observe", "apply", "save_status"):
            return found

        def call(*arguments: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                raise Died
            result = found(*arguments)
            if self._left == 1 and name == "apply":
                raise Died
            return result

        return call


class Calm:
    """Attention that nobody asks for; it waits in real time."""

    stops = 0

    def wait(self, seconds: float) -> None:
        time.sleep(min(seconds, 0.02))


class Skipping:
    """A clock that a wait moves on, so that an hour passes at once; never faster than the children's own time."""

    stops = 0

    def __init__(self) -> None:
        self.skipped = 0.0

    def now(self) -> float:
        return time.time() + self.skipped

    def wait(self, seconds: float) -> None:
        time.sleep(0.02)
        self.skipped += 600.0


@contextmanager
def prepared(
    here: LocalWorld, machine: Machine, *, clock: Callable[[], float] = time.time
) -> Iterator[tuple[StoredRun, LocalBackend]]:
    """The run and its backend; at the end every child is killed, as with the process that started it."""
    folder = StateFolder(here.folder)
    if not folder.exists:
        spec = absolute_paths(load_run(here.file).spec, here.path)
        folder.save_run(new_run(name="demo", uid="0123456789abcdef", spec=spec, source="", now=datetime.now(UTC)))
    backend = LocalBackend(
        folder,
        machine=machine,
        command=pipeline_command(here.environ),
        environ=here.environ,
        clock=clock,
        on_event=lambda event: None,
    )
    try:
        yield folder.run(), backend
    finally:
        backend.close()


def loop(
    here: LocalWorld,
    stored: Any,
    backend: Any,
    *,
    clock: Callable[[], float] = time.time,
    attention: Attention | None = None,
) -> LocalRun:
    return LocalRun(
        stored=stored,
        storage=storage_root(stored.spec, here.folder),
        backend=backend,
        clock=clock,
        attention=attention or Calm(),
        watch=lambda status, observed, stopping: None,
    )


def events(here: LocalWorld) -> list[tuple[str, str]]:
    return [(line.event, line.ref) for line in here.ledger()]


def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)
