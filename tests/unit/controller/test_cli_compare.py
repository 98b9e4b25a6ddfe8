"""`itrain report --compare`: which runs are meant, and one line and a code for what cannot be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from itrain_operator.cli import main
from itrain_operator.cli_compare import labels_of, place_of
from itrain_operator.clusteraccess import ClusterError
from itrain_operator.clusterruns import ClusterRun, read_run
from itrain_testing.comparedruns import one_point, write_run
from itrain_testing.localruns import run_document
from itrain_testing.reports import report_data

DATA = report_data((0.4, 0.6), seed=5)
NO_BFCL = one_point("other", [True, False])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on the same items, one on others under the same ids, one that has not got so far."""
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "one", DATA, seed=1)
    write_run(folder / "two", report_data((0.4, 0.9), seed=6), seed=2)
    only_dev = report_data((0.4,), points=NO_BFCL.points)
    write_run(folder / "mine", only_dev)
    write_run(folder / "other", only_dev, dev={f"call_{at}": "another question" for at in range(2)})
    write_run(folder / "young", DATA, evaluated=False)
    return folder


@pytest.fixture
def runs(written: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("KUBECONFIG", "ITRAIN_PYTHON", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    return written


def call(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    return int(ended.value.code or 0), out, err


def test_two_runs_become_one_page(capfd: pytest.CaptureFixture[str], runs: Path) -> None:
    code, out, err = call(capfd, "report", "--compare", runs / "one", runs / "two")
    assert (code, out, err) == (0, "comparison.html\n", "")
    page = Path("comparison.html").read_text(encoding="utf-8")
    assert "comparison of one, two" in page
    assert ">seed</th>" in page
    assert "stages.train" not in page, "only what differs"


def test_the_page_goes_where_it_is_asked_to(capfd: pytest.CaptureFixture[str], runs: Path, tmp_path: Path) -> None:
    code, out, _ = call(
        capfd, "report", runs / "one", runs / "two", "--compare", "--out", tmp_path / "x.html", "-o", "json"
    )
    assert code == 0
    assert f'"report": "{tmp_path / "x.html"}"' in out
    assert (tmp_path / "x.html").is_file()


@pytest.mark.parametrize(
    ("names", "code", "words"),
    [
        (("one", "young"), 65, "young has no evaluated point yet"),
        (
            ("mine", "other"),
            65,
            "mine and other have no item of dev/call_accuracy in common (2 and 2 items, by content)",
        ),
        (("one", "nowhere"), 64, "nowhere"),
        (("one", "one"), 64, "--compare names one run twice"),
    ],
)
def test_what_cannot_be_compared_is_one_line_and_a_code(
    capfd: pytest.CaptureFixture[str], runs: Path, names: tuple[str, ...], code: int, words: str
) -> None:
    found, out, err = call(capfd, "report", "--compare", *(runs / name for name in names))
    assert (found, out) == (code, "")
    assert err.startswith("itrain: ")
    assert words in err
    assert err.count("\n") == 1
    assert not Path("comparison.html").exists()


@pytest.mark.parametrize(("flag", "names"), [(("--compare",), ("one",)), (("--compare",), ()), ((), ("one", "two"))])
def test_the_wrong_number_of_runs_is_wrong_usage(
    capfd: pytest.CaptureFixture[str], runs: Path, flag: tuple[str, ...], names: tuple[str, ...]
) -> None:
    code, out, err = call(capfd, "report", *flag, *(runs / name for name in names))
    assert (code, out) == (2, "")
    assert "--compare" in err


def test_the_report_of_a_run_without_results_has_the_code_of_wrong_data(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    state = write_run(tmp_path / "empty", DATA, evaluated=False)
    for result in (tmp_path / "empty").rglob("result.json"):
        result.unlink()
    code, _, err = call(capfd, "report", state.path)
    assert code == 65
    assert "has no finished stage to report on" in err


def test_labels_are_short_where_that_tells_runs_apart() -> None:
    assert labels_of(["build/a", "runs/b"]) == ["a", "b"]
    assert labels_of(["build/a", "runs/a"]) == ["build/a", "runs/a"]


def stored(**storage: Any) -> ClusterRun:
    document = run_document()
    document["metadata"] |= {"uid": "0f1e2d3c-aaaa", "namespace": "team"}
    document["spec"]["storage"] = storage
    return read_run(document)


def test_a_run_in_the_cluster_is_read_from_its_bucket() -> None:
    place = place_of(stored(uri="s3://bucket/prefix"))
    assert (place.root, place.remote) == ("s3://bucket/prefix/demo-0f1e2d3c/", True)
    assert place.spec["stages"]["train"]["beta"] == 2.5, "defaults stand in it"


def test_a_run_on_a_volume_claim_is_refused() -> None:
    with pytest.raises(ClusterError, match="demo lies on a volume claim, which this machine cannot read"):
        place_of(stored(pvc={"claimName": "x"}))
