"""The stage process as a process: its command line, its signals, what it imports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from itrain_contract.stageio import StageInput
from itrain_contract.stages import StageKind
from itrain_pipeline.__main__ import spare_the_compiler
from itrain_pipeline.ports import Ports, StageOutput
from itrain_pipeline.store import open_store
from itrain_testing.fakestage import World

MODULE = [sys.executable, "-m", "itrain_pipeline"]


def call(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MODULE, *arguments], env={**os.environ, **environ}, capture_output=True, text=True, timeout=120, check=False
    )


IMPORTED = """
import sys
from itrain_pipeline import __main__
__main__.build_parser().parse_args(["prepare"])
heavy = {"torch", "transformers", "boto3", "numpy", "matplotlib", "jinja2"} & set(sys.modules)
sys.exit(f"imported too early: {sorted(heavy)}" if heavy else 0)
"""


def test_the_command_line_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


WITHOUT_COMPILER = """
import os, sys
from itrain_pipeline.__main__ import spare_the_compiler
spare_the_compiler(os.environ, ())
import peft
sys.exit("torch's compiler was loaded" if "torch._inductor.compile_fx" in sys.modules else 0)
"""


def test_without_a_gpu_no_stage_loads_the_compiler() -> None:
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_COMPILER]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def test_with_a_gpu_and_where_the_user_decides_the_compiler_stays(tmp_path: Path) -> None:
    with_gpu: dict[str, str] = {}
    spare_the_compiler(with_gpu, [str(tmp_path)])
    assert with_gpu == {}
    decided = {"TORCHDYNAMO_DISABLE": "0"}
    spare_the_compiler(decided, ())
    assert decided == {"TORCHDYNAMO_DISABLE": "0"}


def test_the_help_names_every_stage() -> None:
    done = call("--help")
    assert done.returncode == 0
    assert all(kind.value in done.stdout for kind in StageKind)


def test_a_stage_without_input_ends_with_64_and_says_what_to_set(tmp_path: Path) -> None:
    done = call("prepare", ITRAIN_STAGE_INPUT="", ITRAIN_TERMINATION_LOG=str(tmp_path / "message"))
    assert done.returncode == 64
    assert "set ITRAIN_STAGE_INPUT" in done.stderr
    assert json.loads((tmp_path / "message").read_text())["exitCode"] == 64


def test_a_stage_that_is_done_ends_with_0_without_importing_its_module(tmp_path: Path) -> None:
    world = World(folder=tmp_path)
    assert world.run(world.stage_input(StageKind.TRAIN, iteration=1)) == 0
    done = call("train", "--input", str(tmp_path / "input.json"), ITRAIN_TERMINATION_LOG=str(tmp_path / "message"))
    assert done.returncode == 0, done.stderr
    assert "is done already" in done.stderr
    assert json.loads((tmp_path / "message").read_text())["metrics"] == {"loss": 0.5}


def test_an_input_for_another_stage_ends_with_64(tmp_path: Path) -> None:
    world = World(folder=tmp_path)
    world.run(world.stage_input(StageKind.TRAIN, iteration=1))
    done = call("score", "--input", str(tmp_path / "input.json"))
    assert done.returncode == 64
    assert "is for train, this process runs score" in done.stderr


PATIENT = """
import os, sys, time
from pathlib import Path
from itrain_contract.stageio import StageInput
from itrain_contract.stages import StageKind
from itrain_pipeline.__main__ import spare_the_compiler
from itrain_pipeline.ports import Ports, StageOutput
from itrain_pipeline.errors import Interrupted
from itrain_pipeline.runtime import Process, configure_logging, run_stage
from itrain_pipeline.stopsignal import StopFlag

def patient(stage_input, ports):
    checkpoint = ports.work.local / "step"
    print("running", flush=True)
    while not ports.stop.is_set():
        time.sleep(0.01)
    checkpoint.write_text("12")
    ports.work.put("step", checkpoint)
    raise Interrupted("stopped at step 12")

