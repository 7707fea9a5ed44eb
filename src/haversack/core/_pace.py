"""A token bucket: how long bytes must wait so that a rate is kept over any stretch of time."""

from __future__ import annotations

import threading

from haversack.core.errors import UserError


class Pace:
    """Lets `bytes_per_s` through, and up to `burst` bytes at once after a pause. Threads share one pace.

    Pure in time: the caller says what time it is, so that a simulation and a real throttle use the same
    arithmetic.
    """

    def __init__(self, bytes_per_s: float, burst: float = 0.0) -> None:
        if not bytes_per_s > 0 or not burst >= 0:
            raise UserError(
                f"a rate of {bytes_per_s} bytes/s lets nothing through.", field="rate", given=bytes_per_s
            )
        self.bytes_per_s = bytes_per_s
        self.burst = burst
        self._free_at = float("-inf")  # when all that was reserved so far has passed
        self._lock = threading.Lock()

    def reserve(self, count: float, now: float) -> float:
        """Reserve passage for `count` bytes asked for at time `now`; the time at which the last has
        passed."""
        with self._lock:
            start = max(self._free_at, now - self.burst / self.bytes_per_s)
            self._free_at = start + count / self.bytes_per_s
            return max(self._free_at, now)
