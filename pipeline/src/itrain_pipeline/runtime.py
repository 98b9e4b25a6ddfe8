"""One stage process from its input to its exit code.

    skip what is done -> take the lease -> run the stage -> upload outputs -> result.json last -> termination message

A process may die between any two of these writes. What it leaves is believed only through a result.json that carries
the digest of the input, and every output through the sha256 that stands there (API document, "Storage rules").
"""

from __future__ import annotations

import logging
import math
import os
import platform
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from pydantic import ValidationError

from itrain_contract.layout import LEASE_FILE, RESULT_FILE, shard_prefix
from itrain_contract.names import (
    DEFAULT_TERMINATION_LOG,
    ENV_CACHE_DIR,
    ENV_POD_UID,
    ENV_PROGRESS_FILE,
    ENV_SHARD,
    ENV_STAGE_INPUT,
    ENV_TERMINATION_LOG,
    ExitCode,
)
from itrain_contract.stageio import ArtifactRef, StageInput, StageResult, TerminationSummary
from itrain_contract.stages import TRAININGS, StageKind
from itrain_pipeline.errors import ConfigError, PermanentError, StageError
from itrain_pipeline.lease import FollowedLease, Lease
from itrain_pipeline.nodes import nodes_of
from itrain_pipeline.ports import Nodes, Ports, StageOutput, StopSignal, Store, WorkArea
from itrain_pipeline.progress import FileProgress
from itrain_pipeline.secretfiles import source_opener
from itrain_pipeline.store import open_store
from itrain_pipeline.upstream import StoreUpstream, run_results
from itrain_pipeline.workarea import StoreWorkArea, check_name

log = logging.getLogger(__name__)

StageFunction = Callable[[StageInput, Ports], StageOutput]
StoreOpener = Callable[[str, Mapping[str, str]], Store]


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """Everything around a stage process: its environment, its stages, its clock (Unix seconds)."""

    environ: Mapping[str, str]
    load_stage: Callable[[StageKind], StageFunction]
    """Imports the stage's module: called only when there is work to do."""
    stop: StopSignal
    clock: Callable[[], float] = time.time
    store_opener: StoreOpener = open_store


def run_stage(kind: StageKind, process: Process, input_path: Path | None = None) -> int:
    """Run one stage; returns its exit code after the termination message was written, and raises nothing.

    `input_path` defaults to the one that the environment names.
    """
    started = process.clock()
    digest = None
    try:
        stage_input = load_input(kind, process.environ, input_path)
        digest = stage_input.digest
        result = _complete(stage_input, process, started)
        summary = TerminationSummary(
            digest=digest,
            exit_code=ExitCode.DONE,
            metrics=result.metrics,
            counters=result.counters,
            message=result.message,
            seconds=result.seconds,
        )
    except StageError as error:
        log.error("%s: %s", type(error).__name__, error)
        summary = _failure(error.exit_code, str(error), digest, process.clock() - started)
    except ImportError as error:
        log.exception("%s lacks a package", kind)
        text = f"a package is missing or broken where this stage runs: {error}; install it, or take another image"
        summary = _failure(ExitCode.CONFIG, text, digest, process.clock() - started)
    except Exception as error:
        log.exception("%s failed in a way that nobody foresaw", kind)
        text = f"{type(error).__name__}: {error}"
        summary = _failure(ExitCode.RETRYABLE, text, digest, process.clock() - started)
    write_termination_message(summary, process.environ)
    return summary.exit_code


