"""A bound on the time of code that is not ours on input that is not ours: templates, checkers, regular expressions."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TimeLimitError(Exception):
    """The block ran longer than it may."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeLimitError in the block after so many seconds, and again as often if it is caught there.

    By SIGALRM, so in the main thread only; in another one nothing is bounded. An alarm that was set before stays set.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ran_out = False

    def fire(_signal: int, _frame: FrameType | None) -> None:
        nonlocal ran_out
        ran_out = True
        raise TimeLimitError(f"longer than {seconds:g} s")

    started = time.monotonic()
    handler = signal.signal(signal.SIGALRM, fire)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(0.001, left - (time.monotonic() - started)), interval)
    if ran_out:
        raise TimeLimitError(f"longer than {seconds:g} s")
