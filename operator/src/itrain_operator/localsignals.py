"""Ctrl-C, SIGTERM and the end of children as one thing to wait for. Main thread only."""

from __future__ import annotations

import os
import select
import signal
from types import FrameType
from typing import Any, Self

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signals:
    """While entered: counts requests to stop, and lets `wait` end early when a child ends or a signal comes."""

    def __init__(self) -> None:
        self.stops = 0
        self.first: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._read = self._write = -1
        self._wakeup_before = -1

    def __enter__(self) -> Self:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._wakeup_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            self._before[number] = signal.signal(number, self._on_stop)
        self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, _wake)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._read)
        os.close(self._write)

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        self.stops += 1
        self.first = self.first or signal.Signals(number)

    def wait(self, seconds: float) -> bool:
        """Sleep, but not past a signal; True when one came."""
        ready, _, _ = select.select([self._read], [], [], max(0.0, seconds))
        if ready:
            os.read(self._read, 4096)
        return bool(ready)

    @property
    def exit_code(self) -> int:
        """128 + the first signal's number: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + (self.first or signal.SIGINT)


def _wake(number: int, frame: FrameType | None) -> None:
    """SIGCHLD needs a handler for the wake-up to reach the pipe."""
