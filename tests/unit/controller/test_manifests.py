"""What one attempt is made of: whole objects, exactly as they are sent."""

from __future__ import annotations

import json
from typing import Any

import pytest

from itrain_contract.stageio import StageInput
from itrain_operator.manifests import ManifestError, children_names, storage_uri
from itrain_operator.settingsfile import parse_settings
from itrain_testing.builders import STORAGE, make_run, make_spec, ref
from itrain_testing.jobs import ExpectedJob, children, container, env, mounts, pod, settings

GPU_TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


def stage(kind: str, **fields: Any) -> dict[str, Any]:
    return {"stages": {kind: fields}}


def test_an_unsharded_stage_is_one_pod_that_fails_its_job_at_once() -> None:
    run = make_run(make_spec(queue={"name": "v100", "priorityClass": "research"}))
    made = children(run, ref("prepare"), settings())
    expected = (
        ExpectedJob(run, ref("prepare"))
        .annotated(made)
        .queued("v100", "research")
        .whole()
        .image("trainer")
        .resources({"cpu": 1, "memory": "4Gi"})
        .threads(1)
        .with_pod(tolerations=[GPU_TOLERATION])
    )
    assert made.job == expected.build()
    assert made.service is None


def test_a_sharded_stage_is_an_indexed_job_that_replaces_what_was_disrupted() -> None:
    rollout = stage("rollout", shards=8, parallelism=4, minSucceeded=7, gpus=1, retry={"limit": 2})
    run = make_run(make_spec(template={"nodePool": "cpu"}, **rollout))
    made = children(run, ref("rollout", 1), settings(), attempt=3)
    expected = (
        ExpectedJob(run, ref("rollout", 1), attempt=3)
        .annotated(made)
        .sharded(8, 4, retries=2, may_fail=1)
        .image("cpu")
        .resources({"cpu": 4, "memory": "24Gi", "nvidia.com/gpu": "1"}, {"nvidia.com/gpu": "1"})
        .threads(4)
        .shm()
    )
    assert made.job == expected.build()


def test_a_training_on_several_nodes_is_an_indexed_job_whose_pods_find_node_0_by_name() -> None:
    train = stage("train", nodes=2, gpus=0)
    run = make_run(make_spec(template={"nodePool": "cpu"}, **train))
    made = children(run, ref("train", 2), settings())
    name = "run-i2-train-a1"
    expected = (
        ExpectedJob(run, ref("train", 2))
        .annotated(made)
        .whole(nodes=2)
        .image("cpu")
        .resources({"cpu": 4, "memory": "32Gi"})
        .threads(4)
        .with_env(ITRAIN_MASTER_ADDR=f"{name}-0.{name}", ITRAIN_MASTER_PORT="29500")
        .with_pod(subdomain=name)
    )
    assert made.job == expected.build()
    labels = made.job["spec"]["template"]["metadata"]["labels"]
    assert made.service == {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": made.config_map["metadata"],
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": labels,
            "ports": [{"name": "rendezvous", "port": 29500, "protocol": "TCP"}],
        },
    }


def test_the_stage_input_travels_as_an_immutable_config_map_of_the_run() -> None:
    run = make_run()
    made = children(run, ref("warmup"), settings())
    data = made.config_map["data"]
    stage_input = StageInput.model_validate_json(data["stage-input.json"])
    assert made.config_map == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": "run-i0-warmup-a1",
            "namespace": "team",
            "labels": made.job["spec"]["template"]["metadata"]["labels"],
            "annotations": {"itrain.dev/input-digest": stage_input.digest},
            "ownerReferences": made.job["metadata"]["ownerReferences"],
        },
        "immutable": True,
        "data": data,
    }
    assert stage_input.run == run.identity
    names = children_names(made.job["metadata"]["name"])
    assert (names.config_map, names.service) == ("run-i0-warmup-a1", "run-i0-warmup-a1")


