"""Late, doubled and reordered events against what the operator wrote itself."""

from __future__ import annotations

from typing import Any

from itrain_operator.cache import Cache, RunKey

KEY = RunKey(namespace="team", name="run")


def run(version: int, uid: str = "u1", **fields: Any) -> dict[str, Any]:
    metadata = {"namespace": "team", "name": "run", "uid": uid, "resourceVersion": str(version), "generation": 1}
    return {"metadata": metadata, "spec": {}, **fields}


def job(version: int, uid: str = "j1", name: str = "run-i0-prepare-a1", **status: Any) -> dict[str, Any]:
    metadata = {
        "namespace": "team",
        "name": name,
        "uid": uid,
        "resourceVersion": str(version),
        "labels": {"itrain.dev/run": "run"},
    }
    return {"metadata": metadata, "spec": {}, "status": status}


def test_an_event_older_than_the_operators_own_write_changes_nothing() -> None:
    cache = Cache()
    cache.put_run(run(10))
    assert cache.put_run(run(15, status={"phase": "Running"})) == KEY  # the answer to our own write
    assert cache.put_run(run(12)) is None
    assert cache.put_run(run(15)) is None
    record = cache.run(KEY)
    assert record is not None
    assert record.phase == "Running"


def test_numbers_are_compared_and_not_texts() -> None:
    cache = Cache()
    cache.put_run(run(99))
    assert cache.put_run(run(100)) == KEY


def test_a_late_event_does_not_bring_a_deleted_object_back() -> None:
    cache = Cache()
    cache.put_run(run(10))
    cache.put_job(job(11))
    assert cache.remove_run(run(20)) == KEY
    assert cache.remove_job(job(21)) == KEY
    assert cache.put_run(run(22)) is None
    assert cache.put_job(job(23)) is None
    assert cache.run(KEY) is None
    assert cache.jobs(KEY) == ()


def test_a_new_run_under_the_name_replaces_the_old_one_and_no_event_of_the_old_one_comes_through() -> None:
    cache = Cache()
    cache.put_run(run(10, uid="old"))
    cache.put_run(run(20, uid="new"))
    assert cache.put_run(run(15, uid="old")) is None
    assert cache.remove_run(run(16, uid="old")) is None
    record = cache.run(KEY)
    assert record is not None
    assert record.uid == "new"


def test_a_live_list_of_a_runs_jobs_removes_what_is_gone_and_keeps_what_is_newer() -> None:
    cache = Cache()
    cache.put_job(job(10, "j1", "a"))
    cache.put_job(job(12, "j2", "b", ready=1))
    cache.set_jobs(KEY, [job(11, "j2", "b")])
    assert [(record.name, record.ready) for record in cache.jobs(KEY)] == [("b", 1)]
    assert cache.put_job(job(13, "j1", "a")) is None, "a Job that is gone stays gone"


def test_a_whole_list_drops_what_it_does_not_hold_but_not_what_is_younger() -> None:
    cache = Cache()
    cache.put_run(run(10))
    cache.put_job(job(30))
    assert cache.sweep_jobs(set(), "25") == []
    assert cache.sweep_runs(set(), "25") == [KEY]
    assert cache.sweep_jobs(set(), "30") == [KEY]


def test_a_list_of_one_namespace_leaves_the_others_alone() -> None:
    cache = Cache()
    cache.put_run(run(10))
    assert cache.sweep_runs(set(), "50", "elsewhere") == []
    assert cache.sweep_runs(set(), "50", "team") == [KEY]


def test_a_foreign_job_is_kept_under_the_run_whose_name_it_took() -> None:
    from itrain_operator.kubeobserve import parse_job

    cache = Cache()
    foreign = job(5)
    foreign["metadata"]["labels"] = {}
    cache.note_job(KEY, parse_job(foreign))
    assert [record.uid for record in cache.jobs(KEY)] == ["j1"]
    cache.set_jobs(KEY, [])
    assert [record.uid for record in cache.jobs(KEY)] == ["j1"], "a list by label says nothing about it"


def test_runs_are_counted_by_phase() -> None:
    cache = Cache()
    cache.put_run(run(1))
    other = run(2, uid="u2", status={"phase": "Failed"})
    other["metadata"]["name"] = "other"
    cache.put_run(other)
    assert cache.phases() == {"Pending": 1, "Failed": 1}
