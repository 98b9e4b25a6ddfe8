"""Asking many questions at once, keeping each answer at once, and going on after an interruption."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itrain_pipeline.errors import ConfigError, DataError, Interrupted, PermanentError, RetryableError
from itrain_pipeline.evals.endpoint import ItemError, Kind
from itrain_pipeline.evals.questions import Question
from itrain_pipeline.files import write_atomic
from itrain_pipeline.ports import StopSignal
from itrain_pipeline.records import Prediction, from_dict, to_json, write_jsonl

ANSWERS = "predictions.jsonl"
SETTINGS = "settings.json"
FAILURES = "failures.jsonl"
STOP_INTERVAL_S = 0.2

Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A question without an answer; it is counted neither right nor wrong."""

    benchmark: str
    category: str
    id: str
    kind: Kind
    detail: str


class AnswerFolder:
    """One evaluation's folder: its settings, and a line for each answer, durable before the next is asked.

    A context manager: while it is open no other process writes there. Raises ConfigError where the folder holds answers
    of other settings, RetryableError while another process works in it, DataError for answers that cannot be read.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._folder = folder
        self._settings = dict(settings)
        self._lines: Any = None
        self.done: dict[Key, Prediction] = {}

    def __enter__(self) -> AnswerFolder:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self._folder / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
        try:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as busy:
                raise RetryableError(f"--out: another evaluation works in {self._folder}") from busy
            self._check_settings()
            self.done = {p.key: p for p in self._read()}
            self._lines = (self._folder / ANSWERS).open("ab")
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        os.close(self._lock)

    def add(self, prediction: Prediction) -> None:
        self._lines.write((to_json(prediction) + "\n").encode())
        self._lines.flush()
        os.fsync(self._lines.fileno())
        self.done[prediction.key] = prediction

    def finish(
        self, predictions: Sequence[Prediction], failures: Sequence[Failure], summary: Mapping[str, Any]
    ) -> None:
        """The answers in the questions' order, what failed, and the figures; each file whole or as it was."""
        write_jsonl(self._folder / ANSWERS, predictions)
        write_jsonl(self._folder / FAILURES, failures) if failures else (self._folder / FAILURES).unlink(
            missing_ok=True
        )
        write_atomic(self._folder / "summary.json", _pretty(summary))

    def _check_settings(self) -> None:
        path = self._folder / SETTINGS
        if not path.is_file():
            if (self._folder / ANSWERS).exists():
                raise ConfigError(f"--out: {self._folder} has {ANSWERS}, but no {SETTINGS}: give another folder")
            write_atomic(path, _pretty(self._settings))
            return
        try:
            held = json.loads(path.read_bytes())
            changed = [name for name in {**self._settings, **held} if held.get(name) != self._settings.get(name)]
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(f"--out: {path} cannot be read: {error}") from error
        if changed:
            name, *_ = changed
            raise ConfigError(
                f"--out: {self._folder} holds answers with {name} {held.get(name)!r}, asked for is "
                f"{self._settings.get(name)!r}: give another folder"
            )

    def _read(self) -> Iterator[Prediction]:
        """What is there; a last line that a killed process left half-written is cut off."""
        path = self._folder / ANSWERS
        if not path.is_file():
            return
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(path, whole)
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                yield from_dict(Prediction, json.loads(line))
            except (ValueError, TypeError, KeyError) as error:
                raise DataError(f"--out: {path} line {number} is no answer of an evaluation: {error}") from error


def _pretty(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()


async def ask_all(
    questions: Sequence[Question],
    ask: Callable[[Question], Awaitable[Prediction]],
    keep: Callable[[Prediction | Failure], None],
    *,
    concurrency: int,
    stop: StopSignal,
    patience: int,
) -> list[Failure]:
    """Ask in their order, `concurrency` at a time; each answer and each failure is given to `keep` as it comes.

    Raises Interrupted once `stop` is set (what is in flight is given up), RetryableError (PermanentError where the last
    is refused) after `patience` failures without an answer between them, and what else `ask` raises besides ItemError.
    """
    waiting = deque(questions)
    failures: list[Failure] = []
    in_row = 0

    async def work() -> None:
        nonlocal in_row
        while waiting:
            question = waiting.popleft()
            try:
                prediction = await ask(question)
            except ItemError as error:
                failure = _failed(question, error)
                failures.append(failure)
                keep(failure)
                in_row += 1
                if in_row >= patience:
                    told = f"{in_row} items in a row got no answer, the last one {error}; answers so far are saved"
                    raise (RetryableError if error.kind.passes else PermanentError)(told) from None
            else:
                in_row = 0
                keep(prediction)

    workers = [asyncio.create_task(work()) for _ in range(min(concurrency, len(questions)))]
    watch = asyncio.create_task(_until_set(stop))
    working = asyncio.gather(*workers)
    try:
        either: set[asyncio.Future[Any]] = {working, watch}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Interrupted("stopped; every answer so far is saved, the same command goes on")
        await working
    finally:
        for task in (*workers, watch):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*workers, watch, return_exceptions=True)
            await asyncio.gather(working, return_exceptions=True)
    return failures


async def _until_set(stop: StopSignal) -> None:
    while not stop.is_set():
        await asyncio.sleep(STOP_INTERVAL_S)


def _failed(question: Question, error: ItemError) -> Failure:
    return Failure(
        benchmark=question.benchmark,
        category=question.category,
        id=question.id,
        kind=error.kind,
        detail=error.detail,
    )
