"""A token bucket: so many a second, so many at once. Pure; times are seconds of any clock that never runs backwards."""

from __future__ import annotations


class TokenBucket:
    """`reserve` lets callers queue up, `take` turns them away."""

    def __init__(self, *, rate: float, burst: int, now: float = 0.0) -> None:
        """`rate` tokens a second, at most `burst` saved up."""
        if rate <= 0 or burst < 1:
            raise ValueError(f"rate must be above 0 and burst at least 1, got {rate} and {burst}")
        self.rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._at = now

    def reserve(self, now: float) -> float:
        """Take a token that may not be there yet; how many seconds to wait for it."""
        self._refill(now)
        self._tokens -= 1
        return max(0.0, -self._tokens / self.rate)

    def take(self, now: float) -> bool:
        """Take a token if there is one."""
        self._refill(now)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def _refill(self, now: float) -> None:
        self._tokens = min(float(self._burst), self._tokens + max(0.0, now - self._at) * self.rate)
        self._at = max(self._at, now)
