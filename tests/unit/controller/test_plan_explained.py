"""`itrain plan --explain`: what a run will cost, what that rests on, and where measurements come in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from itrain_contract.measurements import EngineProfile, RunStatistics
from itrain_operator.cli import main
from itrain_operator.cli_plan import MEASURED_HERE, shipped

EXAMPLES = Path(__file__).parents[3] / "crds/examples"
PAPER = (EXAMPLES / "itool-paper.yaml", "--rows", "100000", "--prompt-tokens", "805", "--answer-tokens", "31")


def call(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, standard output, standard error of `itrain plan … --explain`."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--explain", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def cost(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    code, out, err = call(capsys, *arguments, "-o", "json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)["cost"]
    return found


def stage(costs: dict[str, Any], kind: str, iteration: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = next(s for s in costs["stages"] if (s["stage"], s["iteration"]) == (kind, iteration))
    return found


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda p: p.name)
def test_every_example_has_a_forecast(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    code, out, err = call(capsys, file, "--parameters", "8e9")
    assert code == 0, err
    assert "assumed  shards of equal work" in out


def test_the_tables_and_what_they_rest_on_fit_a_plain_page(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, EXAMPLES / "quickstart.yaml")
    assert "i2/rollout" in out.split("GPU-hours")[0] or "i2/rollout" in out
    table = [line for line in out.splitlines() if line.startswith(("i0/", "i1/", "i2/", "all "))]
    assert max(map(len, table)) <= 140
    for word in ("data     ", "trees    ", "machine  measured", "measurements that ship with itrain"):
        assert word in out


def test_the_papers_search_costs_a_fraction_of_its_seven_hours(capsys: pytest.CaptureFixture[str]) -> None:
    costs = cost(capsys, *PAPER)
    found = stage(costs, "rollout")
    assert found["rows"] == pytest.approx(10_000, abs=1)  # calls and texts are rounded up apart
    assert found["judgements"] > 10_000
    assert costs["profile"]["source"] == "estimated"
    assert costs["profile"]["device"] == "NVIDIA V100 32 GB"
    assert 60 < found["seconds"] < 3600
    assert found["gpuHours"] == pytest.approx(found["seconds"] * 8 / 3600, rel=0.01)


def test_enough_pairs_cut_the_search_short_and_the_plan_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (*PAPER, "--set", "stages.rollout.maxPairs=100")
    _, out, _ = call(capsys, *arguments)
    assert "rollout.maxPairs (100) is reached before all 10,000 selected rows are searched" in out
    assert stage(cost(capsys, *arguments), "rollout")["pairs"] == 100


def test_flags_replace_what_was_measured_and_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    costs = cost(capsys, *PAPER, "--call-share", "0.5")
    assert costs["data"]["train"] == 100_000
    assert costs["data"]["prompt"] == {"mean": 805.0}
    assert costs["given"] == ["--rows", "--prompt-tokens", "--answer-tokens", "--call-share"]
    assert stage(costs, "score")["scored"] == pytest.approx(100_000 * 836)


def test_the_rows_that_built_in_data_tell_are_counted_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    costs = cost(capsys, EXAMPLES / "tiny.yaml")
    assert (costs["data"]["train"], costs["data"]["dev"], costs["given"]) == (64, 16, ["the rows of spec.data"])
    assert costs["questions"]["dev"] == 16
    # The quickstart's are those that were measured.
    assert cost(capsys, EXAMPLES / "quickstart.yaml")["given"] == []
    split = cost(capsys, EXAMPLES / "tiny.yaml", "--set", "data.dev=null", "--set", "data.devFraction=0.25")
    assert (split["data"]["train"], split["data"]["dev"]) == (48, 16)
    flagged = cost(capsys, EXAMPLES / "tiny.yaml", "--rows", "640")
    assert (flagged["data"]["train"], flagged["data"]["dev"], flagged["given"]) == (
        640,
        16,
        ["the rows of spec.data", "--rows"],
    )
    other = cost(capsys, EXAMPLES / "tiny.yaml", "--set", "data.uri=s3://rows/all.jsonl")
    assert (other["data"]["train"], other["given"]) == (2_000, ["the rows of spec.data"])  # of dev alone


def test_a_measured_profile_is_taken_as_it_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ours = shipped(MEASURED_HERE, EngineProfile)
    twice = ours.model_copy(
        update={
            "rates": tuple(r.model_copy(update={"score_tokens_per_s": 2 * r.score_tokens_per_s}) for r in ours.rates)
        }
    )
    file = tmp_path / "mine.json"
    file.write_text(twice.model_dump_json(by_alias=True, exclude_none=True))
    before = stage(cost(capsys, EXAMPLES / "quickstart.yaml"), "score")["seconds"] - ours.start_s
    after = stage(cost(capsys, EXAMPLES / "quickstart.yaml", "--profile", file), "score")["seconds"] - ours.start_s
    assert after == pytest.approx(before / 2, rel=0.05)


def test_statistics_of_a_run_replace_the_shipped_ones(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = shipped("quickstart", RunStatistics)
    other = found.model_copy(update={"run": "mine", "data": found.data.model_copy(update={"train": 4_321})})
    file = tmp_path / "statistics.json"
    file.write_text(other.model_dump_json(by_alias=True, exclude_none=True))
    costs = cost(capsys, EXAMPLES / "quickstart.yaml", "--statistics", file)
    assert (costs["dataFrom"], costs["data"]["train"]) == ("run mine", 4_321)


PLUGGED = (
    EXAMPLES / "quickstart.yaml",
    "--set",
    'stages.evaluate={"gpus": 0, "benchmarks": ["apibank"], "apiBank": {"uri": "s3://bank/level-1-api.json"}, '
    '"plugins": [{"name": "acebench", "uri": "s3://ace"}]}',
)


def test_every_benchmark_is_counted_or_named_as_unknown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    without = cost(capsys, *PLUGGED)
    assert without["questions"] == {"apibank": 399, "acebench": None}
    assert stage(without, "evaluate")["requests"] == 399
    assert any(text.startswith("acebench: no questions, since") for text in without["assumed"])
    _, out, _ = call(capsys, *PLUGGED, "--questions", "acebench=601")
    assert "asked    of every point: apibank 399, acebench 601\n" in out
    assert "no questions, since" not in out
    assert stage(cost(capsys, *PLUGGED, "--questions", "acebench=601"), "evaluate")["requests"] == 1000
    file = tmp_path / "statistics.json"
    found = shipped("quickstart", RunStatistics).model_copy(update={"questions": {"acebench": 11, "dev": 200}})
    file.write_text(found.model_dump_json(by_alias=True, exclude_none=True))
    assert cost(capsys, *PLUGGED, "--statistics", file)["questions"] == {"apibank": 399, "acebench": 11}


@pytest.mark.parametrize("text", ["dev=5", "acebench", "acebench=-1", "acebench=1e3", f"acebench={'9' * 5000}"])
def test_questions_of_no_plug_in_or_of_no_number_are_one_line(capsys: pytest.CaptureFixture[str], text: str) -> None:
    code, out, err = call(capsys, *PLUGGED, "--questions", text)
    assert (code, out) == (64, "")
    assert "--questions: got" in err
    assert "NAME=N, NAME one of acebench" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--device", "abacus"), "--device: got abacus, allowed: v100, a100, h100, h200; or measure yours"),
        (("--device", "v100", "--parameters", "70e9"), "140 GB of weights leave no room on a NVIDIA V100 32 GB"),
    ],
)
def test_a_device_that_is_unknown_or_too_small_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    code, out, err = call(capsys, EXAMPLES / "itool-8b.yaml", *arguments)
    assert (code, out) == (64, "")
    assert words in err
    assert err.count("\n") == 1


def test_a_model_whose_size_nobody_tells_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, EXAMPLES / "quickstart.yaml", "--device", "h100")
    assert code == 64
    assert "add --parameters 8e9" in err


def test_a_file_that_is_no_profile_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    file.write_text('{"name": "x"}')
    code, _, err = call(capsys, EXAMPLES / "quickstart.yaml", "--profile", file)
    assert code == 64
    assert "p.json.model: got Field required, allowed: a EngineProfile" in err


def test_a_plan_without_explain_costs_nothing_and_says_nothing_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", str(EXAMPLES / "quickstart.yaml"), "-o", "json"])
    assert "cost" not in json.loads(capsys.readouterr().out)


def test_the_shipped_measurements_are_marked_as_measured() -> None:
    profile = shipped(MEASURED_HERE, EngineProfile)
    assert profile.source == "measured"
    assert profile.rates[0].threads == 1
    found = shipped("quickstart", RunStatistics)
    assert found.search is not None
    assert found.search.trees >= 30
