"""What the operator hands to a stage and what the stage hands back.

The StageInput travels as a ConfigMap (or a file, locally) and never holds a credential. Its digest names the work:
checkpoints lie under it, and a result is believed only when it carries it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from itrain_contract.base import SpecModel
from itrain_contract.layout import ADAPTER_DIR, RunLayout, parse_indexes, shard_prefix
from itrain_contract.names import TERMINATION_MESSAGE_LIMIT_BYTES
from itrain_contract.spec import ITrainRunSpec, KeepCheckpoints
from itrain_contract.stages import StageKind, StageRef, stage_spec
from itrain_contract.stagespec import Stage
from itrain_contract.tracking import Tracking

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
SCHEMA = 1
TRACKED = (StageKind.PREPARE, StageKind.WARMUP, StageKind.TRAIN, StageKind.EVALUATE, StageKind.EXPORT)
"""Stages that know the trackers: prepare checks that it has what they need, the others send what the run measured. All
that ran before one of these, shards included, has ended."""


def printable(text: str) -> str:
    """A text from outside for a terminal: control and format characters as their escapes, line ends and tabs kept."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


class ArtifactRef(SpecModel):
    """One object in storage and what its bytes must hash to."""

    uri: str
    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=0)]


class RunIdentity(SpecModel):
    name: str
    namespace: str = ""
    uid: str
    storage: str
    """URI of the storage root as the pod sees it (`s3://…` or `file:///…`)."""

    @property
    def layout(self) -> RunLayout:
        return RunLayout(storage=self.storage, name=self.name, uid=self.uid)


class UpstreamResult(SpecModel):
    """A finished stage that this one reads: where its results lie and which shards count."""

    kind: StageKind
    iteration: int
    prefix: str
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{16,64}$")]
    """The first digits of the digest that its results must carry."""
    shards: str | None = None
    """Completed indexes, `0-2,5`; None for an unsharded stage. With a `?` at the end those of them that hold a valid
    result."""

    @property
    def ref(self) -> StageRef:
        return StageRef(kind=self.kind, iteration=self.iteration)

    def result_prefixes(self) -> tuple[str, ...]:
        """Prefixes that each hold one result.json."""
        if self.shards is None:
            return (self.prefix,)
        indexes = parse_indexes(self.shards.removesuffix("?"))
        return tuple(shard_prefix(self.prefix, index) for index in sorted(indexes))

    @property
    def lenient(self) -> bool:
        """Whether shards without a result are left out instead of being an error."""
        return self.shards is not None and self.shards.endswith("?")


class StageInput(SpecModel):
    """Everything a stage process needs to know, credentials excepted."""

    schema_version: Literal[1] = 1
    run: RunIdentity
    kind: StageKind
    iteration: int
    attempt: int
    shards: int | None = None
    """Number of completion indexes; None for an unsharded stage."""
    spec: dict[str, Any]
    """The stage's own slice of the spec (`spec_slice`), camelCase."""
    upstream: tuple[UpstreamResult, ...] = ()
    best_iteration: int | None = None
    """Export only: the iteration whose adapter is published, 0 for the warm-up's."""
    tracking: Tracking | None = None
    """No part of the digest: where figures are sent changes no result."""
    keep_checkpoints: KeepCheckpoints = "all"
    """No part of the digest either. An input of before this field keeps them."""
    output_prefix: str
    work_prefix: str
    digest: Sha256

    @property
    def ref(self) -> StageRef:
        return StageRef(kind=self.kind, iteration=self.iteration)

    def from_upstream(self, kind: StageKind, iteration: int | None = None) -> UpstreamResult | None:
        """The newest upstream result of a kind, or the one of an iteration."""
        found = [u for u in self.upstream if u.kind == kind and iteration in (None, u.iteration)]
        return max(found, key=lambda u: u.iteration) if found else None


Outcome = Literal["succeeded", "failed"]


MOST_COUNTED = 2**53
"""The largest count that every reader of JSON takes for the same whole number; the API server has 64 bits for it."""
Count = Annotated[float, Field(ge=0, le=MOST_COUNTED)]


