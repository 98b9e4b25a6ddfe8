"""The operator may do what its code asks for, and nothing else."""

from __future__ import annotations

from collections import defaultdict

import pytest

from itrain_testing.chart import Object, of_kind, render
from itrain_testing.rights import LEASE, QUEUE_RIGHTS, RIGHTS, Rights, rights_in_code

pytestmark = pytest.mark.usefixtures("chart_tools")

OF_KOPF: Rights = {("apiextensions.k8s.io", "customresourcedefinitions"): {"list", "watch"}}
"""kopf's own, where it scans the cluster (`settings.scanning`): not when namespaced."""


def granted(roles: list[Object]) -> Rights:
    found: Rights = defaultdict(set)
    for rule in (rule for role in roles for rule in role["rules"]):
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                found[group, resource].update(rule["verbs"])
    return dict(found)


def without(rights: Rights, *names: tuple[str, str]) -> Rights:
    return {name: verbs for name, verbs in rights.items() if name not in names}


def bound(objects: list[Object], kind: str) -> list[Object]:
    """The roles of a kind that are bound to the operator's account."""
    bindings = [found["roleRef"]["name"] for found in of_kind(objects, f"{kind}Binding")]
    return [role for role in of_kind(objects, kind) if role["metadata"]["name"] in bindings]


def test_the_code_asks_for_these_rights() -> None:
    assert rights_in_code() == RIGHTS | QUEUE_RIGHTS


def test_in_all_namespaces_the_chart_grants_just_that() -> None:
    objects = render()
    assert granted(bound(objects, "ClusterRole")) == without(RIGHTS, LEASE) | OF_KOPF
    assert granted(bound(objects, "Role")) == {LEASE: RIGHTS[LEASE]}


def test_in_some_namespaces_it_grants_just_that_and_nothing_in_the_cluster() -> None:
    objects = render(extra={"settings": {"namespaces": ["a", "b"]}, "rbac": {"userRoles": False}})
    assert of_kind(objects, "ClusterRole") == of_kind(objects, "ClusterRoleBinding") == []
    roles = bound(objects, "Role")
    for namespace in ("a", "b"):
        here = [role for role in roles if role["metadata"]["namespace"] == namespace]
        assert granted(here) == without(RIGHTS, LEASE)
    assert granted([r for r in roles if r["metadata"]["namespace"] == "itrain-system"]) == {LEASE: RIGHTS[LEASE]}


def test_workloads_are_granted_where_kueue_is_enabled_and_nowhere_else() -> None:
    enabled = {"kueue": {"enabled": True}}
    objects = render(extra={"settings": enabled})
    assert granted(bound(objects, "ClusterRole")) == without(RIGHTS, LEASE) | QUEUE_RIGHTS | OF_KOPF
    objects = render(extra={"settings": {**enabled, "namespaces": ["a"]}, "rbac": {"userRoles": False}})
    (role,) = [role for role in bound(objects, "Role") if role["metadata"]["namespace"] == "a"]
    assert granted([role]) == without(RIGHTS, LEASE) | QUEUE_RIGHTS


def test_a_lease_is_limited_to_its_name_where_the_api_can_do_that() -> None:
    (role,) = bound(render(), "Role")
    assert [(rule.get("resourceNames"), set(rule["verbs"])) for rule in role["rules"]] == [
        (["itrain"], {"get", "update"}),
        (None, {"create"}),
    ]


def test_people_may_change_runs_and_never_their_status() -> None:
    roles = {role["metadata"]["name"]: role for role in of_kind(render(), "ClusterRole")}
    viewer, editor = granted([roles["itrain-viewer"]]), granted([roles["itrain-editor"]])
    assert viewer == {("itrain.dev", name): {"get", "list", "watch"} for name in ("itrainruns", "itrainruns/status")}
    assert set(editor) == {("itrain.dev", "itrainruns")}
    assert {"create", "update", "patch", "delete"} <= editor["itrain.dev", "itrainruns"]
