"""How the nodes of one training know of each other: every node publishes one small document, about once a second.

Node 0's stage process serves them from a torch TCPStore, at which the ranks meet too. A thread does the exchange, so
that a partition, in which a request may hang for minutes, shows as silence and not as a hang. A document whose beat
has not changed for NODE_LOST_S is that of a node that is gone.
"""

from __future__ import annotations

import atexit
import dataclasses
import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from itrain_pipeline.errors import RetryableError
from itrain_pipeline.learn.ranks import Failure
from itrain_pipeline.ports import Nodes

log = logging.getLogger(__name__)

BEAT_S = 1.0
NODE_LOST_S = 30.0
JOIN_S = 900.0
"""How long nodes wait for each other to be there: images may have to be pulled."""
REQUEST_S = 20.0
LAST_WORD_S = 5.0
"""How long a node that ends sees to it that the others hear it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """What one node tells the others."""

    beat: int = 0
    fingerprint: str = ""
    """Of the training that it prepared; equal on all nodes."""
    resume: int | None = None
    """Node 0: the step to resume from, 0 for the start; None until it has decided."""
    stop: bool = False
    saved: dict[int, dict[str, str]] = field(default_factory=dict)
    """Checkpoint files that it put, sha256 by name, by step; those that node 0 made believed left out."""
    marked: int = 0
    """Node 0: the newest step that it made believed."""
    done: bool = False
    """Its ranks ended well."""
    failure: Failure | None = None
    left: bool = False
    """It says nothing more."""

    def to_json(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()


def state_from_json(data: bytes) -> NodeState:
    fields: dict[str, Any] = json.loads(data)
    fields["saved"] = {int(step): files for step, files in fields["saved"].items()}
    fields["failure"] = None if fields["failure"] is None else Failure(**fields["failure"])
    return NodeState(**fields)


class NodeLink:
    """This node's end. Made by `join`; ends with the process, since node 0 serves until its result is written."""

    def __init__(self, nodes: Nodes, store: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._nodes = nodes
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._mine = NodeState()
        self._others: dict[int, tuple[NodeState, float]] = {}
        self._exchanged_at = clock()
        self._sent: NodeState | None = None
        self._broken = ""
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nodes", daemon=True)
        self._thread.start()
        # Not left to the interpreter's end: a thread that it stops inside the store's code would abort the process.
        atexit.register(self.leave)

    def tell(self, **changes: Any) -> None:
        """Change what this node says; the others hear it within about a second."""
        with self._lock:
            self._mine = replace(self._mine, **changes)
        self._wake.set()

    @property
    def mine(self) -> NodeState:
        with self._lock:
            return self._mine

    @property
    def others(self) -> dict[int, NodeState]:
        """The last word of every other node that has spoken."""
        with self._lock:
            return {rank: state for rank, (state, _) in sorted(self._others.items())}

    def gone(self) -> str:
        """What is known to be lost, in words: the connection, or a node that fell silent before it was done."""
        now = self._clock()
        with self._lock:
            if self._broken:
                return f"node 0 cannot be reached: {self._broken}"
            if now - self._exchanged_at > NODE_LOST_S:
                return f"node 0 has not answered for {now - self._exchanged_at:.0f} s"
            for rank, (state, heard) in sorted(self._others.items()):
                # Node 0 has to live until its result is written, whatever it says.
                if now - heard > NODE_LOST_S and not (rank and (state.done or state.left)):
                    return f"node {rank} has been silent for {now - heard:.0f} s"
        return ""

    def leave(self) -> None:
        """Say the last word and see to it that it is heard; node 0, which serves the others, waits for theirs.

        Called at the end of the process at the latest.
        """
        atexit.unregister(self.leave)
        self.tell(left=True)
        until = self._clock() + LAST_WORD_S
        while self._clock() < until and self._thread.is_alive():
            with self._lock:
                heard = self._sent == self._mine
            if heard and (self._nodes.rank or all(state.left for state in self.others.values())):
                break
            time.sleep(0.05)
        self._closing.set()
        self._wake.set()
        self._thread.join(REQUEST_S)

    def _run(self) -> None:
        beat = 0
        while not self._closing.is_set():
            self._wake.clear()
            beat += 1
            try:
                self._exchange(beat)
            except RuntimeError as error:  # torch's store errors
                with self._lock:
                    self._broken = str(error).splitlines()[0]
                return
            self._wake.wait(BEAT_S)

    def _exchange(self, beat: int) -> None:
        with self._lock:
            mine = self._mine
        self._store.set(f"node/{self._nodes.rank}", replace(mine, beat=beat).to_json())
        heard = {}
        for rank in range(self._nodes.count):
            if rank != self._nodes.rank and self._store.check([f"node/{rank}"]):
                heard[rank] = state_from_json(self._store.get(f"node/{rank}"))
        now = self._clock()
        with self._lock:
            self._sent, self._exchanged_at = mine, now
            for rank, state in heard.items():
                known = self._others.get(rank)
                since = known[1] if known is not None and known[0].beat == state.beat else now
                self._others[rank] = (state, since)


def join(nodes: Nodes, check_stop: Callable[[], None]) -> NodeLink:
    """Serve, as node 0, or connect to it; `check_stop` raises when the wait is to end.

    Raises RetryableError when node 0 does not appear in time, or its port is taken.
    """
    import torch

    stores: Any = torch.distributed  # exports its stores at run time only
    until = time.monotonic() + JOIN_S
    if nodes.rank:
        while not _listens(nodes.address, nodes.port):
            check_stop()
            if time.monotonic() > until:
                raise RetryableError(f"node 0 did not listen at {nodes.address}:{nodes.port} within {JOIN_S:.0f} s")
            time.sleep(BEAT_S)
    host = nodes.address if nodes.rank else "127.0.0.1"
    timeout = timedelta(seconds=REQUEST_S)
    try:
        store = stores.TCPStore(host, nodes.port, is_master=not nodes.rank, wait_for_workers=False, timeout=timeout)
    except RuntimeError as error:
        text = f"{host}:{nodes.port}: {str(error).splitlines()[0]}"
        raise RetryableError(f"the nodes cannot meet at {text}") from error
    return NodeLink(nodes, stores.PrefixStore(nodes.session, store))


def _listens(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=2.0):
            return True
    except OSError:
        return False  # not resolved yet, refused, no route: all the same until the time is over
