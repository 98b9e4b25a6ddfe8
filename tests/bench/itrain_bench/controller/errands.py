"""Work that a watch's event gives rise to, done beside the watch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class Errands:
    """`failure` is what one of them died of: nobody awaits them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self.failure: BaseException | None = None

    def run(self, errand: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(errand)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.failure = task.exception()


async def repeat(errand: Callable[[], Coroutine[Any, Any, None]], times: int, *, at_once: int) -> None:
    """The same errand so many times, `at_once` of them under way. Raises what the first failure raises."""
    turns = asyncio.Semaphore(at_once)

    async def one() -> None:
        async with turns:
            await errand()

    await asyncio.gather(*(one() for _ in range(times)))
