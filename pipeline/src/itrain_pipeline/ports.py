"""The edges of the pipeline as Protocols: everything impure that a stage may touch comes in through `Ports`.

Stages and algorithms import this module and never an implementation, so each runs in a test on a folder, a scripted
engine and a fixed clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from itrain_contract.stageio import ArtifactRef, StageResult
from itrain_contract.stages import StageKind
from itrain_contract.template import SecretRef
from itrain_pipeline.errors import ConfigError

REMOTE = ("hf://", "s3://")


class Store(Protocol):
    """Objects by URI (`file:///…`, `s3://bucket/key`). A reader sees a whole object or none.

    Raises `itrain_pipeline.errors.DataError` for an object that is missing or whose bytes are not those promised,
    `ConfigError` for credentials or a bucket that the server refuses, `RetryableError` once the server's retries are
    used up.
    """

    def put_file(self, path: Path, uri: str) -> ArtifactRef: ...
    def put_bytes(self, data: bytes, uri: str) -> ArtifactRef: ...
    def get_file(self, uri: str, path: Path) -> None: ...
    def get_bytes(self, uri: str) -> bytes | None:
        """The object's bytes, or None where there is none."""

    def list(self, prefix: str) -> list[str]:
        """URIs of all objects below a prefix (which ends with `/`), sorted."""

    def delete(self, uri: str) -> None: ...


class Progress(Protocol):
    """Where a stage tells how far it is; cheap to call often, the implementation limits the rate."""

    def update(self, done: int, total: int, text: str = "") -> None: ...


class StopSignal(Protocol):
    """Set once SIGTERM arrived: save, then raise `Interrupted`."""

    def is_set(self) -> bool: ...


FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """One request's sampling. `seeds` has one entry per completion (n = len(seeds)); temperature 0 is greedy."""

    seeds: tuple[int, ...]
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """Sampled ids (the stop token included when it was sampled) and their raw logprobs.

    `logprobs` are natural logs of the model's own distribution, before temperature and top-p. `length` is not
    terminal: the answer was cut by `max_tokens` or by the context.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCounters:
    """Tokens and requests since the engine started.

    prefill_computed + prefill_cached = Σ prompt tokens over all sequences: n completions of one prompt count it n
    times, and what they share is cached.
    """

    requests: int = 0
    prefill_computed: int = 0
    prefill_cached: int = 0
    decoded: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class KVCapacity:
    """How much room the engine's keys and values have, in blocks of `block_tokens` tokens.

    `free_blocks` are held by no running or waiting request; a block that is known but has no owner is free.
    """

    block_tokens: int
    total_blocks: int
    free_blocks: int


@runtime_checkable
class Engine(Protocol):
    """Token ids in, token ids out. Many calls may be in flight; the engine batches them.

    Raises `PermanentError` for a prompt that leaves no room in the context (the tree fails, not the shard) and
    `RetryableError` when the engine died: from all calls in flight and from every later one. Cancelling a call cancels
    its request in the engine and frees what it held.
    """

    @property
    def max_model_len(self) -> int: ...

    async def generate(self, prompt_ids: Sequence[int], params: SamplingParams) -> list[Completion]: ...

    async def option_logprobs(self, prompt_ids: Sequence[int], options: Sequence[int]) -> list[float]:
        """Raw logprobs of single next tokens, one per option id."""

    def load_adapter(self, name: str, folder: Path | None) -> None:
        """Serve a PEFT LoRA folder under a name never used before in this engine; None is the bare base model."""

    def reset_prefix_cache(self) -> None:
        """Forget the keys and values of earlier prompts, so that what follows depends on nothing before it."""

    def kv_capacity(self) -> KVCapacity:
        """What is free now; the search takes on as many trees as it carries."""

    def counters(self) -> EngineCounters: ...

    async def aclose(self) -> None: ...


class WorkArea(Protocol):
    """Durable scratch shared by a stage's attempts (`…/<stage>/work/<input digest>/[shard-N/]`).

    A name is a relative POSIX path. `put` is atomic per file; a set of files becomes believable only through a marker
    file put last by its writer.
    """

    @property
    def local(self) -> Path:
        """A folder of this process for files under way; lost with the pod."""

    def put(self, name: str, path: Path) -> None: ...
    def get(self, name: str) -> Path | None:
        """A local copy, or None where there is none."""

    def names(self, prefix: str = "") -> list[str]: ...
    def delete(self, name: str) -> None: ...


class Upstream(Protocol):
    """The results of the stages that this one reads, verified: digests first, hashes at every fetch."""

    def results(self, kind: StageKind, iteration: int | None = None) -> tuple[StageResult, ...]:
        """The results of a kind (of one iteration, or of the newest there is), by ascending shard; empty if none."""

    def iterations(self, kind: StageKind) -> tuple[int, ...]:
        """The iterations of which this kind is upstream, ascending."""

    def fetch(self, ref: ArtifactRef) -> Path:
        """A local, read-only copy whose sha256 was checked; `DataError` when the bytes are others."""

    def fetch_folder(self, result: StageResult, prefix: str) -> Path:
        """A local folder with all outputs below `prefix` (`adapter/`), names kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOutput:
    """What a stage returns. The runtime uploads `outputs`, then writes result.json as the last object."""

    metrics: dict[str, float] = field(default_factory=dict)
    outputs: dict[str, Path] = field(default_factory=dict)
    """Local files by relative name (`adapter/adapter_model.safetensors`); a folder's files one by one."""
    staged: dict[str, ArtifactRef] = field(default_factory=dict)
    """Outputs that already lie in storage outside the attempt (the staged base model)."""
    counters: dict[str, float] = field(default_factory=dict)
    info: dict[str, str] = field(default_factory=dict)
    message: str = ""


