"""The state folder and the spec of a local run: nothing half written is believed, and paths do not depend on where."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from itrain_contract.loading import ITrainRun, SpecError, validate_run
from itrain_contract.names import Phase, Reason
from itrain_contract.stageio import RunIdentity, StageInput, build_stage_input
from itrain_contract.stages import StageKind, StageRef
from itrain_contract.status import ITrainRunStatus
from itrain_operator.localjob import Ended, JobLimits
from itrain_operator.localmachine import Share
from itrain_operator.localobserve import failure_message, job_view, log_tail
from itrain_operator.localspec import absolute_paths, edited, override, reopened, storage_root
from itrain_operator.localstate import JobFolder, LocalRunError, StateFolder, StoredJob, new_run
from itrain_operator.observed import JobState
from itrain_testing.localruns import run_document

NOW = datetime(2026, 11, 1, tzinfo=UTC)


def run(**spec: object) -> ITrainRun:
    document = run_document()
    document["spec"] |= spec
    return validate_run(document)


def rollout_input(shards: int | None = 2) -> StageInput:
    identity = RunIdentity(name="demo", uid="0123456789abcdef", storage="file:///nowhere")
    ref = StageRef(kind=StageKind.ROLLOUT, iteration=1)
    return build_stage_input(run=identity, spec=run().spec, ref=ref, attempt=1, shards=shards, upstream=())


def stored_job(shards: int = 2) -> StoredJob:
    limits = JobLimits(shards=shards, parallelism=shards, max_failed_indexes=shards)
    return StoredJob(uid="job-uid", created=NOW, limits=limits, share=Share(slots=2, threads=1, gpus=0), env={})


def make_job(folder: StateFolder) -> JobFolder:
    return folder.create_job("demo-i1-rollout-a1", rollout_input(), stored_job())


def test_a_run_survives_the_way_through_its_files(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state")
    stored = new_run(name="demo", uid="u", spec=run().spec, source="run.yaml", now=NOW)
    folder.save_run(stored)
    status = ITrainRunStatus(phase=Phase.RUNNING, stage=StageKind.TRAIN, iteration=1, retry_at=NOW)
    folder.save_status(status)
    assert (folder.run(), folder.status()) == (stored, status)


def test_a_file_of_another_version_is_one_clear_error(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    folder.run_file.write_text('{"name": "demo"')
    with pytest.raises(LocalRunError, match="start over with --fresh"):
        folder.run()
    with pytest.raises(LocalRunError, match="holds no run"):
        StateFolder(tmp_path / "empty").run()


def test_a_job_whose_creation_was_interrupted_is_none(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    job = make_job(folder)
    assert [found.name for found in folder.jobs()] == [job.name]
    (job.path / "job.json").unlink()
    assert folder.jobs() == []


def test_a_deleted_job_is_gone_but_its_logs_stay_readable(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    for word in ("first", "second"):
        job = make_job(folder)
        job.log(0).write_text(word)
        folder.delete_job(job.name)
    assert folder.jobs() == []
    assert folder.find_job("demo-i1-rollout-a1").log(0).read_text() == "second"
    assert len(list((tmp_path / "jobs").iterdir())) == 2


@pytest.mark.parametrize("text", ["", "{", '{"done": 3', '"text"'])
def test_what_a_killed_process_half_wrote_is_not_believed(tmp_path: Path, text: str) -> None:
    job = make_job(StateFolder(tmp_path))
    job.progress_file(0).write_text(text)
    job.termination_file(0).write_text(text)
    assert job.progress(0) is None
    assert job.termination(0) is None


def test_executions_are_kept_in_order(tmp_path: Path) -> None:
    job = make_job(StateFolder(tmp_path))
    ended = [Ended(code=75, started=1.0, finished=2.0), Ended(code=143, started=3.0, finished=4.0, disrupted=True)]
    for one in ended:
        job.add_ended(1, one)
    assert job.ended(1) == tuple(ended)
    assert job.ended(0) == ()


def test_a_sharded_job_is_seen_with_the_counters_of_its_completed_shards_added_up(tmp_path: Path) -> None:
    job = make_job(StateFolder(tmp_path))
    job.termination_file(0).write_text('{"exitCode": 0, "counters": {"pairs": 7, "trees": 2}, "seconds": 4.0}')
    job.termination_file(1).write_text('{"exitCode": 70, "message": "diverged", "counters": {"pairs": 100}}')
    job.log(1).write_text("a\nb\n")
    history = ((Ended(code=0, started=1, finished=5),), (Ended(code=70, started=1, finished=9),))
    view = job_view(
        folder=job, stored=stored_job(), stage_input=rollout_input(), history=history, running={}, deleting=False
    )
    assert view.state == JobState.FAILED
    assert (view.completed, view.failed_indexes, view.exit_code) == ({0}, {1}, 70)
    assert view.summary is not None
    assert view.summary.counters == {"pairs": 7, "trees": 2}
    assert view.message == "shard 1: exit code 70: diverged"
    assert view.log_tail == "a\nb"
    assert view.finished == datetime.fromtimestamp(9, tz=UTC)


def test_progress_of_shards_that_are_silent_counts_as_the_mean_of_the_others(tmp_path: Path) -> None:
    job = make_job(StateFolder(tmp_path))
    job.progress_file(0).write_text('{"done": 3, "total": 10, "text": "trees", "updated": 1.0}')
    view = job_view(
        folder=job, stored=stored_job(), stage_input=rollout_input(), history=((), ()), running={0: 5.0}, deleting=False
    )
    assert (view.state, view.progress_done, view.progress_total, view.progress_text) == (
        JobState.ACTIVE,
        3,
        20,
        "trees",
    )


def test_a_process_killed_without_a_word_is_explained() -> None:
    assert "lack of memory" in failure_message(137, None, None, None)
    assert failure_message(None, None, None, None) == ""


def test_the_tail_of_a_long_log_is_its_last_lines(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("".join(f"line {n}\n" for n in range(10_000)))
    assert log_tail(tmp_path / "log").splitlines() == [f"line {n}" for n in range(9980, 10_000)]
    assert log_tail(tmp_path / "none") == ""


def test_relative_paths_are_taken_from_where_the_run_was_started(tmp_path: Path) -> None:
    written = run(storage={"uri": "./out"}, data={"uri": "../rows.json", "dev": {"uri": "./dev.json"}})
    spec = absolute_paths(written.spec, tmp_path / "here")
    assert spec.storage.uri == str(tmp_path / "here/out")
    assert spec.data.uri == str(tmp_path / "rows.json")
    assert spec.data.dev is not None
    assert spec.data.dev.uri == str(tmp_path / "here/dev.json")
    assert spec.model.uri == written.spec.model.uri
    assert storage_root(spec, tmp_path / "state") == (tmp_path / "here/out").as_uri()


def test_a_volume_claim_is_a_folder_in_the_state_folder(tmp_path: Path) -> None:
    spec = run(storage={"pvc": {"claimName": "experiments", "subPath": "itool/a"}}).spec
    assert storage_root(spec, tmp_path) == (tmp_path / "storage/experiments/itool/a").as_uri()


def test_an_object_store_stays_what_it_is(tmp_path: Path) -> None:
    assert storage_root(run(storage={"uri": "s3://bucket/runs"}).spec, tmp_path) == "s3://bucket/runs"


def test_settings_reach_any_field_and_are_checked_like_the_file() -> None:
    changed = override(
        run(), ["iterations.max=3", "spec.stages.rollout.temperature=0.5", "stages.warmup.learningRate=1e-4"]
    )
    assert changed.spec.iterations.max == 3
    assert changed.spec.stages.rollout.temperature == 0.5
    assert changed.spec.stages.warmup.learning_rate == 1e-4
    with pytest.raises(SpecError, match="temperature"):
        override(run(), ["stages.rollout.temperature=hot"])


def test_an_edit_raises_the_generation_and_no_edit_changes_nothing() -> None:
    stored = new_run(name="demo", uid="u", spec=run().spec, source="", now=NOW)
    assert edited(stored, run().spec, Phase.RUNNING, "f") is stored
    more = run(iterations={"max": 5}).spec
    assert edited(stored, more, Phase.RUNNING, "f").generation == 2
    with pytest.raises(SpecError, match="the run has ended"):
        edited(stored, more, Phase.SUCCEEDED, "f")


def test_only_a_failed_run_is_opened_again_and_under_the_next_attempt() -> None:
    failed = ITrainRunStatus(
        phase=Phase.FAILED, reason=Reason.DATA_ERROR, stage=StageKind.TRAIN, attempt=2, failures=3, start_time=NOW
    )
    again = reopened(failed)
    assert (again.phase, again.attempt, again.failures) == (Phase.RUNNING, 3, 0)
    for phase in (Phase.SUCCEEDED, Phase.RUNNING, Phase.SUSPENDED):
        status = failed.model_copy(update={"phase": phase})
        assert reopened(status) is status
