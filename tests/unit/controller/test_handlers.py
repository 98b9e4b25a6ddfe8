"""kopf as watcher only: which handlers there are, and how it is set up."""

from __future__ import annotations

import ast
from itertools import islice
from pathlib import Path

import kopf
import pytest

from itrain_operator import __main__ as entry
from itrain_operator import handlers
from itrain_operator.app import own_identity, own_namespace
from itrain_operator.settings import OperatorSettings


def test_only_events_are_handled_so_that_kopf_never_writes_to_a_run() -> None:
    tree = ast.parse(Path(handlers.__file__).read_text())
    used = {
        ast.unparse(decorator.func)
        for node in tree.body
        if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef)
        for decorator in node.decorator_list
        if isinstance(decorator, ast.Call)
    }
    assert used == {"kopf.on.startup", "kopf.on.cleanup", "kopf.on.login", "kopf.on.event"}


def test_kopf_posts_no_events_joins_no_peering_and_keeps_its_watchdog() -> None:
    settings = kopf.OperatorSettings()
    handlers.configure(settings, OperatorSettings())
    assert settings.posting.enabled is False
    assert settings.peering.standalone is True
    assert settings.networking.request_timeout == 30
    assert settings.watching.inactivity_timeout == kopf.OperatorSettings().watching.inactivity_timeout
    assert settings.scanning.disabled is False
    assert settings.queueing.idle_timeout < 1


def test_no_copy_of_an_object_is_made_for_kopfs_own_books() -> None:
    settings = kopf.OperatorSettings()
    handlers.configure(settings, OperatorSettings())
    storage = settings.persistence.diffbase_storage
    assert (storage.build(body=kopf.Body({"spec": {"a": 1}})), storage.fetch(body=kopf.Body({}))) == ({}, None)
    with pytest.raises(RuntimeError, match="keep nothing"):
        storage.store(body=kopf.Body({}), patch=kopf.Patch(), essence=kopf.BodyEssence({}))


def test_in_given_namespaces_nothing_is_scanned() -> None:
    settings = kopf.OperatorSettings()
    handlers.configure(settings, OperatorSettings(namespaces=["team"]))
    assert settings.scanning.disabled is True


def test_network_errors_are_retried_for_ever_with_a_bounded_delay() -> None:
    delays = list(islice(handlers.CappedBackoffs(), 1000))
    assert delays[:4] == [1.0, 1.0, 2.0, 3.0]
    assert set(delays[8:]) == {21.0}


def test_a_wrong_setting_ends_the_start_with_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "operator.yaml"
    config.write_text("workers: 0\n")
    assert entry.main([f"--config={config}"]) == 2
    assert "workers: got 0, allowed: at least 1" in capsys.readouterr().err


def test_no_way_into_a_cluster_ends_the_start_with_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main([f"--kubeconfig={tmp_path / 'missing'}"]) == 2
    assert "no way into a cluster" in capsys.readouterr().err


def test_the_lease_lies_in_the_pods_own_namespace() -> None:
    assert own_namespace({"POD_NAMESPACE": "itrain-system"}) == "itrain-system"
    assert own_namespace({}) == "default"


def test_a_container_that_is_started_again_in_its_pod_is_the_same_candidate_and_any_other_process_is_not() -> None:
    assert own_identity({"POD_UID": "a"}) == own_identity({"POD_UID": "a"}) != own_identity({"POD_UID": "b"})
    assert own_identity({}) != own_identity({})