def add_counters(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Counters of several parts as one, name by name."""
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = min(total.get(name, 0) + value, MOST_COUNTED)
    return total


class StageResult(SpecModel):
    """`result.json`: written last, it makes the outputs of one attempt (of one shard) believable."""

    schema_version: Literal[1] = 1
    kind: StageKind
    iteration: int
    attempt: int
    shard: int | None = None
    digest: Sha256
    outcome: Outcome = "succeeded"
    metrics: dict[str, float] = {}
    """Flat names such as `dev/call_accuracy`; what the status and the early stop read."""
    outputs: dict[str, ArtifactRef] = {}
    """By relative name; the files of a folder share a prefix (`adapter/adapter_model.safetensors`)."""
    counters: dict[str, Count] = {}
    """Tokens, requests, trees, rows: what the stage did."""
    info: dict[str, str] = {}
    """Versions, precision, hardware, hashes."""
    started: float = 0.0
    seconds: float = 0.0
    message: str = ""

    def files_below(self, prefix: str) -> dict[str, ArtifactRef]:
        return {name: ref for name, ref in self.outputs.items() if name.startswith(prefix)}

    @property
    def has_adapter(self) -> bool:
        return any(name.startswith(ADAPTER_DIR) for name in self.outputs)


class TerminationSummary(SpecModel):
    """The termination message: at most 4 KiB of JSON, so the operator needs no object store."""

    digest: Sha256 | None = None
    exit_code: Annotated[int, Field(ge=0, le=255)]
    metrics: dict[str, float] = {}
    counters: dict[str, Count] = {}
    message: Annotated[str, AfterValidator(printable)] = ""
    """It may quote rows and answers, and is shown on terminals."""
    seconds: float = 0.0

    def to_message(self) -> bytes:
        """JSON within the limit; the message is cut first, then the counters go, then the metrics."""
        for summary in (
            self,
            self.model_copy(update={"message": self.message[:512]}),
            self.model_copy(update={"message": self.message[:512], "counters": {}}),
            self.model_copy(update={"message": self.message[:256], "counters": {}, "metrics": {}}),
        ):
            data = summary.model_dump_json(by_alias=True, exclude_defaults=True).encode()
            if len(data) <= TERMINATION_MESSAGE_LIMIT_BYTES:
                return data
        raise ValueError("a termination message without metrics and counters exceeds 4096 bytes")


def spec_slice(spec: ITrainRunSpec, kind: StageKind) -> dict[str, Any]:
    """What decides the stage's outcome, and nothing else: a digest over it survives a change of scheduling.

    Always the stage's own method fields and the seed; beside them the shared blocks that the stage reads.
    """
    shared: dict[StageKind, tuple[str, ...]] = {
        StageKind.PREPARE: ("model", "data", "resume_from"),
        StageKind.WARMUP: ("model", "adapter", "precision"),
        StageKind.SCORE: ("model", "precision"),
        StageKind.ROLLOUT: ("model", "data", "precision"),
        StageKind.TRAIN: ("model", "adapter", "precision"),
        StageKind.EVALUATE: ("model", "data", "precision"),
        StageKind.EXPORT: ("model", "data", "adapter", "iterations", "stages"),
    }
    dump = spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    own = stage_spec(spec, kind)
    sliced: dict[str, Any] = {
        "stage": own.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=set(Stage.SCHEDULING)),
        "seed": spec.seed,
    }
    for name in shared[kind]:
        alias = ITrainRunSpec.model_fields[name].alias or name
        if alias in dump:
            sliced[alias] = dump[alias]
    if kind is StageKind.ROLLOUT:  # it merges the score shards and selects from them
        sliced["selection"] = {"fraction": spec.stages.score.fraction, "stratify": spec.stages.score.stratify}
    if kind is StageKind.TRAIN:  # its guards read answers
        sliced["callFormat"] = spec.data.call_format
    return sliced


def input_digest(
    *,
    run: RunIdentity,
    ref: StageRef,
    shards: int | None,
    spec: dict[str, Any],
    upstream: tuple[UpstreamResult, ...],
    best_iteration: int | None,
) -> str:
    """sha256 of the canonical JSON of everything that decides the outcome; the attempt is not part of it."""
    payload = {
        "schema": SCHEMA,
        "uid": run.uid,
        "storage": run.storage,
        "stage": str(ref),
        "shards": shards,
        "spec": spec,
        "upstream": [u.model_dump(mode="json", by_alias=True) for u in upstream],
        "best": best_iteration,
    }
    return hashlib.sha256(canonical_json(payload)).hexdigest()


def build_stage_input(
    *,
    run: RunIdentity,
    spec: ITrainRunSpec,
    ref: StageRef,
    attempt: int,
    shards: int | None,
    upstream: tuple[UpstreamResult, ...],
    best_iteration: int | None = None,
) -> StageInput:
    """The input of one attempt; equal for all attempts but for `attempt` and `output_prefix`."""
    sliced = spec_slice(spec, ref.kind)
    digest = input_digest(
        run=run, ref=ref, shards=shards, spec=sliced, upstream=upstream, best_iteration=best_iteration
    )
    return StageInput(
        run=run,
        kind=ref.kind,
        iteration=ref.iteration,
        attempt=attempt,
        shards=shards,
        spec=sliced,
        upstream=upstream,
        best_iteration=best_iteration,
        tracking=spec.tracking if ref.kind in TRACKED else None,
        keep_checkpoints=spec.keep_checkpoints,
        output_prefix=run.layout.attempt(ref, attempt),
        work_prefix=run.layout.work(ref, digest),
        digest=digest,
    )


def canonical_json(value: object) -> bytes:
    """Sorted keys, no blanks, UTF-8: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
