"""Finished samples in the work area: whole files of some rows each, read by the next attempt."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

from itrain_pipeline.files import write_atomic
from itrain_pipeline.ports import WorkArea

PART = re.compile(r"/part-(\d+)\.jsonl$")


class Journal:
    """Rows below `<folder>/part-N.jsonl`. A row given to `add` is durable after the next `flush` or a moment later.

    Writing happens in a thread, one file at a time, holding whatever came in meanwhile: a slow store makes larger
    files, never a slower engine.
    """

    def __init__(self, work: WorkArea, folder: str) -> None:
        self._work, self._folder = work, folder
        numbers = [int(found.group(1)) for name in work.names(f"{folder}/") if (found := PART.search(name))]
        self._parts = sorted(numbers)
        self._next = max(numbers, default=-1) + 1
        self._waiting: list[dict[str, Any]] = []
        self._writer: asyncio.Task[None] | None = None

    def rows(self) -> Iterator[dict[str, Any]]:
        """What earlier attempts left, in the order in which it was written."""
        for number in self._parts:
            path = self._work.get(self._name(number))
            if path is not None:
                with path.open(encoding="utf-8") as lines:
                    yield from map(json.loads, lines)

    def add(self, row: dict[str, Any]) -> None:
        self._waiting.append(row)
        if self._writer is None or self._writer.done():
            self._raise_failure()
            self._writer = asyncio.get_running_loop().create_task(self._write_waiting())

    async def flush(self) -> None:
        """Wait until every row is durable; raises what the store raised."""
        while self._writer is not None:
            writer, self._writer = self._writer, None
            await writer
            if self._waiting:
                self._writer = asyncio.get_running_loop().create_task(self._write_waiting())

    def _raise_failure(self) -> None:
        if self._writer is not None and not self._writer.cancelled() and (error := self._writer.exception()):
            raise error

    async def _write_waiting(self) -> None:
        while self._waiting:
            rows, self._waiting = self._waiting, []
            number, self._next = self._next, self._next + 1
            await asyncio.to_thread(self._put, number, rows)

    def _put(self, number: int, rows: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows)
        path = self._work.local / self._name(number)
        write_atomic(path, text.encode())
        self._work.put(self._name(number), path)

    def _name(self, number: int) -> str:
        return f"{self._folder}/part-{number:06d}.jsonl"
