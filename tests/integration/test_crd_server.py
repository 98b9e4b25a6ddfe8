"""The committed CRD in a real API server, which must judge every document and every edit as `itrain validate` does."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.client import ApiException, CustomObjectsApi
from kubernetes.config import new_client_from_config

from itrain_contract.crdgen import build_crd
from itrain_contract.immutability import IMMUTABLE_FIELDS, changes_refused
from itrain_contract.loading import SpecError, load_run, parse_run, validate_run
from itrain_contract.names import ConditionType, Phase
from itrain_contract.spec import ITrainRunSpec
from itrain_contract.status import ITrainRunStatus
from itrain_testing.cluster.access import CRD_FILE, ROOT, Access, KubectlError

EXAMPLES = sorted((ROOT / "crds/examples").glob("*.yaml"))
BROKEN = sorted((ROOT / "tests/data/broken").glob("*.yaml"))
MINIMAL: dict[str, Any] = {
    "model": {"uri": "hf://org/model"},
    "data": {"uri": "s3://data/toolace.json"},
    "storage": {"uri": "s3://results/runs"},
}

FIELD_ON_THE_SERVER = {
    # A rule across fields is a rule of the object that holds them.
    "20-bf16-on-volta": "spec",
}
"""Where the API server names another field than `itrain validate`; everywhere else it is the same one."""


def run(name: str = "demo", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "itrain.dev/v1alpha1",
        "kind": "ITrainRun",
        "metadata": {"name": name},
        "spec": {**copy.deepcopy(MINIMAL), **spec},
    }


def edited(cluster: Access, namespace: str, patch: dict[str, Any], *, status: bool = False) -> None:
    """A merge patch of the run `demo`; raises KubectlError when the server refuses it."""
    where = ["--subresource=status"] if status else []
    cluster.kubectl("patch", "itr", "demo", "--type=merge", "-p", json.dumps(patch), *where, namespace=namespace)


def spec_of(cluster: Access, namespace: str) -> ITrainRunSpec:
    return ITrainRunSpec.model_validate(cluster.get("itr", "demo", namespace=namespace)["spec"])


def expected_field(path: Path) -> str:
    """From the first line of a broken file: `# expect: <field> | <words>`."""
    return path.read_text().splitlines()[0].removeprefix("# expect: ").partition(" | ")[0]


# --- the definition itself ---------------------------------------------------------------------------------------


def test_the_crd_is_established_and_structural(cluster: Access) -> None:
    found = cluster.get("crd", "itrainruns.itrain.dev")
    conditions = {c["type"]: c["status"] for c in found["status"]["conditions"]}
    assert conditions == {"NamesAccepted": "True", "Established": "True"}


def test_client_side_and_server_side_apply_take_the_crd_without_a_warning(cluster: Access) -> None:
    for way in ("--server-side=false", "--server-side"):
        done = cluster.try_kubectl(
            "apply", way, "--force-conflicts=" + str(way == "--server-side").lower(), "-f", str(CRD_FILE)
        )
        assert done.returncode == 0, done.stderr
        assert "unrecognized format" not in done.stderr


def test_the_server_keeps_the_schema_as_it_is_committed(cluster: Access) -> None:
    (served,) = cluster.get("crd", "itrainruns.itrain.dev")["spec"]["versions"]
    (committed,) = build_crd()["spec"]["versions"]
    assert served["schema"] == committed["schema"]


# --- what may be created -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_is_accepted_and_filled_with_the_same_defaults(cluster: Access, namespace: str, path: Path) -> None:
    made = json.loads(cluster.kubectl("create", "-f", str(path), "-o", "json", namespace=namespace))
    assert ITrainRunSpec.model_validate(made["spec"]) == load_run(path).spec


def test_a_minimal_run_gets_every_default(cluster: Access, namespace: str) -> None:
    cluster.create(run(), namespace=namespace)
    stored = cluster.get("itr", "demo", namespace=namespace)["spec"]
    whole = ITrainRunSpec.model_validate(MINIMAL).model_dump(mode="json", by_alias=True, exclude_none=True)
    assert stored == whole


@pytest.mark.parametrize("path", BROKEN, ids=lambda p: p.stem)
def test_a_broken_file_is_refused_by_both_for_the_same_field(cluster: Access, namespace: str, path: Path) -> None:
    with pytest.raises(SpecError) as said:
        parse_run(path.read_text())
    assert expected_field(path) in str(said.value)
    with pytest.raises(KubectlError) as answered:
        cluster.kubectl("create", "--dry-run=server", "--validate=strict", "-f", str(path), namespace=namespace)
    assert FIELD_ON_THE_SERVER.get(path.stem, expected_field(path)) in str(answered.value)


def test_what_only_the_text_shows_is_refused_by_itrain_alone(cluster: Access, namespace: str) -> None:
    """kubectl sends JSON: of a key that stands twice the server sees the last, of several documents each by itself."""
    twice = yaml.safe_dump(run()) + "  seed: 1\n  seed: 2\n"
    two = "\n---\n".join(yaml.safe_dump(run(name)) for name in ("one", "two"))
    for text in (twice, two):
        with pytest.raises(SpecError):
            parse_run(text)
        cluster.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text, namespace=namespace)


@pytest.mark.parametrize(
    ("line", "accepted"),
    [
        ("seed: 42.0", True),
        ("seed: 4e1", True),
        ("seed:", True),
        ("precision: null", True),
        ("adapter: {rank: null}", True),
        ("model: {uri: null}", False),
        ("seed: 0x10", True),
        ("seed: 1_000", True),
        ("suspend: yes", True),
        ("suspend: 'yes'", False),
        ("precision: 2026-01-01", False),
        ("maxGpuHours: .5", True),
        ("maxGpuHours: .inf", False),
        ("maxGpuHours: 1e400", False),
        ("seed: '42'", False),
    ],
)
def test_yaml_is_read_as_kubectl_reads_it(cluster: Access, namespace: str, line: str, accepted: bool) -> None:
    document = run()
    document["spec"].pop(line.partition(":")[0], None)
    text = yaml.safe_dump(document) + f"  {line}\n"
    found = []
    try:
        parse_run(text)
    except SpecError as error:
        found.append(str(error))
    done = cluster.try_kubectl("create", "--dry-run=server", "-f", "-", stdin=text, namespace=namespace)
    assert (not found, done.returncode == 0) == (accepted, accepted), (found, done.stderr)


# --- what may be edited ------------------------------------------------------------------------------------------

EDITS: dict[str, dict[str, Any]] = {
    "another model": {"model": {"uri": "hf://org/other"}},
    "a model revision": {"model": {"revision": "main"}},
    "another source": {"data": {"uri": "s3://data/other.json"}},
    "one more source": {"data": {"extra": [{"uri": "s3://data/more.json"}]}},
    "another storage": {"storage": {"uri": "s3://results/other"}},
    "a storage secret": {"storage": {"secretRef": {"name": "s3"}}},
    "another seed": {"seed": 7},
    "another rank": {"adapter": {"rank": 8}},
    "adapter targets": {"adapter": {"targets": "q_proj,v_proj"}},
    "more iterations": {"iterations": {"max": 4}},
    "fewer iterations": {"iterations": {"max": 2}},
    "another stop rule": {"iterations": {"stopWhen": {"patience": 2}}},
    "suspension": {"suspend": True},
    "method fields": {"stages": {"train": {"learningRate": 1e-3, "gpus": 4}}},
    "scheduling": {"template": {"nodePool": "current"}, "queue": {"name": "v100"}},
    "the same values": copy.deepcopy(MINIMAL),
}


@pytest.mark.parametrize("phase", [None, Phase.RUNNING, Phase.SUCCEEDED, Phase.FAILED], ids=str)
def test_an_edit_is_refused_by_both_or_by_none(cluster: Access, namespace: str, phase: Phase | None) -> None:
    cluster.create(run(), namespace=namespace)
    if phase:
        edited(cluster, namespace, {"status": {"phase": phase.value}}, status=True)
    old = spec_of(cluster, namespace)
    verdicts: dict[str, tuple[bool, bool]] = {}
    unnamed: list[str] = []
    for name, patch in EDITS.items():
        merged = merge(old.model_dump(mode="json", by_alias=True, exclude_none=True), patch)
        refused = changes_refused(old, ITrainRunSpec.model_validate(merged), phase or Phase.PENDING)
        try:
            cluster.kubectl(
                "patch", "itr", "demo", "--type=merge", "--dry-run=server", "-p", json.dumps({"spec": patch}),
                namespace=namespace,
            )  # fmt: skip
        except KubectlError as error:
            verdicts[name] = (bool(refused), True)
            unnamed += [f"{name}: {p.field}" for p in refused if p.field.removeprefix("spec.") not in str(error)]
        else:
            verdicts[name] = (bool(refused), False)
    assert unnamed == []
    assert {name: pair for name, pair in verdicts.items() if pair[0] != pair[1]} == {}
    assert sum(refused for refused, _ in verdicts.values()) == (11 if phase and phase.terminal else 10)


def test_every_immutable_field_is_among_the_edits() -> None:
    assert {field for patch in EDITS.values() for field in patch} >= {*IMMUTABLE_FIELDS, "iterations"}


def test_an_edit_through_the_status_changes_nothing_of_the_spec(cluster: Access, namespace: str) -> None:
    cluster.create(run(), namespace=namespace)
    edited(cluster, namespace, {"spec": {"seed": 7}, "status": {"phase": "Running"}}, status=True)
    found = cluster.get("itr", "demo", namespace=namespace)
    assert (found["spec"]["seed"], found["status"]["phase"], found["metadata"]["generation"]) == (42, "Running", 1)


def merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    """A JSON merge patch without nulls."""
    out = dict(low)
    for key, value in high.items():
        out[key] = merge(out.get(key, {}), value) if isinstance(value, dict) else value
    return out


# --- what people see and repeat ----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["--server-side", "--server-side=false"])
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_applied_twice_there_is_no_diff_and_no_new_generation(
    cluster: Access, namespace: str, path: Path, way: str
) -> None:
    name = load_run(path).metadata.name
    cluster.kubectl("apply", way, "-f", str(path), namespace=namespace)
    first = cluster.get("itr", name, namespace=namespace)["metadata"]
    cluster.kubectl("diff", way, "-f", str(path), namespace=namespace)
    cluster.kubectl("apply", way, "-f", str(path), namespace=namespace)
    second = cluster.get("itr", name, namespace=namespace)["metadata"]
    assert (first["generation"], first["resourceVersion"]) == (1, second["resourceVersion"])


def test_get_shows_the_columns(cluster: Access, namespace: str) -> None:
    cluster.create(run(queue={"name": "v100"}), namespace=namespace)
    status = ITrainRunStatus.model_validate(
        {
            "phase": "Running",
            "reason": "StageRunning",
            "iterationText": "2/3",
            "stage": "rollout",
            "attempt": 1,
            "progressText": "40% (4/10 shards)",
            "bestText": "0.75 (iteration 1)",
            "gpuHours": "12.5",
        }
    )
    edited(
        cluster, namespace, {"status": status.model_dump(mode="json", by_alias=True, exclude_none=True)}, status=True
    )
    head, row = cluster.kubectl("get", "itr", namespace=namespace).splitlines()
    assert head.split() == ["NAME", "PHASE", "ITER", "STAGE", "PROGRESS", "BEST", "AGE"]
    assert " ".join(row.split()[:-1]) == "demo Running 2/3 rollout 40% (4/10 shards) 0.75 (iteration 1)"
    head, row = cluster.kubectl("get", "itr", "-o", "wide", namespace=namespace).splitlines()
    assert head.split()[-4:] == ["ATTEMPT", "QUEUE", "REASON", "GPU-HOURS"]
    assert row.split()[-4:] == ["1", "v100", "StageRunning", "12.5"]


def test_get_all_lists_runs_too(cluster: Access, namespace: str) -> None:
    cluster.create(run(), namespace=namespace)
    assert "itrainrun.itrain.dev/demo" in cluster.kubectl("get", "all", namespace=namespace)


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("itr.spec", ["stages", "iterations", "maxGpuHours", "required"]),
        ("itr.spec.stages.rollout.simulations", ["simulations", "integer"]),
        ("itr.spec.stages.rollout.actions", ["Completions of one expansion"]),
        ("itr.status.conditions", ["lastTransitionTime", "observedGeneration"]),
    ],
)
def test_explain_tells_a_field(cluster: Access, field: str, words: list[str]) -> None:
    told = cluster.kubectl("explain", field)
    assert [word for word in words if word not in told] == []


def test_a_whole_status_is_stored_as_it_was_written(cluster: Access, namespace: str) -> None:
    cluster.create(run(), namespace=namespace)
    status = ITrainRunStatus.model_validate(WHOLE_STATUS).model_dump(mode="json", by_alias=True, exclude_none=True)
    assert set(status) == {field.alias for field in ITrainRunStatus.model_fields.values()}
    edited(cluster, namespace, {"status": status}, status=True)
    assert cluster.get("itr", "demo", namespace=namespace)["status"] == status


WHOLE_STATUS: dict[str, Any] = {
    "observedGeneration": 1,
    "phase": "Running",
    "reason": "StageRunning",
    "message": "rollout of iteration 2",
    "iteration": 2,
    "iterationText": "2/3",
    "stage": "rollout",
    "attempt": 1,
    "progress": {"done": 1, "total": 8, "percent": 12, "etaSeconds": 60, "text": "1/8 shards"},
    "startTime": "2026-01-01T00:00:00Z",
    "completionTime": "2026-01-01T00:00:01Z",
    "conditions": [
        {
            "type": kind,
            "status": "True",
            "reason": "StageRunning",
            "message": "m",
            "observedGeneration": 1,
            "lastTransitionTime": "2026-01-01T00:00:00.123456Z",
        }
        for kind in ConditionType
    ],
    "current": {"jobName": "demo-i2-rollout-a1", "uid": "u", "active": 1, "completedIndexes": "0-3,5"},
    "completed": [
        "i0/prepare a1 0123456789abcdef 9s",
        "i1/rollout a2 0123456789abcdef 93s 0-7",
        "i1/score a1 0123456789abcdef 93s 0-700?",
    ],
    "retryAt": "2026-01-01T00:00:00Z",
    "lastObservedTime": "2026-01-01T00:00:00Z",
    "best": {"iteration": 1, "metric": "dev/call_accuracy", "value": 0.5, "adapterURI": "s3://b/a"},
    "lastIteration": 3,
    "metrics": [{"name": "dev/call_accuracy", "value": 0.5}],
    "history": [{"iteration": 1, "stageSeconds": {"score": 5}, "metrics": [{"name": "dev/x", "value": 1}], "pairs": 3}],
    "gpuSeconds": 12.5,
    "gpuHours": "0.0",
    "reportURI": "s3://b/report.html",
    "templateHash": "abc",
}


# --- every field, at and beyond its bounds -----------------------------------------------------------------------


def test_the_server_and_itrain_validate_agree_on_every_field(cluster: Access, namespace: str) -> None:
    """Each field of the schema with values at its bounds, beyond them and of another type: thousands of documents."""
    api = CustomObjectsApi(new_client_from_config(str(cluster.kubeconfig)))
    documents = list(variants(build_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]))
    disagreements = []
    for path, value in documents:
        document = run()
        place(document["spec"], path, value)
        ours, theirs = verdict_here(document), verdict_there(api, namespace, document)
        if bool(ours) != bool(theirs):
            disagreements.append(
                f"{'.'.join(path)} = {str(value)[:60]!r}: itrain: {ours or 'ok'}; server: {theirs or 'ok'}"
            )
    assert disagreements == []
    assert len(documents) > 800


def verdict_here(document: dict[str, Any]) -> str:
    try:
        validate_run(document)
    except SpecError as error:
        return str(error)
    return ""


def verdict_there(api: CustomObjectsApi, namespace: str, document: dict[str, Any]) -> str:
    try:
        api.create_namespaced_custom_object(
            "itrain.dev", "v1alpha1", namespace, "itrainruns", document, dry_run="All", field_validation="Strict"
        )
    except ApiException as error:
        if error.status not in (400, 422):
            raise
        return str(json.loads(error.body)["message"])
    return ""


def place(spec: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    """Set a value deep in a spec; `[]` is the first item of a list, which is made to be valid otherwise."""
    node: Any = spec
    for step, following in pairwise(path):
        empty: Any = [] if following == "[]" else {}
        if step == "[]":
            if not node:
                node.append(empty)
            node = node[0]
        else:
            node = node.setdefault(step, empty)
    if path[-1] == "[]":
        node[:] = [value]
    else:
        node[path[-1]] = value


def variants(schema: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, value) for every node below a schema; a node that stands in several places is visited in one of them."""
    seen: set[str] = set()

    def walk(node: dict[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        mark = json.dumps([path[-1:], {key: node[key] for key in node if key not in ("description", "default")}])
        if mark in seen:
            return
        seen.add(mark)
        if path:
            yield from ((path, value) for value in values(node))
        for name, below in node.get("properties", {}).items():
            yield from walk(below, (*path, name))
        if "items" in node:
            yield from walk(node["items"], (*path, "[]"))
        if isinstance(node.get("additionalProperties"), dict):
            yield from walk(node["additionalProperties"], (*path, "key"))

    return walk(schema, ())


def values(schema: dict[str, Any]) -> Iterator[Any]:
    """At the bounds, one beyond, and of the other types."""
    kind = schema.get("type")
    yield from ("text", "1", 1, 1.5, True, "true", [], {}, {"unknown": 1}, ["x"], None)
    for bound in ("minimum", "maximum"):
        if bound in schema:
            step = 1 if kind == "integer" else 0.001
            yield from (schema[bound] - step, schema[bound], schema[bound] + step)
    if kind == "string":
        yield from ("", "a b", "ÄÖ", "a/b", "a-b.c", "-a", *schema.get("enum", ()))
        if "maxLength" in schema:
            yield from ("a" * schema["maxLength"], "a" * (schema["maxLength"] + 1))
            yield "s3://" + "é" * (schema["maxLength"] - 5)
