"""A real node for the tests in this folder: real pods on this machine, or on the cluster that the user named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler.loadscope import LoadScopeScheduling

from itrain_testing.builtimages import OPERATOR, PIPELINE, build_image
from itrain_testing.cluster import node as nodes
from itrain_testing.cluster import sessions
from itrain_testing.cluster.access import Access
from itrain_testing.cluster.node import Node
from itrain_testing.gotools import ToolMissingError
from itrain_testing.tiny_model import write_tiny_model
from itrain_testing.trainnodes import MakeWorld, TrainWorld

HERE = Path(__file__).parent
ON_NODE = ("test_cluster_", "test_images", "test_installed", "test_node")
"""How files are called whose tests need this machine's one node."""


class OneNode(LoadScopeScheduling):  # type: ignore[misc]  # xdist is not typed
    """A file at a time for each worker, and all that needs the node for the same one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0].rpartition("/")[2]
        return "node" if file.startswith(ON_NODE) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneNode:
    return OneNode(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        on_node = {"node", "pods"}.intersection(getattr(item, "fixturenames", ())) and item.path.parent == HERE
        if on_node and not item.path.name.startswith(ON_NODE):
            raise pytest.UsageError(f"{item.path.name} needs the node: its name must begin with one of {ON_NODE}")


def pytest_collection_finish(session: pytest.Session) -> None:
    sessions.build_before_the_first_test(session.items, "pods", nodes.missing)


@pytest.fixture(scope="session")
def node() -> Iterator[Node]:
    """For tests that load images, pretend GPUs, or stop kubelet."""
    if sessions.given_cluster():
        pytest.skip("ITRAIN_TEST_KUBECONFIG is set: its nodes are not this test's to change")
    if reason := nodes.missing():
        sessions.unavailable(reason)
    try:
        with nodes.running_node(audit=True) as started:
            yield started
    except ToolMissingError as error:
        sessions.unavailable(str(error))


@pytest.fixture(scope="session")
def pods(request: pytest.FixtureRequest) -> Access:
    """A cluster that runs pods, with the CRD in it."""
    given = sessions.given_cluster()
    if given is None:
        started: Node = request.getfixturevalue("node")
        return started.access
    given.apply_crd()
    return given


@pytest.fixture
def namespace(pods: Access) -> Iterator[str]:
    with sessions.fresh_namespace(pods) as name:
        yield name


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model")


@pytest.fixture
def world(tmp_path: Path, model: Path) -> Iterator[MakeWorld]:
    """Makes train stages whose processes are gone at the end."""
    made: list[TrainWorld] = []

    def make(name: str, stage: dict[str, Any]) -> TrainWorld:
        made.append(TrainWorld(folder=tmp_path / name, model=model, stage=stage))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(scope="session")
def operator_archive() -> Path:
    """The operator's image, built as docs/images.md says."""
    return built(OPERATOR)


@pytest.fixture(scope="session")
def pipeline_archive() -> Path:
    """The image of all stages for machines without a GPU."""
    return built(PIPELINE)


def built(image: str) -> Path:
    try:
        return build_image(image)
    except ToolMissingError as error:
        sessions.unavailable(str(error))
