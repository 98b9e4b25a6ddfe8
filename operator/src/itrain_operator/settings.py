"""The operator's settings: a YAML file, scalars overridden by ITRAIN_* variables; closed, bounded, failing early.

The file may be missing: every field has a default, only images have none (a Job without one is refused when it is
built, by the name of the setting that is missing).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from itrain_contract.base import Rule, SpecModel
from itrain_contract.spec import Precision
from itrain_contract.stages import TRAININGS, StageKind
from itrain_contract.stagespec import Image
from itrain_contract.template import (
    Affinity,
    EnvVar,
    LabelKey,
    LabelValue,
    Name,
    NodeAffinity,
    NodeSelectorTerm,
    Pool,
    Quantity,
    RequiredNodes,
    Resources,
    SelectorRequirement,
    Toleration,
)

Namespace = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
Port = Annotated[int, Field(ge=1, le=65_535)]
UserId = Annotated[int, Field(ge=1, le=2_147_483_647)]
MountPath = Annotated[str, StringConstraints(min_length=2, max_length=255, pattern=r"^/[A-Za-z0-9._/-]*[A-Za-z0-9]$")]
Argument = Annotated[str, StringConstraints(min_length=1, max_length=1024)]


class LeaseSettings(SpecModel):
    """Leader election: at any time one replica acts, the others stand by."""

    enabled: bool = True
    """With one replica it may be off."""
    name: Name = "itrain-operator"
    """Of the Lease; two operators with the same one never act at the same time."""
    namespace: Annotated[str, StringConstraints(max_length=63, pattern=r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$")] = ""
    """Where the Lease lies; empty means the operator's own namespace."""
    duration_seconds: Annotated[int, Field(ge=3, le=10)] = 10
    """Time after which a standby takes over from a replica that is gone."""
    renew_seconds: Annotated[int, Field(ge=2, le=9)] = 7
    """Time after which a leader that could not renew stops acting."""
    retry_seconds: Annotated[int, Field(ge=1, le=8)] = 2
    """Pause between two tries."""

    RULES = (
        Rule(
            cel="self.retrySeconds < self.renewSeconds && self.renewSeconds < self.durationSeconds",
            message="retrySeconds < renewSeconds < durationSeconds must hold: a leader stops before another one starts",
            holds=lambda s: s.retry_seconds < s.renew_seconds < s.duration_seconds,
            field="renewSeconds",
        ),
    )


class ImageKind(StrEnum):
    """What a stage's image must hold."""

    PIPELINE = "pipeline"
    TRAINER = "trainer"
    ROLLOUT = "rollout"


class PoolImages(SpecModel):
    """The images of a node pool."""

    pipeline: Image | None = None
    """Stands in where the kind that a stage needs has no image of its own."""
    trainer: Image | None = None
    """torch, transformers, peft, trl, deepspeed."""
    rollout: Image | None = None
    """The inference engine."""

    def image(self, kind: ImageKind) -> str | None:
        own: str | None = getattr(self, kind.value)
        return own or self.pipeline


class StageImages(SpecModel):
    """Which kind of image a stage runs in."""

    prepare: ImageKind = ImageKind.TRAINER
    """Reads data and model, renders and checks them."""
    warmup: ImageKind = ImageKind.TRAINER
    """Trains easy to hard."""
    score: ImageKind = ImageKind.TRAINER
    """Perplexities."""
    rollout: ImageKind = ImageKind.ROLLOUT
    """Searches."""
    train: ImageKind = ImageKind.TRAINER
    """Preferences."""
    evaluate: ImageKind = ImageKind.ROLLOUT
    """Answers and judges."""
    export: ImageKind = ImageKind.TRAINER
    """Merges, reports."""


