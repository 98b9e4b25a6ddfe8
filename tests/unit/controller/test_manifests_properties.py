"""Whatever a valid run asks for: names that Kubernetes takes, restricted pods, no secret, no token."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from itrain_contract.spec import ITrainRunSpec
from itrain_contract.stages import StageRef, stage_sequence
from itrain_operator.manifests import Children, storage_uri
from itrain_operator.observed import Run
from itrain_testing.builders import make_run, make_spec
from itrain_testing.jobs import children, container, pod, settings
from itrain_testing.podsecurity import violations

HOSTNAME = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
LABEL_VALUE = re.compile(r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$")
LABEL_KEY = re.compile(r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")
VOLUME_NAME = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")

run_names = st.from_regex(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", fullmatch=True)
object_names = st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,60}[a-z0-9])?", fullmatch=True)
secret_refs = st.none() | st.builds(lambda name: {"name": name}, object_names)
labels = st.dictionaries(
    st.from_regex(r"(example\.com/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,20}[A-Za-z0-9])?", fullmatch=True),
    st.from_regex(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,20}[A-Za-z0-9])?)?", fullmatch=True),
    max_size=3,
)
variables = st.sampled_from(
    ["HOME", "OMP_NUM_THREADS", "ITRAIN_ATTEMPT", "ITRAIN_POD_UID", "JOB_COMPLETION_INDEX", "ITRAIN_SECRETS_DIR", "X"]
)
env = st.lists(st.builds(lambda name: {"name": name, "value": "v"}, variables), max_size=4)


def without_none(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


templates = st.builds(
    without_none,
    nodePool=st.sampled_from([None, "volta", "current", "cpu"]),
    serviceAccountName=st.none() | object_names,
    imagePullSecrets=st.lists(st.builds(lambda name: {"name": name}, object_names), max_size=2),
    env=env,
    nodeSelector=labels,
    labels=labels,
    annotations=labels,
    priorityClassName=st.none() | object_names,
    runtimeClassName=st.none() | object_names,
)
sources = st.builds(without_none, uri=st.just("s3://bucket/rows"), secretRef=secret_refs)


def specs() -> st.SearchStrategy[ITrainRunSpec]:
    def build(
        model: Any, cache: Any, data: Any, extra: Any, storage: Any, template: Any, own: Any, sizes: Any, queue: Any
    ) -> ITrainRunSpec:
        shards, gpus, nodes = sizes
        sharded = without_none(shards=shards, parallelism=3, minSucceeded=1, gpus=gpus, template=own)
        bank = {"uri": "s3://bank/items", "secretRef": data.get("secretRef")}
        return make_spec(
            model=without_none(uri="hf://org/model", secretRef=model, cache=cache),
            data={**data, "extra": extra},
            storage=storage,
            template=template,
            stages={
                "score": sharded,
                "rollout": sharded,
                "train": without_none(nodes=nodes, gpus=gpus, template=own),
                "evaluate": {"benchmarks": ["apibank"], "apiBank": without_none(**bank)},
            },
            **without_none(queue=queue),
        )

    s3 = st.builds(without_none, uri=st.just("s3://bucket/prefix"), secretRef=secret_refs)
    claim = st.builds(lambda name: {"pvc": {"claimName": name, "subPath": "a/b"}}, object_names)
    return st.builds(
        build,
        secret_refs,
        st.none() | st.builds(lambda name: {"pvc": name}, object_names),
        sources,
        st.lists(sources, max_size=3),
        s3 | claim,
        templates,
        st.none() | templates,
        st.tuples(st.integers(1, 10_000), st.integers(0, 64), st.integers(1, 512)),
        st.none() | st.just({"name": "v100", "priorityClass": "research"}),
    )


runs = st.builds(
    lambda spec, name: replace(make_run(spec), name=name, uid="0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"),
    specs(),
    run_names,
)


def every_child(run: Run) -> list[tuple[StageRef, Children]]:
    refs = dict.fromkeys(stage_sequence(run.spec))
    return [(ref, children(run, ref, settings(), attempt=99_999)) for ref in refs]


@given(run=runs)
@hypothesis_settings(max_examples=30, deadline=None)
def test_every_child_of_every_valid_run_is_one_that_kubernetes_takes(run: Run) -> None:
    run = replace(run, storage=storage_uri(run.spec))
    for _, made in every_child(run):
        check_names(made)
        check_pod(made.job)
        check_secrets(made, run)
        json.dumps([made.job, made.config_map, made.service])


def check_names(made: Children) -> None:
    objects = [made.job, made.config_map, *([made.service] if made.service else [])]
    spec = made.job["spec"]
    last = f"-{spec['completions'] - 1}" if spec["completionMode"] == "Indexed" else "-xxxxx"
    for name in (*(o["metadata"]["name"] for o in objects), made.job["metadata"]["name"] + last):
        assert len(name) <= 63, name
        assert HOSTNAME.match(name), name
    for metadata in (*(o["metadata"] for o in objects), spec["template"]["metadata"]):
        for key, value in metadata["labels"].items():
            assert LABEL_KEY.match(key), key
            assert len(key.rpartition("/")[2]) <= 63
            assert len(value) <= 63, value
            assert LABEL_VALUE.match(value), value
    pod_labels = spec["template"]["metadata"]["labels"]
    if made.service is not None:
        assert made.service["spec"]["selector"].items() <= pod_labels.items()
        assert made.service["metadata"]["name"] == spec["template"]["spec"]["subdomain"]
    assert {k: v for k, v in made.job["metadata"]["labels"].items() if k.startswith("itrain.dev/")}.items() <= (
        pod_labels.items()
    )


def check_pod(job: dict[str, Any]) -> None:
    spec, stage = pod(job), container(job)
    assert violations(spec) == []
    assert spec["automountServiceAccountToken"] is False
    assert "serviceAccountToken" not in json.dumps(spec)
    names = [variable["name"] for variable in stage["env"]]
    assert len(names) == len(set(names))
    assert "JOB_COMPLETION_INDEX" not in names
    volumes = [volume["name"] for volume in spec["volumes"]]
    paths = [mount["mountPath"] for mount in stage["volumeMounts"]]
    assert len(volumes) == len(set(volumes))
    assert len(paths) == len(set(paths))
    assert {mount["name"] for mount in stage["volumeMounts"]} == set(volumes)
    assert all(VOLUME_NAME.match(name) and len(name) <= 63 for name in volumes)
    claims = [v["persistentVolumeClaim"]["claimName"] for v in spec["volumes"] if "persistentVolumeClaim" in v]
    assert len(claims) == len(set(claims))
    writable = {mount["mountPath"] for mount in stage["volumeMounts"] if not mount.get("readOnly")}
    assert {"/tmp", "/home/itrain", "/var/cache/itrain"} <= writable


def check_secrets(made: Children, run: Run) -> None:
    """Secrets appear as references by name, in the run's own namespace, and in no other object than the Job."""
    assert {o["metadata"]["namespace"] for o in (made.job, made.config_map)} == {run.namespace}
    stage = container(made.job)
    assert all(set(source) == {"secretRef"} for source in stage.get("envFrom", []))
    assert not any("secretKeyRef" in json.dumps(variable) for variable in stage["env"])
    for volume in pod(made.job)["volumes"]:
        if "secret" in volume:
            assert set(volume["secret"]) - {"optional"} == {"secretName", "defaultMode"}


def test_the_longest_names_fit() -> None:
    run = replace(make_run(), name="r" * 40)
    for ref, made in every_child(run):
        index = made.job["spec"]["completions"] - 1
        assert len(f"{made.job['metadata']['name']}-{index}") <= 63, ref


def good_pod() -> dict[str, Any]:
    return pod(children(make_run(), StageRef(kind=next(iter(stage_sequence(make_spec()))).kind), settings()).job)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hostNetwork": True}, "spec.hostNetwork is set"),
        ({"securityContext": {}}, "runAsNonRoot is not true"),
        ({"volumes": [{"name": "x", "hostPath": {"path": "/"}}]}, "volume x is of type ['hostPath']"),
        ({"containers": [{"name": "stage"}]}, "capabilities are not dropped"),
        ({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}]}}, "sysctl kernel.msgmax"),
    ],
)
def test_the_checker_finds_what_a_restricted_namespace_refuses(change: dict[str, Any], words: str) -> None:
    assert violations(good_pod()) == []
    assert any(words in text for text in violations({**good_pod(), **change}))
