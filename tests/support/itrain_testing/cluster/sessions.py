"""What the conftest files share: the cluster of a pytest session, or the reason why there is none.

ITRAIN_TEST_KUBECONFIG names a cluster to use instead of starting one. Without the parts for a cluster its tests are
skipped with the reason; in continuous integration (CI or ITRAIN_REQUIRE_CLUSTER is set) that is an error.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from itrain_testing.cluster import binaries
from itrain_testing.cluster.access import Access
from itrain_testing.cluster.controlplane import LOOPBACK, ControlPlane


def unavailable(reason: str) -> NoReturn:
    """Skip the test, or fail where a cluster is required."""
    if os.environ.get("CI") or os.environ.get("ITRAIN_REQUIRE_CLUSTER"):
        pytest.fail(f"a cluster is required here: {reason}", pytrace=False)
    pytest.skip(reason)


def given_cluster() -> Access | None:
    """The cluster that ITRAIN_TEST_KUBECONFIG names."""
    kubeconfig = os.environ.get("ITRAIN_TEST_KUBECONFIG")
    if not kubeconfig:
        return None
    if reason := binaries.missing(("kubectl",)):
        unavailable(reason)
    return Access(kubeconfig=Path(kubeconfig), kubectl_binary=binaries.kubernetes("kubectl"))


@contextmanager
def own_control_plane(folder: Path, *, address: str = LOOPBACK, audit: bool = False) -> Iterator[ControlPlane]:
    """A control plane with the CRD applied; its logs stay in `folder`, its data do not."""
    if reason := binaries.missing():
        unavailable(reason)
    control_plane = ControlPlane(folder, address=address, audit=audit)
    try:
        control_plane.start()
        control_plane.access.apply_crd()
        yield control_plane
    finally:
        control_plane.stop()
        shutil.rmtree(folder / "etcd", ignore_errors=True)


@contextmanager
def fresh_namespace(access: Access) -> Iterator[str]:
    name = f"test-{uuid.uuid4().hex[:8]}"
    access.create_namespace(name)
    try:
        yield name
    finally:
        access.delete_namespace(name)


def build_before_the_first_test(items: list[pytest.Item], fixture: str, missing: Callable[[], str]) -> None:
    """Cold builds take minutes: they happen here, before any test's timeout runs. `missing` builds what it misses."""
    used = any(fixture in getattr(item, "fixturenames", ()) for item in items)
    if used and not os.environ.get("ITRAIN_TEST_KUBECONFIG"):
        missing()
