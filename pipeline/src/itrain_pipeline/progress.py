"""How far a stage is: a small JSON file for whoever watches, and plain lines in the log."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

FILE_INTERVAL_S = 1.0
LOG_INTERVAL_S = 5.0


class FileProgress:
    """`Progress` that writes `{"done","total","text","updated"}` at most once a second, the last state always.

    `file` None keeps only the log lines. `clock` gives Unix seconds.
    """

    def __init__(self, file: Path | None, clock: Callable[[], float] = time.time) -> None:
        self._file = file
        self._clock = clock
        self._written_at = self._logged_at = float("-inf")

    def update(self, done: int, total: int, text: str = "") -> None:
        now = self._clock()
        finished = done >= total
        if self._file is not None and (finished or now - self._written_at >= FILE_INTERVAL_S):
            self._write(self._file, {"done": done, "total": total, "text": text, "updated": now})
            self._written_at = now
        if finished or now - self._logged_at >= LOG_INTERVAL_S:
            log.info("%d/%d %s", done, total, text)
            self._logged_at = now

    def _write(self, file: Path, state: dict[str, object]) -> None:
        """Whole or not at all, but not synced: progress need not survive a power cut, nor may it end a stage."""
        temp = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        try:
            temp.write_text(json.dumps(state))
            temp.replace(file)
        except OSError as error:
            log.warning("progress cannot be written to %s: %s", file, error)
            self._file = None
