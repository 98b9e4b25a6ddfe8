"""The `itrain` command: what it prints and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from itrain_operator.cli import main
from itrain_operator.cli_local import RunOptions, run_locally
from itrain_testing.localruns import LocalWorld, run_document

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "crds/examples").glob("*.yaml"))
BROKEN = sorted((ROOT / "tests/data/broken").glob("*.yaml"))


def call(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def finished(path: Path) -> LocalWorld:
    document = run_document()
    document["spec"]["storage"]["uri"] = str(path / "artifacts")
    metrics = {"dev/call_accuracy": 0.5, "dev/call_accuracy_se": 0.02, "dev/call_n": 300}
    here = LocalWorld(path, document, {"evaluate": {"metrics": metrics}})
    assert run_locally(RunOptions(file=here.file, folder=here.folder), here.environ) == 0
    return here


def test_every_example_is_valid(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "validate", *EXAMPLES)
    assert code == 0
    assert out.count(": valid (") == len(EXAMPLES)


@pytest.mark.parametrize("file", BROKEN, ids=lambda p: p.stem)
def test_every_broken_file_gives_field_value_and_what_is_allowed(
    capsys: pytest.CaptureFixture[str], file: Path
) -> None:
    code, out, _ = call(capsys, "validate", file)
    assert code == 64
    for line in out.splitlines():
        assert line.startswith(f"{file}: line ")
        assert "got " in line
        assert "allowed: " in line


def test_validate_in_json_names_each_problem(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "validate", "-o", "json", BROKEN[0], EXAMPLES[0])
    found = json.loads(out)
    assert (code, found["valid"], len(found["problems"])) == (64, False, 1)
    assert found["problems"][0]["field"] == "spec.model"


def test_a_file_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "validate", "nowhere.yaml")
    assert (code, err) == (64, "itrain: nowhere.yaml: No such file or directory\n")


def test_plan_lists_every_stage_with_its_pods_and_a_bound(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "plan", ROOT / "crds/examples/itool-8b.yaml")
    assert code == 0
    assert "i3/rollout" in out
    assert "16 stages, 58 pods, at most 8 GPUs at a time" in out  # 3 + 3 × (8 + 8 + 1 + 1) + 1 pods
    assert "at most 240.0 GPU-hours (maxGpuHours)" in out


def test_plan_explains_what_each_stage_reads(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "plan", ROOT / "crds/examples/tiny.yaml", "--explain")
    train = next(line for line in out.splitlines() if line.startswith("i1/train"))
    assert train.split()[-3:] == ["i0/prepare", "i0/warmup", "i1/rollout"]
    assert "no stage asks for a GPU" in out


def test_plan_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "plan", ROOT / "crds/examples/short.yaml", "-o", "json")
    made = json.loads(out)
    assert made["gpuHoursBound"] is None
    assert made["boundBy"] == "set maxGpuHours or activeDeadlineSeconds"
    assert [s["stage"] for s in made["stages"][:3]] == ["prepare", "warmup", "evaluate"]


def test_run_without_local_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "run", EXAMPLES[0])
    assert code == 64
    assert "--local" in err


def test_run_of_a_broken_file_starts_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = call(capsys, "run", BROKEN[0], "--local", "--dir", tmp_path / "state")
    assert code == 64
    assert "spec.model" in err
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("iterations.max", "path=value"),
        ("iterations.max=-1", "spec.iterations.max: got -1, allowed: at least 0"),
        ("iterations.maxx=1", "did you mean max?"),
        ("seed=[", "a YAML value after the ="),
    ],
)
def test_a_bad_setting_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path, setting: str, words: str) -> None:
    here = LocalWorld(tmp_path, run_document())
    code, _, err = call(capsys, "run", here.file, "--local", "--dir", here.folder, "--set", setting)
    assert code == 64
    assert words in err


def test_status_tells_stages_and_the_learning_curve(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    here = finished(tmp_path)
    code, out, _ = call(capsys, "status", here.folder)
    assert code == 0
    assert "demo  Succeeded" in out
    assert "iteration 1    0.500 ± 0.020    300" in out


def test_status_in_json_is_the_resource(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    here = finished(tmp_path)
    _, out, _ = call(capsys, "status", here.folder, "-o", "json")
    found = json.loads(out)
    assert (found["kind"], found["status"]["phase"], found["process"]) == ("ITrainRun", "Succeeded", None)
    assert [point["point"] for point in found["points"]] == ["base", "iteration_1"]


def test_status_of_a_folder_without_a_run_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = call(capsys, "status", tmp_path / "nothing")
    assert code == 64
    assert "no run in" in err


def test_logs_show_a_stage_and_a_shard(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    here = finished(tmp_path)
    assert call(capsys, "logs", here.folder)[1] == "i0/export starts\n"
    assert call(capsys, "logs", here.folder, "--stage", "i1/score", "--shard", "1")[1] == "i1/score starts\n"
    code, _, err = call(capsys, "logs", here.folder, "--stage", "i9/score")
    assert (code, "no log of stage i9/score" in err) == (64, True)


def test_logs_in_json_are_a_line_each(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    here = finished(tmp_path)
    out = call(capsys, "logs", here.folder, "--stage", "i1/score", "-o", "json")[1]
    assert [(json.loads(line)["shard"], json.loads(line)["line"]) for line in out.splitlines()] == [
        (0, "i1/score starts"),
        (1, "i1/score starts"),
    ]


def test_purge_asks_then_deletes_artifacts_and_state(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    here = finished(tmp_path)
    (root,) = (tmp_path / "artifacts").iterdir()
    (root / "model.safetensors").write_text("weights")
    (tmp_path / "artifacts/another-run").mkdir()
    code, _, err = call(capsys, "purge", here.folder)
    assert (code, "add --yes" in err, root.exists()) == (64, True, True)
    code, out, _ = call(capsys, "purge", here.folder, "--yes")
    assert (code, out) == (0, f"deleted what was below {root.as_uri()}/\n")
    assert [path.name for path in (tmp_path / "artifacts").iterdir() if any(path.rglob("*"))] == []
    assert (tmp_path / "artifacts/another-run").exists()
    assert call(capsys, "status", here.folder)[0] == 64


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "version")
    assert (code, out.startswith("itrain 0.")) == (0, True)
