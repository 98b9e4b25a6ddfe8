"""docs/extending.md and docs/architecture.md, followed: the code shown is run, the places named are there."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from itrain_contract.names import ExitCode
from itrain_contract.stageio import spec_slice
from itrain_contract.stages import StageKind, StageRef, stage_sequence, upstream
from itrain_contract.stagespec import EvaluateStage, RolloutStage, Stages
from itrain_operator.policies import POLICIES
from itrain_operator.sequence import order_key
from itrain_operator.settings import OperatorSettings
from itrain_pipeline.engine import open_engine
from itrain_pipeline.errors import ConfigError, PermanentError
from itrain_pipeline.evaluating.__main__ import main
from itrain_pipeline.ports import Engine, SamplingParams
from itrain_pipeline.records import Prediction, PreferencePair, read_jsonl
from itrain_pipeline.stages import rollout
from itrain_pipeline.stopsignal import StopFlag
from itrain_testing.builders import make_spec
from itrain_testing.docs import ROOT
from itrain_testing.fakestage import DyingStore, Killed, World
from itrain_testing.rollout_inputs import rollout_input, toolworld_examples, upstream_results
from itrain_testing.stageports import folder_ports
from itrain_testing.tiny_model import write_tiny_model

EXTENDING = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ENGINE, STAGE = re.findall(r"^```python\n(.*?)^```$", EXTENDING, flags=re.MULTILINE | re.DOTALL)
PROMPT = (1, 4, 25, 26, 27, 5)
WRONG = """

def open_nothing(model_dir, **settings):
    return {}


