"""How long to wait after failures in a row. Pure."""

from __future__ import annotations


def delay_s(failures: int, *, first_s: float, most_s: float) -> float:
    """Seconds: `first_s` after the first failure, doubled with each further one, at most `most_s`."""
    return min(most_s, first_s * 2.0 ** min(failures - 1, 30))
