"""Training on two nodes, each a stage process of its own: what one process learns, and one end for both."""

from __future__ import annotations

import math
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from itrain_contract.stageio import StageResult
from itrain_testing.learning import without_padding
from itrain_testing.trainnodes import MakeWorld, adapter_file, wait_until

pytestmark = pytest.mark.e2e

LONG = {"nodes": 2, "maxSteps": 20_000, "checkpointSteps": 1}
"""A training that does not end by itself."""


def assert_learned_the_same(found: StageResult, expected: StageResult) -> None:
    assert (found.info["nodes"], found.info["processes"]) == ("2", "2")
    assert without_padding(found.counters) == without_padding(expected.counters)
    assert found.metrics == pytest.approx(expected.metrics, rel=1e-3, abs=1e-4)
    weights, wanted = (load_file(adapter_file(result)) for result in (found, expected))
    for name in wanted:
        assert (weights[name] - wanted[name]).abs().max().item() < 1e-4, name


def test_two_nodes_train_the_adapter_of_one_process_stopped_and_resumed_too(world: MakeWorld) -> None:
    one = world("one", {"epochs": 16})
    assert one.run(0) == [0], one.logs()

    plain = world("plain", {"epochs": 16, "nodes": 2, "deepspeed": "none"})
    assert plain.run(0, 1) == [0, 0], plain.logs()
    assert_learned_the_same(plain.result(), one.result())

    two = world("two", {"epochs": 16, "nodes": 2, "checkpointSteps": 3})
    nodes = [two.start(0), two.start(1)]
    wait_until(lambda: bool(two.checkpoints()), 120, two.logs)
    nodes[1].send_signal(signal.SIGTERM)  # one node is drained: both save and end
    assert two.wait(nodes) == [143, 143], two.logs()
    (step,) = two.checkpoints()
    assert 3 <= step < 44
    assert two.run(0, 1, attempt=2) == [0, 0], two.logs()
    assert f"resuming from step {step}" in two.log(1).read_text()
    assert_learned_the_same(two.result(attempt=2), one.result())
    assert two.termination(1).metrics == two.termination(0).metrics == two.result(attempt=2).metrics


@pytest.mark.parametrize("killed", [0, 1])
def test_a_node_that_is_killed_ends_the_other_with_75_and_leaves_a_checkpoint(world: MakeWorld, killed: int) -> None:
    two = world("two", LONG)
    nodes = [two.start(0), two.start(1)]
    wait_until(lambda: bool(two.checkpoints()), 120, two.logs)
    nodes[killed].kill()
    assert two.wait([nodes[1 - killed]], within_s=45) == [75], two.logs()
    assert two.termination(1 - killed).exit_code == 75
    assert two.checkpoints()


def test_a_node_that_falls_silent_ends_the_other_with_75(world: MakeWorld) -> None:
    two = world("two", LONG)
    nodes = [two.start(0), two.start(1)]
    wait_until(lambda: bool(two.checkpoints()), 120, two.logs)
    nodes[1].send_signal(signal.SIGSTOP)
    assert two.wait([nodes[0]], within_s=90) == [75], two.logs()
    assert "node 1 has been silent" in two.termination(0).message
    nodes[1].send_signal(signal.SIGCONT)
    assert two.wait([nodes[1]], within_s=45) == [75], two.logs()


def test_a_rank_that_diverges_ends_every_node_with_its_exit_code_and_words(world: MakeWorld, model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    two = world("two", {"nodes": 2, "deepspeed": "none"})
    assert two.run(0, 1) == [70, 70], two.logs()
    for rank in (0, 1):
        assert "the loss of step 1 is nan: training diverged" in two.termination(rank).message


def test_a_node_that_waits_for_the_others_stops_when_asked(world: MakeWorld) -> None:
    two = world("two", {"nodes": 2})
    first, second = two.start(0), two.start(1)
    second.kill()
    with pytest.raises(AssertionError):
        two.wait([first], within_s=12)
    first.send_signal(signal.SIGTERM)
    assert two.wait([first], within_s=30) == [143], two.logs()