def open_broken(model_dir, **settings):
    return settings["nothing"]
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The page's engine as an installed module; its name is new, so that no other test's is found."""
    name = f"plain_engine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / f"{name}.py").write_text(ENGINE + WRONG, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return name


def new_world(folder: Path) -> World:
    folder.mkdir()
    return World(folder=folder)


def stage_function(text: str) -> Any:
    names: dict[str, Any] = {}
    exec(compile(text, "docs/extending.md", "exec"), names)
    return names["run"]


def test_a_run_may_name_an_engine_of_a_package() -> None:
    assert RolloutStage(engine="my_package.engine:open_engine").engine == "my_package.engine:open_engine"
    for block in (RolloutStage, EvaluateStage):
        with pytest.raises(ValueError, match="engine"):
            block(engine="vlm")


def test_the_plain_engine_answers_as_our_own_does(package: str, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", context=64)
    plain, own = open_engine(f"{package}:open_engine", model), open_engine("transformers", model)
    assert isinstance(plain, Engine)
    greedy = SamplingParams(seeds=(0,), max_tokens=12, temperature=0.0, stop_token_ids=(2,))

    async def ask(engine: Engine) -> Any:
        (answer,) = await engine.generate(PROMPT, greedy)
        options = await engine.option_logprobs(PROMPT, [40, 41])
        await engine.aclose()
        return answer, options

    (answer, options), (wanted, wanted_options) = asyncio.run(ask(plain)), asyncio.run(ask(own))
    assert (answer.token_ids, answer.finish_reason) == (wanted.token_ids, wanted.finish_reason)
    assert answer.logprobs == pytest.approx(wanted.logprobs, abs=1e-4)
    assert options == pytest.approx(wanted_options, abs=1e-4)
    with pytest.raises(PermanentError, match="leaves no room"):
        asyncio.run(plain.generate([1] * 64, greedy))


def test_a_rollout_runs_on_the_plain_engine(package: str, tmp_path: Path) -> None:
    stage = {"engine": f"{package}:open_engine", "maxAnswerTokens": 24, "simulations": 2, "certainty": "none"}
    output = rollout.run(
        rollout_input({**stage, "reward": "rule", "maxOverlap": 1.0}),
        folder_ports(tmp_path / "run", upstream_results(tmp_path, toolworld_examples(2))),
    )
    assert (output.counters["trees"], output.counters["failed_trees"]) == (2, 0)
    assert output.counters["decoded"] > 0
    assert len(list(read_jsonl(output.outputs["pairs.jsonl"], PreferencePair))) == output.counters["pairs"]


def test_an_evaluation_runs_on_the_plain_engine(package: str, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", context=16_384)
    command = [str(model), "--categories", "simple_python", "--limit", "2", "--max-new-tokens", "4", "--plain"]
    answers = []
    for engine in (f"{package}:open_engine", "transformers"):
        out = tmp_path / engine.partition(":")[0]
        assert main([*command, "--precision", "fp32", "--engine", engine, "--out", str(out)]) == ExitCode.DONE
        (file,) = out.rglob("predictions.jsonl")
        answers.append([(p.id, p.output) for p in read_jsonl(file, Prediction)])
    assert len(answers[0]) == 2
    assert answers[0] == answers[1]


def test_the_conformance_suite_takes_an_engine_by_its_name(package: str) -> None:
    (command,) = re.findall(r"^ITRAIN_TEST_ENGINES=\S+ (.+)$", EXTENDING, flags=re.MULTILINE)
    site = importlib.import_module(package).__file__ or ""
    environ = {**os.environ, "ITRAIN_TEST_ENGINES": f"{package}:open_engine", "PYTHONPATH": str(Path(site).parent)}
    chosen = [*shlex.split(command)[1:], "-k", f"equals_the_plain_loop and {package}", "--no-header", "-q"]
    done = subprocess.run([sys.executable, *chosen], cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "1 passed" in done.stdout


def test_an_engine_that_is_none_is_named(package: str, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    for name, words in (
        ("no_such_package:open", "cannot be imported here"),
        (f"{package}:nothing", "cannot be imported here"),
        (f"{package}:torch", "is a module, expected a factory"),
        (f"{package}:open_nothing", "made a dict, which lacks an Engine's parts"),
        (f"{package}:open_broken", "cannot be opened: KeyError: 'nothing'"),
    ):
        with pytest.raises((ConfigError, PermanentError), match=f"engine '{name}'.*{words}"):
            open_engine(name, model)


def test_the_pages_stage_ends_with_its_result_and_survives_being_killed_between_any_two_writes(tmp_path: Path) -> None:
    run = stage_function(STAGE)
    world = new_world(tmp_path / "whole")
    assert world.run(world.stage_input(), run) == 0
    assert world.termination().metrics == {"mine/total": 5.0}
    for survived in range(8):
        world = new_world(tmp_path / f"killed-{survived}")
        try:
            world.run(world.stage_input(), run, wrap=lambda inner, left=survived: DyingStore(inner, survives=left))
        except Killed:
            assert world.result(world.stage_input()) is None
        assert world.run(world.stage_input(attempt=2), run) == 0
        result = world.result(world.stage_input(attempt=2))
        assert result is not None
        assert result.metrics == {"mine/total": 5.0}


def test_the_pages_stage_saves_when_it_is_asked_to_stop(tmp_path: Path) -> None:
    world, stop = World(folder=tmp_path), StopFlag()
    stop.set()
    assert world.run(world.stage_input(), stage_function(STAGE), stop=stop) == 143


def places() -> dict[str, str]:
    rows = re.findall(r"^\| (`[^|]+) \| ([^|]+) \|$", EXTENDING, flags=re.MULTILINE)
    return dict(rows)


def test_every_place_that_a_new_stage_touches_is_there_and_has_what_is_said() -> None:
    folder = Path()
    for where, what in places().items():
        for name in re.findall(r"`([^`]+)`", where):
            path = ROOT / name if "/" in name else folder / name
            folder = path.parent
            assert path.exists(), where
            if path.is_file():
                text = path.read_text(encoding="utf-8")
                assert [word for word in re.findall(r"`(\w+)`", what) if not re.search(rf"\b{word}\b", text)] == []


@pytest.mark.parametrize("kind", list(StageKind))
def test_every_stage_stands_in_every_place(kind: StageKind) -> None:
    spec = make_spec()
    assert kind in [ref.kind for ref in stage_sequence(spec)]
    assert kind.value in Stages.model_fields
    assert spec_slice(spec, kind)["seed"] == spec.seed
    entry = importlib.import_module(f"itrain_pipeline.stages.{kind.value}").run
    assert list(inspect.signature(entry).parameters)[:2] == ["stage_input", "ports"]
    assert getattr(OperatorSettings().images.stages, kind.value)


def test_the_order_of_stages_and_what_they_read_agree() -> None:
    sequence = stage_sequence(make_spec())
    assert [order_key(ref) for ref in sequence] == sorted(order_key(ref) for ref in sequence)
    for at, ref in enumerate(sequence):
        read = upstream(ref, sequence[:at])
        assert set(read) <= set(sequence[:at])
        assert not at or StageRef(kind=StageKind.PREPARE) in read


def test_every_module_that_the_architecture_names_is_there() -> None:
    modules = {path.name for package in ("crds", "operator", "pipeline") for path in (ROOT / package).rglob("*.py")}
    named = set(re.findall(r"`(?:\w+/)?(\w+\.py)`", ARCHITECTURE))
    assert len(named) > 15
    assert named <= modules


def test_the_layers_of_the_architecture_are_those_that_the_linter_holds() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["name"] == "Pipeline layers"]
    assert " > ".join(layers) in ARCHITECTURE


def test_the_order_of_checks_is_the_one_that_the_architecture_tells() -> None:
    checks = ", ".join(check.__name__.removeprefix("check_") for check in POLICIES)
    assert f"`{checks}`" in " ".join(ARCHITECTURE.split())
