"""One node among several: who it is, what it may write, what it hears of the others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from itrain_contract.names import ENV_MASTER_ADDR, ENV_MASTER_PORT, ENV_SHARD, ENV_THREADS
from itrain_contract.stageio import StageInput
from itrain_contract.stages import StageKind
from itrain_pipeline.errors import ConfigError, Interrupted, PermanentError, RetryableError
from itrain_pipeline.learn import nodelink
from itrain_pipeline.learn.nodelink import NodeLink, NodeState, state_from_json
from itrain_pipeline.learn.ranks import Failure, first_cause, rank_environment
from itrain_pipeline.nodes import nodes_of
from itrain_pipeline.ports import Nodes, Ports, StageOutput
from itrain_testing.fakestage import DyingStore, World, adapter_stage
from itrain_testing.trainnodes import wait_until

SECOND = {ENV_SHARD: "1", ENV_MASTER_ADDR: "run-i1-train-a1-0.run-i1-train-a1", ENV_MASTER_PORT: "29500"}


def train_input(world: World, nodes: int = 2, attempt: int = 1) -> StageInput:
    made = world.stage_input(StageKind.TRAIN, iteration=1, attempt=attempt)
    return made.model_copy(update={"spec": {"stage": {"nodes": nodes}, "seed": 1}})


def test_the_completion_index_of_a_training_is_its_rank(tmp_path: Path) -> None:
    stage_input = train_input(World(folder=tmp_path))
    nodes = nodes_of(stage_input, SECOND, finished=lambda: True)
    assert (nodes.rank, nodes.count, nodes.address, nodes.port) == (1, 2, SECOND[ENV_MASTER_ADDR], 29500)
    assert nodes.session == f"{stage_input.digest[:16]}-a1"
    assert nodes_of(train_input(World(folder=tmp_path), nodes=1), SECOND, finished=lambda: True) == Nodes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({ENV_MASTER_ADDR: ""}, r"train\.nodes: got 2, allowed is 1"),
        ({ENV_SHARD: "2"}, "JOB_COMPLETION_INDEX is '2', train on 2 nodes expects 0 to 1"),
        ({ENV_SHARD: ""}, "JOB_COMPLETION_INDEX is ''"),
        ({ENV_MASTER_PORT: "0"}, "ITRAIN_MASTER_PORT is '0', expected 1 to 65535"),
    ],
)
def test_an_environment_that_names_no_place_among_the_nodes_is_a_configuration_error(
    tmp_path: Path, change: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        nodes_of(train_input(World(folder=tmp_path)), {**SECOND, **change}, finished=lambda: True)


def test_a_node_other_than_0_takes_no_lease_and_writes_no_result(tmp_path: Path) -> None:
    world = World(folder=tmp_path, environ=SECOND)
    stores: list[DyingStore] = []

    def nothing(stage_input: StageInput, ports: Ports) -> StageOutput:
        assert ports.nodes.rank == 1
        assert not ports.nodes.finished()
        return StageOutput()

    code = world.run(train_input(world), nothing, wrap=lambda s: stores.append(DyingStore(s)) or stores[-1])
    assert (code, stores[0].written) == (0, [])
    assert world.termination().message == "node 1 of 2 had nothing to do"


def test_a_node_other_than_0_ends_with_the_result_that_node_0_wrote(tmp_path: Path) -> None:
    first = World(folder=tmp_path, environ={**SECOND, ENV_SHARD: "0"})
    stage_input = train_input(first)
    assert first.run(stage_input) == 0
    second = World(folder=tmp_path, environ=SECOND)
    assert (second.run(stage_input), second.started) == (0, 0)
    assert second.termination().metrics == {"loss": 0.5}


def test_a_node_of_an_earlier_attempt_may_put_nothing_more(tmp_path: Path) -> None:
    first = World(folder=tmp_path, environ={**SECOND, ENV_SHARD: "0"})
    later = train_input(first, attempt=2)

    def dies(stage_input: StageInput, ports: Ports) -> StageOutput:
        raise RetryableError("killed")

    assert first.run(later, dies) == 75
    second = World(folder=tmp_path, environ=SECOND)
    assert second.run(train_input(second, attempt=1), adapter_stage) == 75
    assert "(attempt 2) took over this work" in second.termination().message
    assert second.started == 0


def test_ranks_are_numbered_through_the_nodes_and_share_their_threads() -> None:
    nodes = Nodes(rank=1, count=2, address="first.svc", port=29500)
    made = rank_environment({ENV_THREADS: "8"}, 3, 4, nodes)
    wanted = {"RANK": "7", "LOCAL_RANK": "3", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", ENV_THREADS: "2"}
    assert wanted.items() <= made.items()
    assert (made["MASTER_ADDR"], made["MASTER_PORT"]) == ("first.svc", "29500")
    assert rank_environment({}, 0, 4, Nodes(count=2, address="first.svc", port=29500))["MASTER_ADDR"] == "127.0.0.1"
    assert rank_environment({}, 1, 2, Nodes())["MASTER_PORT"] == "0"


def test_the_failure_with_a_reason_of_its_own_explains_those_that_only_lost_it() -> None:
    lost = Failure(code=75, text="connection closed by peer")
    assert isinstance(first_cause([lost, Failure(code=70, text="diverged")]).error(), PermanentError)
    assert str(first_cause([lost, Failure(code=143, text="stopped")]).error()) == "connection closed by peer"
    assert isinstance(Failure(code=143, text="stopped").error(), Interrupted)
    assert isinstance(Failure(code=-9, text="killed").error(), RetryableError)


def test_a_state_survives_its_json() -> None:
    state = NodeState(beat=3, saved={50: {"optimizer.pt": "0" * 64}}, failure=Failure(code=70, text="diverged"))
    assert state_from_json(state.to_json()) == state


@pytest.fixture
def links() -> Iterator[list[NodeLink]]:
    import torch

    store = torch.distributed.HashStore()
    made = [NodeLink(Nodes(rank=rank, count=2), store) for rank in (0, 1)]
    yield made
    made[1].leave()
    made[0].leave()


def test_what_a_node_tells_is_heard_by_the_others(links: list[NodeLink]) -> None:
    links[1].tell(fingerprint="abc", stop=True)
    wait_until(lambda: links[0].others.get(1, NodeState()).stop, 10, lambda: str(links[0].others))
    assert links[0].others[1].fingerprint == "abc"
    assert links[0].gone() == ""


def test_a_node_that_says_nothing_more_is_gone_after_a_while(
    links: list[NodeLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_until(lambda: 1 in links[0].others, 10, lambda: "never heard of node 1")
    monkeypatch.setattr(nodelink, "NODE_LOST_S", 2.5)
    links[1].leave()
    wait_until(lambda: links[0].others[1].left, 10, lambda: "no last word")
    assert links[0].gone() == ""  # it said that it left
    links[0].leave()
    assert "node 0 has not answered" in _after(links[0])


def _after(link: NodeLink) -> str:
    wait_until(lambda: bool(link.gone()), 10, lambda: "still believed to be there")
    return link.gone()