class ImageTable(SpecModel):
    """Node pool and stage to image; a stage's own `image` goes before it."""

    volta: PoolImages = PoolImages()
    current: PoolImages = PoolImages()
    cpu: PoolImages = PoolImages()
    stages: StageImages = StageImages()

    def pool(self, pool: Pool) -> PoolImages:
        found: PoolImages = getattr(self, pool)
        return found

    def kind(self, stage: StageKind) -> ImageKind:
        found: ImageKind = getattr(self.stages, stage.value)
        return found


class PoolPreset(SpecModel):
    """What pods of a node pool get. Templates go over it: scalars replace, maps and env merge, tolerations add up."""

    applies_to: Literal["gpuPods", "allPods"] = "allPods"
    """Whether nodeSelector, affinity and runtimeClassName hold for pods without a GPU too."""
    node_selector: Annotated[dict[LabelKey, LabelValue], Field(max_length=32)] = {}
    """Labels that a node must have."""
    tolerations: Annotated[list[Toleration], Field(max_length=32)] = []
    """Taints that its nodes may have."""
    affinity: Affinity | None = None
    """Which nodes, where labels alone do not tell."""
    runtime_class_name: Name | None = None
    """A RuntimeClass of the cluster, as `nvidia`."""
    priority_class_name: Name | None = None
    """A PriorityClass of the cluster."""
    env: Annotated[list[EnvVar], Field(max_length=64)] = []
    """Over `extraEnv`."""
    precision_default: Precision = "auto"
    """What `precision: auto` stands for on this pool; `auto`: the pod's device decides."""


def _required(*terms: NodeSelectorTerm) -> Affinity:
    """Nodes that meet one of the terms."""
    required = RequiredNodes(node_selector_terms=list(terms))
    return Affinity(node_affinity=NodeAffinity(required_during_scheduling_ignored_during_execution=required))


def _term(*requirements: tuple[str, Literal["In", "NotIn"], list[str]]) -> NodeSelectorTerm:
    return NodeSelectorTerm(
        match_expressions=[SelectorRequirement(key=k, operator=o, values=v) for k, o, v in requirements]
    )


