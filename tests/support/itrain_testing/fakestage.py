"""A run on a folder with stages of a few lines: inputs, processes, and a store that dies when told to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from itrain_contract.layout import shard_prefix
from itrain_contract.names import ENV_CACHE_DIR, ENV_SHARD, ENV_STAGE_INPUT, ENV_TERMINATION_LOG
from itrain_contract.stageio import (
    ArtifactRef,
    RunIdentity,
    StageInput,
    StageResult,
    TerminationSummary,
    UpstreamResult,
)
from itrain_contract.stages import StageKind, StageRef
from itrain_pipeline.ports import Ports, StageOutput, Store
from itrain_pipeline.runtime import Process, StageFunction, run_stage
from itrain_pipeline.stopsignal import StopFlag
from itrain_pipeline.store import open_store

DIGEST = "d" * 64


class Killed(BaseException):
    """kill -9 as far as code can see it: no `except Exception` runs."""


@dataclass
class DyingStore:
    """Forwards to a store and dies instead of the write after the `survives`-th; counts its writes."""

    inner: Store
    survives: int = 1_000_000
    writes: int = 0
    written: list[str] = field(default_factory=list)

    def put_file(self, path: Path, uri: str) -> ArtifactRef:
        self._write(uri)
        return self.inner.put_file(path, uri)

    def put_bytes(self, data: bytes, uri: str) -> ArtifactRef:
        self._write(uri)
        return self.inner.put_bytes(data, uri)

    def delete(self, uri: str) -> None:
        self._write(uri)
        self.inner.delete(uri)

    def get_file(self, uri: str, path: Path) -> None:
        self.inner.get_file(uri, path)

    def get_bytes(self, uri: str) -> bytes | None:
        return self.inner.get_bytes(uri)

    def list(self, prefix: str) -> list[str]:
        return self.inner.list(prefix)

    def _write(self, uri: str) -> None:
        if self.writes >= self.survives:
            raise Killed(uri)
        self.writes += 1
        self.written.append(uri)


def adapter_stage(stage_input: StageInput, ports: Ports) -> StageOutput:
    """Two work files, the marker last; an adapter of two files; one metric."""
    if ports.work.get("checkpoint/done") is None:
        for name in ("checkpoint/weights", "checkpoint/done"):
            path = ports.work.local / name.replace("/", "-")
            path.write_text(name)
            ports.work.put(name, path)
    folder = ports.scratch / "adapter"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights " * 1000)
    (folder / "adapter_config.json").write_text("{}")
    return StageOutput(
        metrics={"loss": 0.5},
        outputs={f"adapter/{path.name}": path for path in folder.iterdir()},
        counters={"steps": 2},
        message="two steps",
    )


@dataclass
class World:
    """One run below `folder`. `run` is a stage process; `started` counts how often a stage function was entered."""

    folder: Path
    storage: str = ""
    started: int = 0
    now: float = 1_800_000_000.0
    environ: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.storage = self.storage or f"file://{self.folder}/storage"

    @property
    def identity(self) -> RunIdentity:
        return RunIdentity(name="quick", uid="12345678-aaaa", storage=self.storage)

    def stage_input(
        self,
        kind: StageKind = StageKind.WARMUP,
        *,
        iteration: int = 0,
        attempt: int = 1,
        digest: str = DIGEST,
        shards: int | None = None,
        upstream: tuple[UpstreamResult, ...] = (),
    ) -> StageInput:
        ref, layout = StageRef(kind=kind, iteration=iteration), self.identity.layout
        return StageInput(
            run=self.identity,
            kind=kind,
            iteration=iteration,
            attempt=attempt,
            shards=shards,
            spec={"stage": {}, "seed": 1},
            upstream=upstream,
            output_prefix=layout.attempt(ref, attempt),
            work_prefix=layout.work(ref, digest),
            digest=digest,
        )

    def run(
        self,
        stage_input: StageInput,
        stage: StageFunction = adapter_stage,
        *,
        shard: int | None = None,
        wrap: Callable[[Store], Store] = lambda store: store,
        stop: StopFlag | None = None,
    ) -> int:
        """The exit code of one stage process; `wrap` puts a store of the test around the real one."""
        path = self.folder / "input.json"
        path.write_text(stage_input.model_dump_json(by_alias=True))
        environ = {
            ENV_STAGE_INPUT: str(path),
            ENV_TERMINATION_LOG: str(self.folder / "termination"),
            ENV_CACHE_DIR: str(self.folder / "cache"),
            **self.environ,
        }
        if shard is not None:
            environ[ENV_SHARD] = str(shard)

        def counted(given: StageInput, ports: Ports) -> StageOutput:
            self.started += 1
            return stage(given, ports)

        def opener(root: str, names: Mapping[str, str]) -> Store:
            return wrap(open_store(root, names))

        process = Process(
            environ=environ,
            load_stage=lambda kind: counted,
            stop=stop or StopFlag(),
            clock=self.clock,
            store_opener=opener,
        )
        return run_stage(stage_input.kind, process)

    def clock(self) -> float:
        self.now += 1.0
        return self.now

    def result(self, stage_input: StageInput, shard: int | None = None) -> StageResult | None:
        """What a consumer sees at this attempt's prefix."""
        uri = shard_prefix(stage_input.output_prefix, shard) + "result.json"
        data = open_store(self.storage).get_bytes(uri)
        return None if data is None else StageResult.model_validate_json(data)

    def termination(self) -> TerminationSummary:
        return TerminationSummary.model_validate_json((self.folder / "termination").read_bytes())


def as_upstream(stage_input: StageInput, shards: str | None = None) -> UpstreamResult:
    return UpstreamResult(
        kind=stage_input.kind,
        iteration=stage_input.iteration,
        prefix=stage_input.output_prefix,
        digest=stage_input.digest,
        shards=shards,
    )
