"""`itrain logs` of a run in a cluster: the newest attempt's pods, and with --follow the attempts after it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

from itrain_contract.names import LABEL_ATTEMPT, LABEL_ITERATION, LABEL_RUN, LABEL_RUN_UID, LABEL_STAGE
from itrain_contract.stages import StageKind, StageRef
from itrain_operator.clusteraccess import Access, ClusterError, explain
from itrain_operator.clustercommands import get_run
from itrain_operator.clusterruns import ClusterRun
from itrain_operator.clusterview import trouble
from itrain_operator.clusterwatch import utc_now
from itrain_operator.kubeapi import PODS, ApiError, NotFoundError, Raw, RefusedError, pages
from itrain_operator.kubepods import LABEL_INDEX
from itrain_operator.sequence import order_key

LIMIT_BYTES = 4 * 1024 * 1024
MAX_PODS = 32
"""Logs that are shown or followed at a time; more are chosen by --shard."""
POLL_S = 2.0
SILENCE_S = 300.0
AGAIN_S = 1.0
ENDED = ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which logs."""

    stage: str | None
    """`rollout` is every iteration's, `i2/rollout` one; None the newest of all."""
    shard: int | None
    lines: int

    def __str__(self) -> str:
        stage = f" of stage {self.stage}" if self.stage else ""
        return stage + ("" if self.shard is None else f" of shard {self.shard}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePod:
    name: str
    ref: StageRef
    attempt: int
    shard: int | None
    phase: str
    created: str

    @property
    def order(self) -> tuple[tuple[int, int], int]:
        return order_key(self.ref), self.attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    pod: StagePod
    several: bool
    """Whether lines of more than one pod are shown."""
    text: str


Sink = Callable[[LogLine], None]
Notice = Callable[[str], None]


async def show_logs(access: Access, name: str, choice: Choice, sink: Sink, notice: Notice) -> None:
    """The last lines of the newest attempt. Raises ClusterError where there are none."""
    run = await get_run(access, name)
    chosen = choose(await list_pods(access, run), choice)
    if not chosen:
        raise ClusterError(f"{name} has no pod{choice}: " + _why_none(run))
    for pod in _bounded(chosen, notice):
        try:
            text = await access.cluster.pod_log(
                access.namespace, pod.name, tail_lines=choice.lines, limit_bytes=LIMIT_BYTES
            )
        except (RefusedError, NotFoundError) as error:
            if isinstance(error, RefusedError) and error.forbidden:
                raise explain(error, access, name) from error
            notice(f"{pod.name}: {error}")
            continue
        except ApiError as error:
            raise explain(error, access, name) from error
        for line in text.splitlines():
            sink(LogLine(pod=pod, several=len(chosen) > 1, text=line))


async def follow_logs(access: Access, name: str, choice: Choice, sink: Sink, notice: Notice) -> None:
    """Every line from now on, of this attempt and of those after it, until the run has ended or is gone."""
    run: ClusterRun | None = await get_run(access, name)
    streams: dict[str, asyncio.Task[None]] = {}
    told, ended = "", False
    try:
        while not ended:
            ended = run is None or run.status.phase.terminal
            pods = choose(await _pods_or_none(access, run), choice)
            for pod in _bounded([pod for pod in pods if pod.name not in streams], notice, len(streams)):
                if pod.phase in ("Running", *ENDED):
                    head = f"{pod.ref} attempt {pod.attempt}"
                    if head != told:
                        notice(f"==> {head} <==")
                        told = head
                    stream = _stream(access, pod, choice.lines, len(pods) > 1, sink, notice)
                    streams[pod.name] = asyncio.create_task(stream)
            working = [task for task in streams.values() if not task.done()]
            if ended and working:
                await asyncio.wait(working)
            elif not ended:
                await asyncio.sleep(POLL_S)
                run = await _run_or_none(access, name, run)
    finally:
        for task in streams.values():
            task.cancel()


async def list_pods(access: Access, run: ClusterRun) -> list[StagePod]:
    """The run's pods that are still there."""
    labels = f"{LABEL_RUN}={run.name},{LABEL_RUN_UID}={run.uid}"
    try:
        found = [
            raw async for page in pages(access.cluster, PODS, access.namespace, labels=labels) for raw in page.items
        ]
    except ApiError as error:
        raise explain(error, access, run.name) from error
    return [pod for pod in map(parse_stage_pod, found) if pod is not None]


def parse_stage_pod(raw: Raw) -> StagePod | None:
    """None for a pod whose labels are not those of a stage."""
    metadata = raw["metadata"]
    labels = metadata.get("labels") or {}
    try:
        ref = StageRef(kind=StageKind(labels.get(LABEL_STAGE, "")), iteration=int(labels.get(LABEL_ITERATION, "")))
        attempt = int(labels.get(LABEL_ATTEMPT, ""))
    except ValueError:
        return None
    index = labels.get(LABEL_INDEX, "")
    return StagePod(
        name=metadata["name"],
        ref=ref,
        attempt=attempt,
        shard=int(index) if index.isdecimal() else None,
        phase=(raw.get("status") or {}).get("phase", ""),
        created=metadata.get("creationTimestamp", ""),
    )


def choose(pods: list[StagePod], choice: Choice) -> list[StagePod]:
    """The pods of the newest attempt that the choice allows, by shard; of an index that was retried the newest."""
    wanted = [pod for pod in pods if choice.stage in (None, pod.ref.kind.value, str(pod.ref))]
    newest = max((pod.order for pod in wanted), default=None)
    by_index: dict[int | None, StagePod] = {}
    for pod in sorted(wanted, key=lambda pod: (pod.created, pod.name)):
        if pod.order == newest and choice.shard in (None, pod.shard):
            by_index[pod.shard] = pod
    return sorted(by_index.values(), key=lambda pod: (-1 if pod.shard is None else pod.shard, pod.name))


def _bounded(pods: list[StagePod], notice: Notice, taken: int = 0) -> list[StagePod]:
    if taken + len(pods) > MAX_PODS and not taken:
        notice(f"{MAX_PODS} of {len(pods)} pods are shown: choose one with --shard")
    return pods[:MAX_PODS]


def _why_none(run: ClusterRun) -> str:
    waiting = trouble(run, utc_now())
    if waiting:
        return waiting
    if run.status.phase.terminal:
        return "they are gone (ttlSecondsAfterFinished, or deleted); `itrain status` and the report remain"
    return "none has started yet; `itrain watch` shows when"


async def _stream(access: Access, pod: StagePod, lines: int, several: bool, sink: Sink, notice: Notice) -> None:
    """One pod's log to its end, over broken connections: each line carries its time, none is shown twice."""
    path = PODS.path(access.namespace, pod.name, "log")
    last = ""
    while True:
        start = ("sinceTime", f"{last[:19]}Z") if last else ("tailLines", str(lines))
        query = [("follow", "true"), ("timestamps", "true"), start]
        try:
            async with aclosing(access.cluster.lines(path, query=query, silence_s=SILENCE_S)) as told:
                async for line in told:
                    stamp, _, text = line.partition(" ")
                    if stamp > last:
                        last = stamp
                        sink(LogLine(pod=pod, several=several, text=text))
            if await _ended(access, pod):
                return
        except NotFoundError:
            return
        except RefusedError as error:
            if error.forbidden:
                notice(f"{pod.name}: {error}")
                return
        except ApiError as error:
            notice(f"{pod.name}: the log broke off, reading on: {error}")
        await asyncio.sleep(AGAIN_S)


async def _ended(access: Access, pod: StagePod) -> bool:
    found = await access.cluster.get(PODS, access.namespace, pod.name)
    return (found.get("status") or {}).get("phase") in ENDED


async def _run_or_none(access: Access, name: str, before: ClusterRun | None) -> ClusterRun | None:
    """The run now, as it was while the server cannot be asked; None once it is gone."""
    try:
        return await get_run(access, name)
    except ClusterError as error:
        return None if isinstance(error.__cause__, NotFoundError) else before


async def _pods_or_none(access: Access, run: ClusterRun | None) -> list[StagePod]:
    try:
        return [] if run is None else await list_pods(access, run)
    except ClusterError:  # a server that restarts: the next poll asks again
        return []
