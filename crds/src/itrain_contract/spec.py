"""ITrainRunSpec: what a user asks for (API document, "Resource")."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from itrain_contract.base import Rule, SpecModel
from itrain_contract.stagespec import Fraction, Seconds, Stages, Uri
from itrain_contract.template import LabelValue, Name, SecretRef, Template
from itrain_contract.tracking import Tracking

DataFormat = Literal["toolace", "xlam", "bfcl", "messages"]
CallFormat = Literal["pythonic", "hermes", "llama"]
Precision = Literal["auto", "fp16", "bf16", "fp32"]
KeepCheckpoints = Literal["best", "all"]
MetricName = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[a-z0-9_]+(/[a-z0-9_]+)*$")]


class CacheVolume(SpecModel):
    """A volume claim that holds staged models, shared by pods."""

    pvc: Name
    """Name of the claim; one that many nodes can mount (ReadWriteMany) where pods run on many."""


class ModelSpec(SpecModel):
    """The base model: a causal language model with a chat template, in Hugging Face layout, weights as safetensors."""

    uri: Uri
    """`hf://org/name`, `s3://…`, a folder, or `builtin://toolworld`."""
    revision: Annotated[str, StringConstraints(min_length=1, max_length=255)] | None = None
    """Branch, tag or commit; resolved to a commit once, by prepare."""
    secret_ref: SecretRef | None = None
    """HF_TOKEN (and HF_ENDPOINT), or the AWS names of the storage's Secret; only prepare reads it."""
    cache: CacheVolume | None = None
    trust_remote_code: bool = False
    """Run Python that the model brings. Rarely needed, and as safe as its author."""


class DataSource(SpecModel):
    uri: Uri
    """`hf://org/name/file.json`, `s3://…`, a file, or `builtin://toolworld?split=train&rows=400&seed=1`."""
    format: DataFormat = "toolace"
    """How a row is written (docs/running.md)."""
    secret_ref: SecretRef | None = None
    """As the model's, for this source alone; without one the storage's credentials read it."""


class DataSpec(DataSource):
    """The rows to train on, one conversation with tools each."""

    extra: Annotated[list[DataSource], Field(max_length=16)] = []
    """Further sources, read after `uri` and concatenated."""
    dev: DataSource | None = None
    """An own dev set; without it `devFraction` is split off by shared-tool component."""
    dev_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.02
    """Share of the rows that becomes the dev set where there is no `dev`."""
    max_rejected: Fraction = 0.05
    """Share of unusable rows above which the run ends in prepare."""
    call_format: CallFormat = "pythonic"
    """How calls are written in prompts and answers: `[f(a=1)]`, `<tool_call>{…}</tool_call>`, or Llama's JSON."""
    turns: Literal["all", "last"] = "all"
    """Assistant turns with a target that become examples."""


SUB_PATH = r"^[^/\s.\x00][^/\s\x00]*(/\.?[^/\s.\x00][^/\s\x00]*)*/?$"
"""Segments that no `.` begins, or one that something else follows: none is `..`."""


class VolumeClaim(SpecModel):
    """A volume claim in the run's namespace."""

    claim_name: Name
    """Name of the claim."""
    sub_path: Annotated[str, StringConstraints(max_length=255, pattern=SUB_PATH)] | None = None
    """Folder in the volume, as in `team-a/runs`."""


class StorageSpec(SpecModel):
    """Where results and checkpoints lie, below `<run>-<uid>/`; one of `uri` and `pvc`."""

    uri: Uri | None = None
    """`s3://bucket/prefix`, or a folder for local runs."""
    secret_ref: SecretRef | None = None
    """AWS environment names as keys, AWS_ENDPOINT_URL, AWS_REGION, AWS_S3_ADDRESSING_STYLE, AWS_CA_BUNDLE included."""
    pvc: VolumeClaim | None = None

    RULES = (
        Rule(
            cel="has(self.uri) != has(self.pvc)",
            message="exactly one of uri and pvc must be set",
            holds=lambda s: (s.uri is None) != (s.pvc is None),
            field="uri",
        ),
        Rule(
            cel="!has(self.uri) || !(self.uri.startsWith('hf://') || self.uri.startsWith('builtin://'))",
            message="storage must be s3://… or a folder: hf:// and builtin:// cannot be written",
            holds=lambda s: s.uri is None or not s.uri.startswith(("hf://", "builtin://")),
            field="uri",
        ),
    )


