"""Every object that the operator builds, judged by a real API server: all fields known, restricted pods admitted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from itrain_contract.spec import ITrainRunSpec
from itrain_contract.stages import stage_sequence
from itrain_operator.manifests import Children, storage_uri
from itrain_testing.builders import make_run, make_spec
from itrain_testing.cluster.access import Access, as_list
from itrain_testing.jobs import children, pod, settings

SPECS = {
    "short": make_spec(),
    "secrets": make_spec(
        model={"uri": "hf://org/model", "secretRef": {"name": "hf"}, "cache": {"pvc": "models"}},
        data={"uri": "s3://a/rows", "secretRef": {"name": "rows"}},
        storage={"uri": "s3://bucket/prefix", "secretRef": {"name": "s3"}},
        queue={"name": "v100", "priorityClass": "research"},
    ),
    "gpus": make_spec(
        template={
            "nodePool": "volta",
            "tolerations": [
                {"key": "team", "operator": "Equal", "value": "x", "tolerationSeconds": 30, "effect": "NoExecute"}
            ],
            "labels": {"cost": "42"},
            "annotations": {"note": "mine"},
        },
        stages={
            "score": {"shards": 10_000, "parallelism": 8, "minSucceeded": 9_000, "retry": {"limit": 0}},
            "train": {"nodes": 4, "gpus": 8, "resources": {"limits": {"cpu": "64", "memory": "400Gi"}}},
        },
    ),
    "volume": make_spec(
        model={"uri": "hf://org/model", "cache": {"pvc": "runs"}},
        storage={"pvc": {"claimName": "runs", "subPath": "team/a"}},
        template={"nodePool": "cpu"},
    ),
}


def every_child(spec: ITrainRunSpec, namespace: str) -> list[Children]:
    run = replace(make_run(spec), name="r" * 40, namespace=namespace, storage=storage_uri(spec))
    run = replace(run, uid="0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0")
    return [children(run, ref, settings()) for ref in dict.fromkeys(stage_sequence(spec))]


@pytest.mark.parametrize("name", SPECS)
def test_the_api_server_takes_every_object_as_it_is(cluster: Access, namespace: str, name: str) -> None:
    objects: list[dict[str, Any]] = []
    for made in every_child(SPECS[name], namespace):
        objects += [made.config_map, made.job, *([made.service] if made.service else [])]
    told = cluster.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", stdin=as_list(tuple(objects)))
    assert told.count("created") == len(objects)


@pytest.mark.parametrize("name", SPECS)
def test_a_restricted_namespace_admits_every_pod(cluster: Access, namespace: str, name: str) -> None:
    cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    pods = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"pod-{number}", "namespace": namespace},
            "spec": pod(made.job),
        }
        for number, made in enumerate(every_child(SPECS[name], namespace))
    ]
    told = cluster.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", stdin=as_list(tuple(pods)))
    assert told.count("created") == len(pods)
    refused = cluster.try_kubectl(
        "create",
        "--dry-run=server",
        "-f",
        "-",
        stdin=as_list(({**pods[0], "spec": {**pods[0]["spec"], "hostNetwork": True}},)),
    )
    assert "violates PodSecurity" in refused.stderr
