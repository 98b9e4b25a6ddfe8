"""`itrain report --compare` over a real S3 server: runs from buckets, beside one on disk, and what goes wrong there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from itrain_operator.cli import main
from itrain_operator.cli_compare import place_of
from itrain_operator.localstate import StateFolder
from itrain_pipeline.store import open_store
from itrain_testing.comparedruns import write_run
from itrain_testing.reports import report_data
from itrain_testing.s3server import S3Server


def to_bucket(state: StateFolder, bucket: str, environ: Mapping[str, str]) -> StateFolder:
    """The run as if it had been stored in the bucket: its objects, their URIs, and the spec."""
    local = place_of(state).root
    stored = state.run()
    storage = stored.spec.storage.model_copy(update={"uri": f"{bucket}team"})
    state.save_run(stored.model_copy(update={"spec": stored.spec.model_copy(update={"storage": storage})}))
    root = place_of(state).root
    store, folder = open_store(root, environ), Path(local.removeprefix("file://"))
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        if path.name == "result.json":
            data = data.replace(local.encode(), root.encode())
        store.put_bytes(data, root + path.relative_to(folder).as_posix())
        path.unlink()
    return state


@pytest.fixture(scope="module")
def runs(server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`one` and `two` in buckets of their own, `three` on disk."""
    folder = tmp_path_factory.mktemp("runs")
    for name, chance in (("one", 0.6), ("two", 0.9), ("three", 0.7)):
        state = write_run(folder / name, report_data((0.4, chance), seed=len(name)), seed=len(name))
        if name != "three":
            to_bucket(state, server.create_bucket(f"runs-{name}"), server.environ)
    return folder


def compare(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, environ: Mapping[str, str], *runs: Path
) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    monkeypatch.chdir(runs[0].parent)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["report", "--compare", *map(str, runs)])
    out, err = capfd.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.mark.parametrize("names", [("one", "two"), ("three", "one", "two")])
def test_runs_in_buckets_become_one_page(
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    server: S3Server,
    runs: Path,
    names: tuple[str, ...],
) -> None:
    found = compare(capfd, monkeypatch, server.environ, *(runs / name for name in names))
    assert found == (0, "comparison.html\n", "")
    page = (runs / "comparison.html").read_text(encoding="utf-8")
    assert f"comparison of {', '.join(names)}" in page
    assert ">160</td>" in page, "every call is shared: items are the same by content"
    (runs / "comparison.html").unlink()


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, 64, "refused"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, 64, "refused"),
    ],
)
def test_a_bucket_that_cannot_be_read_is_one_line_and_a_code(
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    server: S3Server,
    runs: Path,
    changes: dict[str, str],
    code: int,
    words: str,
) -> None:
    found, out, err = compare(capfd, monkeypatch, {**server.environ, **changes}, runs / "one", runs / "two")
    assert (found, out) == (code, "")
    assert words in err
    assert err.count("\n") == 1
    assert server.environ["AWS_SECRET_ACCESS_KEY"] not in err
    assert not (runs / "comparison.html").exists()


def test_an_object_that_was_changed_in_the_bucket_is_named(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, server: S3Server, tmp_path: Path
) -> None:
    """Of a run whose files no other has: a file of the same digest that was read before is not read again."""
    for seed, name in enumerate(("left", "right")):
        state = write_run(tmp_path / name, report_data((0.4, 0.6), seed=seed), seed=seed)
        to_bucket(state, server.create_bucket(f"changed-{name}"), server.environ)
    root = place_of(state).root
    store = open_store(root, server.environ)
    (uri,) = [uri for uri in store.list(root) if uri.endswith("i0/evaluate/a1/predictions-base.jsonl")]
    store.put_bytes((store.get_bytes(uri) or b"") + b" ", uri)
    found, out, err = compare(capfd, monkeypatch, server.environ, tmp_path / "left", tmp_path / "right")
    assert (found, out) == (65, "")
    assert f"{uri} has sha256" in err
    assert err.count("\n") == 1