def test_prepare_sees_every_secret_as_files_and_later_stages_only_the_storages() -> None:
    spec = make_spec(
        model={"uri": "hf://org/model", "secretRef": {"name": "hf"}},
        data={
            "uri": "s3://a/rows",
            "secretRef": {"name": "rows"},
            "extra": [{"uri": "s3://b/more", "secretRef": {"name": "more"}}, {"uri": "s3://c/rest"}],
            "dev": {"uri": "s3://a/dev", "secretRef": {"name": "rows"}},
        },
        storage={"uri": STORAGE, "secretRef": {"name": "s3"}},
        template={"nodePool": "cpu"},
    )
    run = make_run(spec)
    made = children(run, ref("prepare"), settings())
    expected = (
        ExpectedJob(run, ref("prepare"))
        .annotated(made)
        .whole()
        .image("cpu")
        .resources({"cpu": 1, "memory": "4Gi"})
        .threads(1)
        .env_from("s3")
    )
    for number, name in enumerate(("s3", "hf", "rows", "more")):
        expected.secret(number, name)
    assert made.job == expected.build()
    later = children(run, ref("rollout", 1), settings()).job
    assert [v["secret"]["secretName"] for v in pod(later)["volumes"] if "secret" in v] == ["s3"]


def test_the_benchmarks_secret_is_there_for_the_evaluation_only() -> None:
    bank = {"benchmarks": ["apibank"], "apiBank": {"uri": "s3://bank/items", "secretRef": {"name": "bank"}}}
    run = make_run(make_spec(**stage("evaluate", **bank)))
    assert "/etc/itrain/secrets/bank" in mounts(children(run, ref("evaluate"), settings()).job)
    assert "/etc/itrain/secrets/bank" not in mounts(children(run, ref("prepare"), settings()).job)
    plugin = {"plugins": [{"name": "acebench", "uri": "s3://ace/en/", "secretRef": {"name": "ace"}}]}
    job = children(make_run(make_spec(**stage("evaluate", **plugin))), ref("evaluate"), settings()).job
    assert "/etc/itrain/secrets/ace" in mounts(job)


def test_a_trackers_secret_keeps_no_pod_waiting_and_is_where_figures_are_sent_from() -> None:
    """The storage's stays required, also where a tracker reads it too."""
    wandb = {"project": "p", "secretRef": {"name": "s3"}}
    tracking = {"mlflow": {"uri": "https://ml.example", "secretRef": {"name": "ml"}}, "wandb": wandb}
    storage = {"uri": STORAGE, "secretRef": {"name": "s3"}}
    run = make_run(make_spec(storage=storage, tracking=tracking))
    for kind in ("prepare", "warmup", "train", "evaluate", "export"):
        iteration = 1 if kind == "train" else 0
        job = children(run, ref(kind, iteration), settings()).job
        volumes = [volume["secret"] for volume in pod(job)["volumes"] if "secret" in volume]
        assert [(v["secretName"], v.get("optional", False)) for v in volumes] == [("s3", False), ("ml", True)]
        assert "/etc/itrain/secrets/ml" in mounts(job)
    assert "/etc/itrain/secrets/ml" not in mounts(children(run, ref("rollout", 1), settings()).job)


def test_storage_on_a_volume_claim_is_a_folder_of_every_pod() -> None:
    spec = make_spec(storage={"pvc": {"claimName": "runs", "subPath": "team/a"}})
    job = children(make_run(spec), ref("score", 1), settings()).job
    assert storage_uri(spec) == "file:///itrain/storage"
    assert {"name": "storage", "mountPath": "/itrain/storage", "subPath": "team/a"} in container(job)["volumeMounts"]
    assert {"name": "storage", "persistentVolumeClaim": {"claimName": "runs"}} in pod(job)["volumes"]


@pytest.mark.parametrize(("claim", "volumes"), [("models", 2), ("runs", 1)])
def test_models_are_cached_on_the_claim_that_the_run_names(claim: str, volumes: int) -> None:
    spec = make_spec(model={"uri": "hf://org/model", "cache": {"pvc": claim}}, storage={"pvc": {"claimName": "runs"}})
    job = children(make_run(spec), ref("score", 1), settings()).job
    claims = {
        v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod(job)["volumes"] if "persistentVolumeClaim" in v
    }
    assert len(claims) == volumes
    assert claims[mounts(job)["/var/cache/itrain"]] == claim
    assert env(job)["HF_HOME"] == "/var/cache/itrain/huggingface"


