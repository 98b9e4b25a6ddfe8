"""One training on several nodes: what each node's stage process does besides starting its ranks.

    meet -> agree on the training and on the checkpoint -> ranks -> all of them done -> node 0 writes the result

Whatever ends one node ends them all: a stop (every rank saves, exit 143), a failure (the same exit code everywhere), a
node that fell silent (75). Checkpoints are made of the files of all nodes: each puts its own, and node 0 puts the
marker once all of them are there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from itrain_contract.names import ExitCode
from itrain_pipeline.errors import ConfigError, Interrupted, RetryableError, StageError
from itrain_pipeline.files import sha256_file
from itrain_pipeline.learn.checkpoints import mark_checkpoint, restore_checkpoint, restore_step, step_of
from itrain_pipeline.learn.job import TrainJob
from itrain_pipeline.learn.nodelink import JOIN_S, NodeLink, NodeState, join
from itrain_pipeline.learn.ranks import (
    DEFINITE,
    FAILURE_GRACE_S,
    POLL_INTERVAL_S,
    STOP_GRACE_S,
    Failure,
    Rank,
    ask_to_stop,
    first_cause,
    pass_progress,
    put_ready_checkpoints,
    rank_failures,
    started_ranks,
)
from itrain_pipeline.ports import Ports

log = logging.getLogger(__name__)

RESULT_LOOK_S = 2.0


def run_nodes(job: TrainJob, ports: Ports) -> None:
    """This node's part. Returns on node 0 once every rank of every node is done, on the others once the result is
    written. Raises what ended the training, on every node an error with the same exit code."""

    def check_stop() -> None:
        if ports.stop.is_set():
            raise Interrupted("stopped before the training began")

    link = join(ports.nodes, check_stop)
    try:
        link.tell(fingerprint=fingerprint(job))
        _meet(link, ports, check_stop)
        job = replace(job, resume_from=_agree_on_checkpoint(link, ports, check_stop))
        with started_ranks(job, ports.nodes) as ranks:
            Watch(job=job, ports=ports, link=link, ranks=ranks).until_done()
        if ports.nodes.rank:
            _await_result(link, ports)
            link.leave()
    except Exception as error:
        code = error.exit_code if isinstance(error, StageError) else ExitCode.RETRYABLE
        link.tell(failure=Failure(code=code, text=f"node {ports.nodes.rank}: {error}"))
        link.leave()
        raise


def fingerprint(job: TrainJob) -> str:
    """Equal on two nodes that prepared the same training, wherever its files lie on each."""
    data = {
        "how": dataclasses.asdict(job.how),
        "rows": sha256_file(job.rows),
        "order": job.order,
        "loss": job.loss,
        "quantization": job.quantization,
        "adapter": None if job.adapter is None else sha256_file(job.adapter / "adapter_model.safetensors"),
    }
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _meet(link: NodeLink, ports: Ports, check_stop: Callable[[], None]) -> None:
    """Wait until every node is there, with the same training prepared."""
    until = time.monotonic() + JOIN_S
    mine = link.mine.fingerprint
    while len(link.others) < ports.nodes.count - 1 or not all(s.fingerprint for s in link.others.values()):
        check_stop()
        _check_others(link)
        if time.monotonic() > until:
            there = sorted((ports.nodes.rank, *link.others))
            raise RetryableError(f"only nodes {there} of {ports.nodes.count} were there after {JOIN_S:.0f} s")
        time.sleep(POLL_INTERVAL_S)
    for rank, state in link.others.items():
        if state.fingerprint != mine:
            raise ConfigError(
                f"node {rank} prepared another training than node {ports.nodes.rank}: all nodes need the same image, "
                "the same number and kind of GPUs, and the same data"
            )
    log.info("%d nodes are there", ports.nodes.count)


def _agree_on_checkpoint(link: NodeLink, ports: Ports, check_stop: Callable[[], None]) -> Path | None:
    """Node 0 chooses the newest whole checkpoint, the others take the same one."""
    folder = ports.scratch / "resume"
    if not ports.nodes.rank:
        found = restore_checkpoint(ports.work, folder)
        link.tell(resume=0 if found is None else step_of(found))
        return found
    while (step := link.others[0].resume) is None:
        check_stop()
        _check_others(link)
        time.sleep(POLL_INTERVAL_S)
    if not step:
        return None
    found = restore_step(ports.work, folder, step)
    if found is None:
        raise RetryableError(f"the checkpoint of step {step}, which node 0 resumes from, cannot be read here")
    return found


def _check_others(link: NodeLink) -> None:
    failures = [state.failure for state in link.others.values() if state.failure is not None]
    if failures:
        raise first_cause(failures).error()
    if gone := link.gone():
        raise RetryableError(gone)


def _await_result(link: NodeLink, ports: Ports) -> None:
    """Wait for the result that node 0 writes, for a while after a stop too: ending early would end node 0 with us."""
    stopping_since: float | None = None
    while not ports.nodes.finished():
        now = time.monotonic()
        if ports.stop.is_set():
            stopping_since = stopping_since or now
            if now - stopping_since > STOP_GRACE_S:
                raise Interrupted(f"stopped; node 0 did not write its result within {STOP_GRACE_S:.0f} s")
        try:
            _check_others(link)
        except StageError:
            time.sleep(RESULT_LOOK_S)  # its end may be seen before its result is
            if ports.nodes.finished():
                return
            raise
        time.sleep(RESULT_LOOK_S)


@dataclass(slots=True, kw_only=True)
class Watch:
    """One node's ranks, until they and all others are done or something ended them."""

    job: TrainJob
    ports: Ports
    link: NodeLink
    ranks: list[Rank]
    saved: dict[int, dict[str, str]] = field(default_factory=dict)
    """Checkpoint files put by this node that are not believed yet, by step."""
    told: bytes = b""
    stopping_since: float | None = None
    failing_since: float | None = None

    def until_done(self) -> None:
        """Returns when all ranks of all nodes ended well (on node 0), or this node's did (on the others)."""
        while not self._over():
            time.sleep(POLL_INTERVAL_S)

    def _over(self) -> bool:
        now = time.monotonic()
        # Looked at first: what a rank saved before its end is found below.
        ended = all(rank.poll() is not None for rank in self.ranks)
        self._checkpoints()
        if not self.ports.nodes.rank:
            self.told = pass_progress(self.job.folder, self.ports, self.told)
        self._pass_stop(now)
        failures = self._failures()
        if failures:
            self._fail(failures, now)
            return False
        if self.stopping_since is not None and now - self.stopping_since > STOP_GRACE_S:
            raise Interrupted(f"stopped; the ranks did not save within {STOP_GRACE_S:.0f} s")
        if gone := self.link.gone():
            raise RetryableError(gone)
        if not ended:
            return False
        if self._interrupted():
            return self._stopped(now)
        if not self.link.mine.done:
            self.link.tell(done=True)
        return bool(self.ports.nodes.rank) or all(state.done for state in self.link.others.values())

    def _checkpoints(self) -> None:
        """Put what the ranks saved; on node 0 make believed what all nodes have put."""
        for step, files in put_ready_checkpoints(self.job.folder, self.ports):
            self.saved[step] = files
            self.link.tell(saved=dict(self.saved))
        others = self.link.others
        if self.ports.nodes.rank:
            marked = others[0].marked
        else:
            whole = [step for step in self.saved if all(step in state.saved for state in others.values())]
            marked = max(whole, default=0)
            if marked:
                parts = [state.saved[marked] for state in others.values()]
                files = {name: sha256 for part in (*parts, self.saved[marked]) for name, sha256 in part.items()}
                mark_checkpoint(self.ports.work, marked, files)
                self.link.tell(marked=marked)
        if any(step <= marked for step in self.saved):
            self.saved = {step: files for step, files in self.saved.items() if step > marked}
            self.link.tell(saved=dict(self.saved))

    def _pass_stop(self, now: float) -> None:
        """A stop of one node is one of all: their ranks agree on the step after which they save."""
        asked = self.ports.stop.is_set() or any(state.stop for state in self.link.others.values())
        if asked and self.stopping_since is None:
            self.stopping_since = now
            ask_to_stop(self.job.folder)
            self.link.tell(stop=True)

    def _failures(self) -> list[Failure]:
        """Of this node's ranks first; those that only stopped, here or elsewhere, are none."""
        here = rank_failures(self.job.folder, self.ranks)
        there = [state.failure for state in self.link.others.values() if state.failure is not None]
        return [failure for failure in (*here, *there) if failure.code != ExitCode.INTERRUPTED]

    def _fail(self, failures: list[Failure], now: float) -> None:
        """Raise the first cause, after the time in which a better explanation may still come."""
        if self.failing_since is None:
            self.failing_since = now
        cause = first_cause(failures)
        if cause.code in DEFINITE or now - self.failing_since > FAILURE_GRACE_S:
            raise cause.error()

    def _interrupted(self) -> bool:
        return any(rank.poll() == ExitCode.INTERRUPTED for rank in self.ranks)

    def _stopped(self, now: float) -> bool:
        """After all ranks stopped: node 0 waits for the last checkpoint to be whole, within the grace time."""
        waiting = not self.ports.nodes.rank and self.saved and not any(s.failure for s in self._unsaved())
        if waiting:
            return False
        texts = [failure.text for failure in rank_failures(self.job.folder, self.ranks)]
        raise Interrupted(texts[0])

    def _unsaved(self) -> list[NodeState]:
        newest = max(self.saved)
        return [state for state in self.link.others.values() if newest not in state.saved]