def load_input(kind: StageKind, environ: Mapping[str, str], path: Path | None = None) -> StageInput:
    """The StageInput of this process; `ConfigError` names the file and the first field that is wrong."""
    named = path or (Path(environ[ENV_STAGE_INPUT]) if environ.get(ENV_STAGE_INPUT) else None)
    if named is None:
        raise ConfigError(f"no stage input: set {ENV_STAGE_INPUT} to its path, or give --input PATH")
    try:
        stage_input = StageInput.model_validate_json(named.read_bytes())
    except OSError as error:
        raise ConfigError(f"the stage input {named} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "document"
        raise ConfigError(f"the stage input {named} is not valid: {field}: {first['msg']}") from error
    if stage_input.kind != kind:
        raise ConfigError(f"the stage input {named} is for {stage_input.kind}, this process runs {kind}")
    return stage_input


def shard_index(stage_input: StageInput, environ: Mapping[str, str]) -> int | None:
    """The completion index of a sharded stage; None for the others (whose index, if any, is a node's rank)."""
    if stage_input.shards is None:
        return None
    text = environ.get(ENV_SHARD, "")
    if not text.isdigit() or int(text) >= stage_input.shards:
        raise ConfigError(f"{ENV_SHARD} is {text!r}, {stage_input.kind} expects 0 to {stage_input.shards - 1}")
    return int(text)


def _complete(stage_input: StageInput, process: Process, started: float) -> StageResult:
    """The result of this input: the one that is there, or a new one."""
    shard = shard_index(stage_input, process.environ)
    store = process.store_opener(stage_input.run.storage, process.environ)
    output = shard_prefix(stage_input.output_prefix, shard)
    work = shard_prefix(stage_input.work_prefix, shard)
    nodes = nodes_of(
        stage_input,
        process.environ,
        finished=lambda: find_result(store, stage_input, output, work, publish=False) is not None,
    )
    done = find_result(store, stage_input, output, work, publish=not nodes.rank)
    if done is not None:
        log.info("%s is done already (attempt %d): nothing to run", stage_input.ref, done.attempt)
        return done
    owner = f"{process.environ.get(ENV_POD_UID) or platform.node()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"
    take = FollowedLease if nodes.rank else Lease
    lease = take(store, work + LEASE_FILE, owner=owner, attempt=stage_input.attempt, clock=process.clock)
    lease.acquire()
    progress_file = process.environ.get(ENV_PROGRESS_FILE)
    with tempfile.TemporaryDirectory(prefix=f"itrain-{stage_input.kind}-", ignore_cleanup_errors=True) as temp:
        scratch = Path(temp)
        cache = Path(process.environ.get(ENV_CACHE_DIR) or scratch / "cache")
        ports = Ports(
            store=store,
            upstream=StoreUpstream(store, stage_input.upstream, cache=cache),
            work=StoreWorkArea(store, work, local=scratch / "work", lease=lease),
            progress=FileProgress(Path(progress_file) if progress_file else None, process.clock),
            stop=process.stop,
            clock=process.clock,
            scratch=scratch,
            shard=shard or 0,
            nodes=nodes,
            open_source=source_opener(process.environ, stage_input.run.storage),
        )
        if stage_input.tracking is not None and stage_input.kind is StageKind.PREPARE:
            from itrain_pipeline.tracking.publish import check_trackers  # reads results: only where one is asked for

            check_trackers(stage_input.tracking, process.environ)
        made = process.load_stage(stage_input.kind)(stage_input, ports)
        if nodes.rank:
            return _node_zeros_result(stage_input, store, output, work, nodes)
        check_finite(made)
        lease.check(force=True)
        outputs = upload(store, output, made)
    result = StageResult(
        kind=stage_input.kind,
        iteration=stage_input.iteration,
        attempt=stage_input.attempt,
        shard=shard,
        digest=stage_input.digest,
        metrics=made.metrics,
        outputs=outputs,
        counters=made.counters,
        info={"itrain": version("itrain-pipeline"), "python": platform.python_version(), **made.info},
        started=started,
        seconds=round(process.clock() - started, 3),
        message=made.message,
    )
    result = _tracked(result, stage_input, store, process.environ)
    lease.check(force=True)
    data = result.model_dump_json(by_alias=True, indent=1).encode()
    # First where later attempts look, then where the consumers look: a death in between costs nothing.
    store.put_bytes(data, work + RESULT_FILE)
    store.put_bytes(data, output + RESULT_FILE)
    if stage_input.keep_checkpoints == "best" and stage_input.kind in TRAININGS:
        _clear(ports.work)
    log.info("%s: %d outputs in %.1f s", stage_input.ref, len(outputs), result.seconds)
    return result


def _clear(work: WorkArea) -> None:
    """Delete what a training saved to go on with: it is done. What cannot be deleted costs room and nothing else."""
    try:
        for name in work.names():
            work.delete(name)
    except (StageError, OSError) as error:
        log.warning("checkpoints of a finished training stay in the storage: %s", error)


def _tracked(result: StageResult, stage_input: StageInput, store: Store, environ: Mapping[str, str]) -> StageResult:
    """The result with what became of its figures' way to the trackers; they are sent before it is believed, so that it
    can tell."""
    tracking, root = stage_input.tracking, stage_input.run.layout.root
    if tracking is None or tracking.empty or result.kind is StageKind.PREPARE:
        return result
    from itrain_pipeline.tracking.publish import publish

    def results() -> list[StageResult]:
        others = [r for r in run_results(store, root) if (r.kind, r.iteration) != (result.kind, result.iteration)]
        return [*others, result]

    with tempfile.TemporaryDirectory(prefix="itrain-tracking-", ignore_cleanup_errors=True) as cache:
        found = publish(
            tracking,
            run=stage_input.run,
            kind=result.kind,
            results=results,
            fetch=StoreUpstream(store, (), cache=Path(cache)).fetch,
            store=store,
            environ=environ,
        )
    info, counters = {**result.info, **found.info}, {**result.counters, **found.counters}
    return result.model_copy(update={"info": info, "counters": counters})


def _node_zeros_result(stage_input: StageInput, store: Store, output: str, work: str, nodes: Nodes) -> StageResult:
    """What another node ends with: node 0's result, or a bare one where node 0 had nothing to wait for."""
    return find_result(store, stage_input, output, work, publish=False) or StageResult(
        kind=stage_input.kind,
        iteration=stage_input.iteration,
        attempt=stage_input.attempt,
        digest=stage_input.digest,
        message=f"node {nodes.rank} of {nodes.count} had nothing to do",
    )


def find_result(
    store: Store, stage_input: StageInput, output: str, work: str, *, publish: bool = True
) -> StageResult | None:
    """A valid result of the same input, by this attempt or (through the work area) by an earlier one.

    An earlier attempt's result is copied to where this attempt's consumers look (`publish`); its outputs stay where
    they are.
    """
    for prefix in (output, work):
        data = store.get_bytes(prefix + RESULT_FILE)
        if data is None:
            continue
        try:
            result = StageResult.model_validate_json(data)
        except ValidationError as error:
            log.warning("%s is not a stage result and is ignored: %s", prefix + RESULT_FILE, error.errors()[0]["msg"])
            continue
        if result.digest != stage_input.digest or result.outcome != "succeeded":
            log.warning("%s is of another input and is ignored", prefix + RESULT_FILE)
            continue
        missing = missing_outputs(store, result.outputs)
        if missing:
            log.warning("%s names %s, which is gone: the stage runs again", prefix + RESULT_FILE, missing[0])
            continue
        if prefix != output and publish:
            store.put_bytes(data, output + RESULT_FILE)
        return result
    return None


def missing_outputs(store: Store, outputs: Mapping[str, ArtifactRef]) -> list[str]:
    """URIs of outputs that are no longer in storage, sorted."""
    uris = {ref.uri for ref in outputs.values()}
    folders = {uri.rpartition("/")[0] + "/" for uri in uris}
    return sorted(uris.difference(*(store.list(folder) for folder in folders)))


def upload(store: Store, prefix: str, made: StageOutput) -> dict[str, ArtifactRef]:
    """Put every output below `prefix`; with the staged ones, by relative name."""
    for name in (*made.outputs, *made.staged):
        if check_name(name) == RESULT_FILE:
            raise ValueError(f"an output may not be named {RESULT_FILE}")
    twice = made.outputs.keys() & made.staged.keys()
    if twice:
        raise ValueError(f"both an output and staged: {sorted(twice)}")
    return {name: store.put_file(made.outputs[name], prefix + name) for name in sorted(made.outputs)} | made.staged


def check_finite(made: StageOutput) -> None:
    """A metric that is no number can be neither compared nor written: the same attempt would give it again."""
    for name, value in {**made.counters, **made.metrics}.items():
        if not math.isfinite(value):
            raise PermanentError(f"the stage reports {name} = {value}, expected a finite number")


def _failure(code: ExitCode, message: str, digest: str | None, seconds: float) -> TerminationSummary:
    return TerminationSummary(digest=digest, exit_code=code, message=message, seconds=round(seconds, 3))


def write_termination_message(summary: TerminationSummary, environ: Mapping[str, str]) -> None:
    """Write in place (Kubernetes mounts this very file), to the path of the environment or the default if it exists."""
    named = environ.get(ENV_TERMINATION_LOG)
    path = Path(named or DEFAULT_TERMINATION_LOG)
    if named or path.is_file():
        path.write_bytes(summary.to_message())


def configure_logging(level: int = logging.INFO) -> None:
    """One line format for everything, to stderr, times in UTC; Python warnings included."""
    formatter = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for chatty in ("botocore", "boto3", "s3transfer", "urllib3", "httpx", "matplotlib"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # It misses a kernel that only serves inference, and says so in every process on a CPU with bfloat16 instructions.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    logging.captureWarnings(True)
