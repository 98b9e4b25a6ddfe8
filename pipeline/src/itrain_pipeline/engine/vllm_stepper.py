"""The thread that steps vLLM: it takes in requests between two steps, and gives out each one that ended.

vLLM's core is one loop that may be touched by one thread only. Callers leave commands in a queue; all sequences of one
call are taken in together, so that siblings are scheduled in one step and find each other's prompt among the known
blocks. When a step raises, the engine is dead: every call in flight and every later one fails with `RetryableError`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from itrain_pipeline.engine import vllm_versions as versions
from itrain_pipeline.engine.batching import again
from itrain_pipeline.errors import PermanentError, RetryableError

T = TypeVar("T")


@dataclass(slots=True, kw_only=True, eq=False)
class Call:
    """Sequences with one prompt that are answered together."""

    prompt: tuple[int, ...]
    requests: Sequence[Any]
    lora: Any
    done: Future[list[Any]] = field(default_factory=Future)
    names: list[str] = field(default_factory=list)
    """What we call its sequences,"""
    ids: list[str] = field(default_factory=list)
    """and what vLLM calls them."""
    outputs: dict[str, Any] = field(default_factory=dict)
    queued: bool = True
    """Whether a sequence of it has no blocks yet."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Command:
    run: Callable[[], None]
    fail: Callable[[BaseException], None]


class Stepper:
    """`start` makes the engine in the thread that will step it; what it raises is raised here."""

    def __init__(self, start: Callable[[], Any]) -> None:
        self._start = start
        self._commands: SimpleQueue[_Command | None] = SimpleQueue()
        self._names = map(str, count())
        self._by_name: dict[str, Call] = {}
        self._asked: set[Call] = set()
        self._lock = threading.Lock()
        self._death: RetryableError | None = None
        started: Future[Any] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="vllm", daemon=True)
        self._thread.start()
        self.engine = started.result()

    def ask(self, call: Call) -> None:
        """Queue all sequences of a call; `call.done` gets their outputs in order."""
        call.done.set_running_or_notify_cancel()  # from here on only this class ends it
        with self._lock:
            if self._death is not None:
                raise again(self._death)
            self._asked.add(call)
            self._commands.put(_Command(run=lambda: self._add(call), fail=lambda error: self._end(call, error)))

    def abort(self, call: Call) -> None:
        """Forget a call whose caller is gone; its blocks are free before the next step."""
        self._command(lambda: self._abort(call))

    def do(self, function: Callable[[Any], T]) -> T:
        """Call `function(engine)` between two steps."""
        done: Future[T] = Future()
        self._command(lambda: done.set_result(function(self.engine)), done.set_exception)
        return done.result()

    def in_flight(self) -> list[Call]:
        with self._lock:
            return list(self._asked)

    def close(self) -> None:
        """Fail what is in flight, free the engine, wait for the thread. Once or more often."""
        self._commands.put(None)
        self._thread.join()

    def _command(self, run: Callable[[], None], fail: Callable[[BaseException], None] = lambda _: None) -> None:
        with self._lock:
            if self._death is None:
                self._commands.put(_Command(run=run, fail=fail))
                return
        fail(again(self._death))

    def _run(self, started: Future[Any]) -> None:
        try:
            engine = self._start()
        except BaseException as error:  # noqa: BLE001  (raised where the engine was asked for)
            started.set_exception(error)
            return
        self.engine = engine
        started.set_result(engine)
        try:
            while self._obey():
                if self._by_name:
                    self._step()
            death = RetryableError("the engine is closed")
        except Exception as error:  # noqa: BLE001  (whatever ended the engine, its callers are told)
            death = RetryableError(f"the engine died: {type(error).__name__}: {versions.first_line(error)}")
            death.__cause__ = error
        self._die(death)
        versions.stop(engine)

    def _obey(self) -> bool:
        """Take in all commands there are; with nothing to step, wait for one. False: close."""
        while True:
            try:
                command = self._commands.get(block=not self._by_name)
            except Empty:
                return True
            if command is None:
                return False
            try:
                command.run()
            except Exception as error:  # noqa: BLE001  (a refused request is its caller's, the engine goes on)
                command.fail(error)

    def _add(self, call: Call) -> None:
        try:
            for request in call.requests:
                name = next(self._names)
                self._by_name[name] = call
                call.names.append(name)
                call.ids.append(versions.add_request(self.engine, name, call.prompt, request, call.lora))
        except Exception as error:  # its class depends on the version; nothing was computed yet
            self._abort(call)
            raise PermanentError(f"vllm refuses the request: {versions.first_line(error)}") from error

    def _abort(self, call: Call) -> None:
        left = [name for name in call.names if self._by_name.pop(name, None) is not None]
        self.engine.abort_request(left)
        with self._lock:
            self._asked.discard(call)

    def _step(self) -> None:
        for output in self.engine.step():
            call = self._by_name.get(output.request_id)
            if call is None or not output.finished:
                continue
            del self._by_name[output.request_id]
            call.outputs[output.request_id] = output
            if len(call.outputs) == len(call.requests):
                self._end(call, None)
        waiting = versions.waiting_ids(self.engine)
        for call in self._by_name.values():
            call.queued = not waiting.isdisjoint(call.ids)

    def _end(self, call: Call, error: BaseException | None) -> None:
        with self._lock:
            self._asked.discard(call)
        if call.done.done():
            return
        if error is not None:
            call.done.set_exception(error)
        else:
            call.done.set_result([call.outputs[name] for name in call.names])

    def _die(self, death: RetryableError) -> None:
        with self._lock:
            self._death = death
            asked = list(self._asked)
        for call in asked:
            self._end(call, again(death))
        while True:
            try:
                command = self._commands.get(block=False)
            except Empty:
                return
            if command is not None:
                command.fail(again(death))