GPU_FAMILY = "nvidia.com/gpu.family"
GKE_ACCELERATOR = "cloud.google.com/gke-accelerator"
OLD_FAMILIES = ["kepler", "maxwell", "pascal", "volta"]
GPU_TOLERATION = Toleration(key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")


class VoltaPreset(PoolPreset):
    """Nodes with V100 GPUs."""

    applies_to: Literal["gpuPods", "allPods"] = "gpuPods"
    tolerations: Annotated[list[Toleration], Field(max_length=32)] = [GPU_TOLERATION]
    affinity: Affinity | None = _required(
        _term((GPU_FAMILY, "In", ["volta"])),
        _term(("nvidia.com/gpu.compute.major", "In", ["7"]), ("nvidia.com/gpu.compute.minor", "In", ["0"])),
        _term((GKE_ACCELERATOR, "In", ["nvidia-tesla-v100"])),
    )


class CurrentPreset(PoolPreset):
    """Nodes with GPUs from Turing on. Absent labels match NotIn: nodes that nobody labelled are allowed."""

    applies_to: Literal["gpuPods", "allPods"] = "gpuPods"
    tolerations: Annotated[list[Toleration], Field(max_length=32)] = [GPU_TOLERATION]
    affinity: Affinity | None = _required(
        _term(
            (GPU_FAMILY, "NotIn", OLD_FAMILIES),
            (GKE_ACCELERATOR, "NotIn", [f"nvidia-tesla-{model}" for model in ("k80", "p4", "p100", "v100")]),
        )
    )


class Pools(SpecModel):
    """The presets of the node pools."""

    volta: VoltaPreset = VoltaPreset()
    current: CurrentPreset = CurrentPreset()
    cpu: PoolPreset = PoolPreset()

    def pool(self, pool: Pool) -> PoolPreset:
        found: PoolPreset = getattr(self, pool)
        return found


class PodSecurity(SpecModel):
    """Who stage processes run as; root is not allowed."""

    run_as_user: UserId = 10001
    """Of the processes."""
    run_as_group: UserId = 10001
    """Of the processes."""
    fs_group: UserId = 10001
    """Group of mounted volumes."""


class DefaultResources(SpecModel):
    """Resources of stages that ask for none; what a stage asks for goes before it, resource by resource."""

    data: Resources = Resources(requests={"cpu": 1, "memory": "4Gi"})
    """prepare and export."""
    training: Resources = Resources(requests={"cpu": 4, "memory": "32Gi"})
    """warmup and train."""
    inference: Resources = Resources(requests={"cpu": 4, "memory": "24Gi"})
    """score, rollout and evaluate."""

    def stage(self, kind: StageKind) -> Resources:
        if kind in (StageKind.PREPARE, StageKind.EXPORT):
            return self.data
        return self.training if kind in TRAININGS else self.inference


class ProgressSettings(SpecModel):
    """How often the operator looks how far the running stages are."""

    interval_seconds: Annotated[int, Field(ge=1, le=3600)] = 15
    """Between two looks at the logs of a running pod."""
    requests_per_second: Annotated[float, Field(gt=0.0, le=1000.0)] = 2.0
    """Of all runs together; and as many writes a second of statuses in which only time has passed."""


class KueueSettings(SpecModel):
    """Queues (docs/queueing.md). Runs that name none are not concerned."""

    enabled: bool = False
    """Read Workloads, to say what a run waits for, and set their `spec.active`, to pause it: needs both rights."""


class OperatorSettings(SpecModel):
    """Everything an installation decides; none of it changes what a run computes, precisionDefault excepted."""

    namespaces: Annotated[list[Namespace], Field(max_length=1000)] = []
    """Namespaces that are watched; empty means all of them."""
    workers: Annotated[int, Field(ge=1, le=256)] = 16
    """Runs that are reconciled at a time."""
    resync_seconds: Annotated[int, Field(ge=10, le=86_400)] = 300
    """Every run is looked at this often, whatever the watches say."""
    lease: LeaseSettings = LeaseSettings()
    metrics_port: Port = 9090
    """Prometheus reads `/metrics` there."""
    health_port: Port = 8080
    """The kubelet reads `/healthz` and `/readyz` there."""
    request_timeout_seconds: Annotated[int, Field(ge=1, le=600)] = 30
    """Of one API request."""
    api_qps: Annotated[float, Field(gt=0.0, le=10_000.0)] = 200.0
    """API requests per second, in the long run; a stage that ends and the next one take about ten."""
    api_burst: Annotated[int, Field(ge=1, le=100_000)] = 400
    """API requests at once."""
    default_pool: Pool = "current"
    """The node pool of runs that name none."""
    images: ImageTable = ImageTable()
    pools: Pools = Pools()
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """Of the stage pods."""
    command: Annotated[list[Argument], Field(min_length=1, max_length=16)] = ["python", "-m", "itrain_pipeline"]
    """The stage's name is its last argument."""
    pod_security: PodSecurity = PodSecurity()
    cache_mount_path: MountPath = "/var/cache/itrain"
    """Where pods keep models and inputs that they fetched."""
    shm_size: Quantity = "8Gi"
    """Limit of the memory-backed /dev/shm of pods with GPUs; it counts as the container's memory."""
    default_resources: DefaultResources = DefaultResources()
    progress: ProgressSettings = ProgressSettings()
    kueue: KueueSettings = KueueSettings()
    extra_env: Annotated[list[EnvVar], Field(max_length=64)] = []
    """Environment of every stage pod; the pool's, the run's and the stage's go over it."""

    RULES = (
        Rule(
            cel="self.metricsPort != self.healthPort",
            message="metricsPort and healthPort must differ",
            holds=lambda s: s.metrics_port != s.health_port,
            field="metricsPort",
        ),
    )
