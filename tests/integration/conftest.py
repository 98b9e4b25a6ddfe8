"""A real Kubernetes API for the tests in this folder: one control plane a session, one namespace a test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from itrain_testing.cluster import binaries, sessions
from itrain_testing.cluster.access import Access
from itrain_testing.cluster.controlplane import ControlPlane


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
