"""SIGTERM and Ctrl-C as a flag: the stage looks at it between steps, saves, and raises `Interrupted`."""

from __future__ import annotations

import logging
import signal
from types import FrameType

log = logging.getLogger(__name__)


class StopFlag:
    """`StopSignal` that this process's signals set; it stays set."""

    def __init__(self) -> None:
        self._stopped = False

    def is_set(self) -> bool:
        return self._stopped

    def set(self) -> None:
        self._stopped = True

    def install(self) -> None:
        """Take over SIGTERM and SIGINT; only the main thread of a process may."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._stopped:
            log.warning("%s received: saving, then stopping", signal.Signals(number).name)
        self._stopped = True