class AdapterSpec(SpecModel):
    """The one LoRA adapter that warm-up creates and every iteration continues."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """r: columns of A and rows of B."""
    alpha: Annotated[float, Field(gt=0.0, le=8192.0)] = 32.0
    """The adapter's weight is alpha/rank."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Of the adapter's inputs, in warm-up and train."""
    targets: Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[A-Za-z0-9_.,-]+$")] = (
        "all-linear"
    )
    """`all-linear`, or module names separated by commas, as in `q_proj,v_proj`."""


class StopWhen(SpecModel):
    """End the iterations when the metric gained less than minDeltaSE standard errors, `patience` times in a row."""

    metric: MetricName = "dev/call_accuracy"
    """What has to gain, as in `bfcl/accuracy`; also what `best` is chosen by."""
    min_delta_se: Annotated[float, Field(ge=0.0, le=100.0, alias="minDeltaSE")] = 0.5
    """Least gain over the best value before, in standard errors of the metric."""
    patience: Annotated[int, Field(ge=1, le=100)] = 1
    """Iterations in a row with too little gain after which no other starts."""


class IterationsSpec(SpecModel):
    """How often score, rollout, train and evaluate are repeated."""

    max: Annotated[int, Field(ge=0, le=100)] = 3
    """Iterations; 0 is a warm-up alone. May be raised while the run is under way."""
    stop_when: StopWhen | None = None
    """Absent: all iterations run."""
    metric: MetricName = "dev/call_accuracy"
    """What `best` is chosen by when stopWhen is absent."""


class Queue(SpecModel):
    """Kueue: labels on the Jobs."""

    name: LabelValue
    """LocalQueue in the run's namespace."""
    priority_class: LabelValue | None = None
    """WorkloadPriorityClass."""
    min_parallelism: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Score and rollout may start with as few pods as this where the quota has no room for `parallelism`; absent: all
    or nothing. What they started with they keep."""


class ResumeFrom(SpecModel):
    """A finished or stopped run whose adapter this one starts from, instead of a warm-up."""

    run_name: Name | None = None
    """A run of the same namespace and storage."""
    uri: Uri | None = None
    """The folder of a run or of an attempt with an adapter, as in `s3://bucket/runs/itool-8b-0f1e2d3c/`."""

    RULES = (
        Rule(
            cel="has(self.runName) != has(self.uri)",
            message="exactly one of runName and uri must be set",
            holds=lambda r: (r.run_name is None) != (r.uri is None),
            field="runName",
        ),
    )


class ITrainRunSpec(SpecModel):
    """Everything a run is. A short run needs only model, data and storage."""

    model: ModelSpec
    data: DataSpec
    storage: StorageSpec
    adapter: AdapterSpec = AdapterSpec()
    iterations: IterationsSpec = IterationsSpec()
    precision: Precision = "auto"
    """Number format of all computation; `auto`: bf16, fp16 or fp32 by node pool and device (docs/precision.md)."""
    seed: Annotated[int, Field(ge=0, le=2_147_483_647)] = 42
    """Of the split, the orders and all sampling."""
    max_gpu_hours: Annotated[float, Field(gt=0.0, le=10_000_000.0)] | None = None
    """GPUs × running time, over all attempts, at which the run is ended."""
    template: Template | None = None
    stages: Stages = Stages()
    queue: Queue | None = None
    suspend: bool = False
    """Let the pods save and end, and hold the run until this is false again."""
    resume_from: ResumeFrom | None = None
    tracking: Tracking | None = None
    """Where figures are sent besides the storage, while the run is under way."""
    active_deadline_seconds: Seconds | None = None
    """Running time of the whole run after which it fails; suspended and queued time does not count."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=31_536_000)] | None = None
    """Time after the end of the run at which its Jobs go, with their logs; never the run or an artifact."""
    history_limit: Annotated[int, Field(ge=1, le=100)] = 10
    """Newest iterations of which the status keeps figures; storage has them all."""
    keep_checkpoints: KeepCheckpoints = "best"
    """`best`: a training that is done keeps its adapter, and its checkpoint, with the optimizer's state, is deleted.
    `all`: both stay. The adapters of all iterations stay in either case, until `itrain purge`."""

    RULES = (
        Rule(
            cel="self.stages.train.enabled || self.iterations.max == 0",
            message="iterations.max must be 0 when score, rollout and train are disabled",
            holds=lambda s: s.stages.train.enabled or s.iterations.max == 0,
            field="iterations.max",
        ),
        Rule(
            cel="self.stages.evaluate.enabled || !has(self.iterations.stopWhen)",
            message="iterations.stopWhen needs the evaluate stage: there is no metric without it",
            holds=lambda s: s.stages.evaluate.enabled or s.iterations.stop_when is None,
            field="iterations.stopWhen",
        ),
        Rule(
            cel="self.precision == 'fp32' || self.precision == 'auto' || !has(self.template) || "
            "!has(self.template.nodePool) || self.template.nodePool != 'volta' || self.precision == 'fp16'",
            message="precision bf16 cannot run on the node pool volta (sm_70 has no bf16): use auto or fp16",
            holds=lambda s: s.precision != "bf16" or s.template is None or s.template.node_pool != "volta",
            field="precision",
        ),
    )

    @property
    def metric(self) -> str:
        """The metric by which iterations are compared."""
        stop = self.iterations.stop_when
        return stop.metric if stop else self.iterations.metric
