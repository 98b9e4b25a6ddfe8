"""A real Kubernetes API (one control plane a session, one namespace a test), a real S3 server and a real browser."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from itrain_testing.browser import browser, chromium
from itrain_testing.cluster import binaries, sessions
from itrain_testing.cluster.access import Access
from itrain_testing.cluster.controlplane import ControlPlane
from itrain_testing.gotools import ToolMissingError
from itrain_testing.operatorprocess import OperatorProcess
from itrain_testing.s3server import S3Server, running_server, versitygw
from itrain_testing.simkubelet import SimulatedNode
from itrain_testing.watchrun import WatchedRun


def pytest_collection_finish(session: pytest.Session) -> None:
    sessions.build_before_the_first_test(session.items, "cluster", binaries.missing)


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Access:
    """The API with the CRD in it: of this session's control plane, or of the cluster that the user named."""
    given = sessions.given_cluster()
    if given is None:
        control_plane: ControlPlane = request.getfixturevalue("control_plane")
        return control_plane.access
    given.apply_crd()
    return given


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """For tests that stop its processes, add users or read its audit log."""
    if sessions.given_cluster():
        pytest.skip("ITRAIN_TEST_KUBECONFIG is set: its processes are not this test's to stop")
    with sessions.own_control_plane(tmp_path_factory.mktemp("control-plane")) as started:
        yield started


@pytest.fixture
def namespace(cluster: Access) -> Iterator[str]:
    with sessions.fresh_namespace(cluster) as name:
        yield name


@pytest.fixture(scope="module")
def simulated_node(cluster: Access, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedNode]:
    simulated = SimulatedNode(cluster.kubeconfig, tmp_path_factory.mktemp("node"))
    simulated.start()
    yield simulated
    simulated.stop()


@pytest.fixture
def node(simulated_node: SimulatedNode) -> Iterator[SimulatedNode]:
    """A node whose pods run by their status alone; its script is as it was after the test."""
    before = simulated_node.script
    yield simulated_node
    simulated_node.script = before


@pytest.fixture
def run(cluster: Access, namespace: str) -> WatchedRun:
    return WatchedRun(cluster=cluster, namespace=namespace)


@pytest.fixture
def operator(cluster: Access, namespace: str, tmp_path: Path) -> Iterator[OperatorProcess]:
    process = OperatorProcess(tmp_path, kubeconfig=cluster.kubeconfig, namespace=namespace)
    process.start()
    yield process
    process.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server."""
    try:
        versitygw()
    except ToolMissingError as error:
        pytest.skip(str(error))
    with running_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(scope="module")
def started() -> Iterator[Any]:
    """Headless Chromium."""
    try:
        chromium()
    except ToolMissingError as error:
        if os.environ.get("CI"):
            pytest.fail(f"a browser is required here: {error}", pytrace=False)
        pytest.skip(str(error))
    with browser() as running:
        yield running