@pytest.mark.parametrize("uri", ["./results", "/data/results", "file:///data/results"])
def test_a_folder_of_one_machine_is_no_storage_in_a_cluster(uri: str) -> None:
    with pytest.raises(ManifestError, match=r"storage\.uri: got '.*', allowed in a cluster are s3://… or storage\.pvc"):
        storage_uri(make_spec(storage={"uri": uri}))


def test_templates_go_over_the_pool_scalars_replace_maps_merge_and_tolerations_add_up() -> None:
    text = """
pools:
  volta:
    nodeSelector: {pool: v100, zone: a}
    tolerations: [{key: nvidia.com/gpu, operator: Exists}]
    priorityClassName: low
    affinity: null
    runtimeClassName: nvidia
    env: [{name: NCCL_DEBUG, value: WARN}, {name: A, value: pool}]
    precisionDefault: fp16
extraEnv: [{name: A, value: extra}, {name: B, value: extra}]
"""
    spec = make_spec(
        template={
            "nodePool": "volta",
            "nodeSelector": {"zone": "b"},
            "tolerations": [{"key": "team", "value": "x", "effect": "NoSchedule"}],
            "serviceAccountName": "runs",
            "imagePullSecrets": [{"name": "registry"}],
            "labels": {"cost": "42"},
            "annotations": {"note": "mine"},
            "env": [{"name": "B", "value": "run"}],
        },
        **stage("warmup", gpus=2, template={"priorityClassName": "high", "env": [{"name": "C", "value": "stage"}]}),
    )
    job = children(make_run(spec), ref("warmup"), settings(text)).job
    shown = {k: v for k, v in pod(job).items() if k not in ("containers", "volumes", "securityContext")}
    assert shown == {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 120,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "serviceAccountName": "runs",
        "imagePullSecrets": [{"name": "registry"}],
        "priorityClassName": "high",
        "runtimeClassName": "nvidia",
        "nodeSelector": {"pool": "v100", "zone": "b"},
        "tolerations": [
            {"key": "nvidia.com/gpu", "operator": "Exists"},
            {"key": "team", "value": "x", "effect": "NoSchedule"},
        ],
    }
    variables = env(job)
    assert (variables["A"], variables["B"], variables["C"], variables["NCCL_DEBUG"]) == (
        "pool",
        "extra",
        "stage",
        "WARN",
    )
    assert variables["ITRAIN_PRECISION_DEFAULT"] == "fp16"
    assert container(job)["image"] == "volta"
    for metadata in (job["metadata"], job["spec"]["template"]["metadata"]):
        assert metadata["labels"]["cost"] == "42"
        assert metadata["annotations"]["note"] == "mine"


def test_gpu_nodes_are_asked_for_by_pods_with_gpus_only() -> None:
    run = make_run(make_spec(template={"nodePool": "volta"}, **stage("warmup", gpus=8)))
    affinity = pod(children(run, ref("warmup"), settings()).job)["affinity"]
    terms = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert terms[0] == {"matchExpressions": [{"key": "nvidia.com/gpu.family", "operator": "In", "values": ["volta"]}]}
    assert "affinity" not in pod(children(run, ref("prepare"), settings()).job)


def test_what_a_stage_asks_for_replaces_the_default_of_that_resource_whole() -> None:
    resources = {"limits": {"memory": "4Gi", "cpu": "1500m", "nvidia.com/gpu": 9}}
    job = children(make_run(make_spec(**stage("train", gpus=0, resources=resources))), ref("train", 1), settings()).job
    assert container(job)["resources"] == {"limits": {"memory": "4Gi", "cpu": "1500m"}}
    assert env(job)["OMP_NUM_THREADS"] == "1"