def folder_outputs(folder: Path, prefix: str) -> dict[str, Path]:
    """The files below `folder` as `StageOutput.outputs` under `prefix` (which ends with `/`)."""
    return {prefix + path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceAccess:
    """With what a model or a data source is read."""

    store: Store
    hub_token: str | None = None
    """None: the process's own, if it has one."""
    hub_endpoint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """The nodes that train together, one stage process each; of every other stage, and by default, there is one.

    Node 0 alone has the lease, makes checkpoints believed and writes the result.
    """

    rank: int = 0
    count: int = 1
    address: str = ""
    """Host of node 0, and the port at which it serves the others."""
    port: int = 0
    session: str = ""
    """Equal for the nodes of one attempt: what keeps them apart from another training at the same address."""
    finished: Callable[[], bool] = field(default=lambda: False)
    """Whether the result lies in storage, whole; what the other nodes wait for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """What a stage is given besides its StageInput. `shard` is the completion index, 0 for unsharded stages.

    A stage module has one entry: `run(stage_input: StageInput, ports: Ports) -> StageOutput`.
    """

    store: Store
    upstream: Upstream
    work: WorkArea
    progress: Progress
    stop: StopSignal
    clock: Callable[[], float]
    scratch: Path
    shard: int = 0
    nodes: Nodes = field(default=Nodes())
    open_source: Callable[[str], SourceAccess] | None = None
    """By a Secret's name; None where everything is read with the process's own credentials."""

    def source(self, secret: SecretRef | None, uri: str) -> SourceAccess:
        """How the source at `uri` is read. Raises ConfigError for a Secret that is not there or lacks a key."""
        if secret is None or self.open_source is None or not uri.startswith(REMOTE):
            return SourceAccess(store=self.store)
        access = self.open_source(secret.name)
        if uri.startswith("hf://") and access.hub_token is None:
            raise ConfigError(f"{uri} is to be read with the Secret {secret.name!r}, which has no HF_TOKEN")
        return access