configure_logging()
stop = StopFlag()
stop.install()
sys.exit(run_stage(StageKind.WARMUP, Process(environ=os.environ, load_stage=lambda kind: patient, stop=stop)))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_saves_and_ends_with_143(tmp_path: Path, number: signal.Signals) -> None:
    world = World(folder=tmp_path)
    stage_input = world.stage_input()
    (tmp_path / "input.json").write_text(stage_input.model_dump_json(by_alias=True))
    environ = {
        **os.environ,
        "ITRAIN_STAGE_INPUT": str(tmp_path / "input.json"),
        "ITRAIN_TERMINATION_LOG": str(tmp_path / "message"),
    }
    with subprocess.Popen([sys.executable, "-c", PATIENT], env=environ, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "running\n"
        child.send_signal(number)
        assert child.wait(timeout=60) == 143
    assert open_store(world.storage).get_bytes(stage_input.work_prefix + "step") == b"12"
    assert json.loads((tmp_path / "message").read_text())["message"] == "stopped at step 12"


def test_show_result_prints_a_result_or_says_that_there_is_none(tmp_path: Path) -> None:
    world = World(folder=tmp_path)
    stage_input = world.stage_input()
    missing = call("show-result", "--prefix", stage_input.output_prefix)
    assert missing.returncode == 65
    assert "the attempt did not finish" in missing.stderr
    world.run(stage_input)
    shown = call("show-result", "--prefix", stage_input.output_prefix.rstrip("/"))
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["metrics"] == {"loss": 0.5}


def test_fetch_copies_a_verified_output_or_says_what_there_is(tmp_path: Path) -> None:
    world = World(folder=tmp_path)
    stage_input = world.stage_input()
    world.run(stage_input)
    prefix, out = stage_input.output_prefix, tmp_path / "out" / "copy"
    unknown = call("fetch", "--prefix", prefix, "--name", "report.html", "--out", str(out))
    assert unknown.returncode == 65
    assert "has no output 'report.html', it has adapter/" in unknown.stderr
    name = "adapter/adapter_model.safetensors"
    done = call("fetch", "--prefix", prefix, "--name", name, "--out", str(out))
    assert done.returncode == 0, done.stderr
    stored = Path(prefix.removeprefix("file://")) / name
    assert out.read_bytes() == stored.read_bytes()
    out.unlink()
    stored.write_bytes(b"other")
    spoilt = call("fetch", "--prefix", prefix, "--name", name, "--out", str(out))
    assert spoilt.returncode == 65
    assert "expected" in spoilt.stderr
    assert not out.exists()


def test_purge_deletes_a_run_and_refuses_what_is_not_one(tmp_path: Path) -> None:
    world = World(folder=tmp_path)
    world.run(world.stage_input())
    refused = call("purge", "--run-root", world.storage)
    assert refused.returncode == 64
    assert "is not a run's folder" in refused.stderr
    assert open_store(world.storage).list(world.storage + "/") != []
    done = call("purge", "--run-root", world.identity.layout.root)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "storage").iterdir()) == []


def test_a_report_on_nothing_is_a_data_error(tmp_path: Path) -> None:
    done = call("report", "--run-root", f"file://{tmp_path}/quick-12345678", "--out", str(tmp_path / "report.html"))
    assert done.returncode == 65
    assert "has no finished stage" in done.stderr
    assert not (tmp_path / "report.html").exists()


def test_a_report_is_made_from_the_results_of_a_run(tmp_path: Path) -> None:
    world = World(folder=tmp_path)

    def trains(given: StageInput, ports: Ports) -> StageOutput:
        path = ports.scratch / "log.jsonl"
        path.write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 1.5}\n')
        return StageOutput(outputs={"log.jsonl": path}, metrics={"loss": 1.5})

    assert world.run(world.stage_input(), trains) == 0
    done = call("report", "--run-root", world.identity.layout.root, "--out", str(tmp_path / "made" / "report.html"))
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "made" / "report.html").read_text()
    assert "<svg" in page
    assert "quick" in page