def test_people_may_set_any_variable_but_those_that_say_what_the_pod_is() -> None:
    own = {"HOME": "/elsewhere", "OMP_NUM_THREADS": "3", "JOB_COMPLETION_INDEX": "0", "ITRAIN_STAGE_INPUT": "/x"}
    own |= {"ITRAIN_POD_UID": "mine", "ITRAIN_ATTEMPT": "7"}
    template = {"env": [{"name": name, "value": value} for name, value in own.items()]}
    job = children(make_run(make_spec(template=template)), ref("score", 1), settings()).job
    found = env(job)
    assert (found["HOME"], found["OMP_NUM_THREADS"]) == ("/elsewhere", "3")
    assert (found["ITRAIN_STAGE_INPUT"], found["ITRAIN_ATTEMPT"]) == ("/etc/itrain/input/stage-input.json", "1")
    assert "JOB_COMPLETION_INDEX" not in found
    assert "ITRAIN_POD_UID" not in found


def test_a_stages_own_image_goes_before_the_table() -> None:
    run = make_run(make_spec(**stage("score", image="registry.example/own:1")))
    assert container(children(run, ref("score", 1), settings()).job)["image"] == "registry.example/own:1"


def test_without_an_image_the_job_is_refused_by_the_name_of_what_is_missing() -> None:
    with pytest.raises(ManifestError, match=r"no image for rollout on node pool current: set stages\.rollout\.image"):
        children(make_run(), ref("rollout", 1), parse_settings("", {}))


@pytest.mark.parametrize("cpu", ["many", "4Ki", "-1"])
def test_a_cpu_quantity_that_cannot_be_read_is_named(cpu: str) -> None:
    run = make_run(make_spec(**stage("score", resources={"limits": {"cpu": cpu}})))
    with pytest.raises(ManifestError, match=rf"stages\.score\.resources: cpu is '{cpu}'"):
        children(run, ref("score", 1), settings())


def test_the_template_hash_is_that_of_the_template_whatever_the_attempt() -> None:
    run = make_run()
    first, second = (children(run, ref("warmup"), settings(), attempt=n) for n in (1, 2))
    assert (
        first.template_hash == second.template_hash == first.job["metadata"]["annotations"]["itrain.dev/template-hash"]
    )
    upgraded = children(run, ref("warmup"), settings("imagePullPolicy: Always"))
    assert upgraded.template_hash != first.template_hash


def test_fewer_shards_at_a_time_may_start_where_the_spec_says_so_and_a_minimum_says_anything() -> None:
    """Kueue refuses a minimum that is not below the parallelism; a training starts whole or not at all."""
    run = make_run(
        make_spec(
            queue={"name": "v100", "priorityClass": "research", "minParallelism": 2},
            stages={"score": {"shards": 8, "parallelism": 2}, "rollout": {"shards": 8, "parallelism": 4}},
        )
    )
    annotation = "kueue.x-k8s.io/job-min-parallelism"
    found = {}
    for kind, iteration in (("warmup", 0), ("score", 1), ("rollout", 1), ("train", 1)):
        job = children(run, ref(kind, iteration), settings()).job
        found[kind] = job["metadata"]["annotations"].get(annotation)
        assert annotation not in job["spec"]["template"]["metadata"].get("annotations", {})
    assert found == {"warmup": None, "score": None, "rollout": "2", "train": None}


def test_the_queue_is_no_part_of_what_a_template_is() -> None:
    """What Kueue adds to a Job, and that it waits in another queue, is no other template."""
    jobs = [
        children(make_run(make_spec(queue=queue)), ref("rollout", 1), settings())
        for queue in ({"name": "a"}, {"name": "b", "minParallelism": 1})
    ]
    assert jobs[0].template_hash == jobs[1].template_hash


def test_nothing_is_set_that_belongs_to_others() -> None:
    for kind, iteration in (("prepare", 0), ("score", 1), ("train", 1)):
        job = children(make_run(), ref(kind, iteration), settings()).job
        absent = {"suspend", "ttlSecondsAfterFinished", "successPolicy", "activeDeadlineSeconds", "selector"}
        assert absent.isdisjoint(job["spec"])
        assert json.loads(json.dumps(job)) == job
