"""Which configuration a window gets: the most accurate that is expected to answer before the deadline.

Paper: MMEdge (arXiv 2510.25327): arg max of the predicted accuracy over configurations whose profiled
latency is at most the deadline. Where none is, the one with the least latency [inferred]. Load: a factor
follows measured over predicted (moving average). Ours:

- The factor is of computing time, not of latency: it is what the profile must be slowed down by to foretell
  what was measured. A pipeline that falls behind its sensor loses time at every unit, so twice the computing
  is far more than twice the latency of a large encoder, and hardly any of a small one.
- A short spin before the window measures the share of a core that a thread gets: the factor alone learns of
  a load only after it has spoilt an answer.
- A deadline is met by the slow windows, not by the mean of all: computing is reckoned as much longer than
  foretold as it was in all but one in a hundred of the latest windows (the quantile of conformal prediction;
  the longest, while fewer are known). A policy that knows few windows reckons with FIRST_OVERRUN at least."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError
from haversack.sense._pipeline_profile import Profile

F64 = NDArray[np.float64]
SCALES = np.geomspace(0.25, 24.0, 49)
EMA = 0.2
FACTORS = (0.5, 3.0)
SPIN_MS = 12.0
IN_TIME, RECENT = 0.99, 200
"""The share of windows that shall meet the deadline; the latest windows that say how."""
FIRST_OVERRUN, FEW = 1.5, 20
MOST_OVERRUN = 3.0


def decide(accuracy: F64, latency_ms: F64, deadline_ms: float) -> int:
    """The number of the configuration with the best accuracy [n] whose latency [n] is at most the deadline;
    the fastest where none is. Of equals the faster."""
    fits = latency_ms <= deadline_ms
    if not fits.any():
        return int(latency_ms.argmin())
    best = np.where(fits, accuracy, -np.inf)
    tied = np.flatnonzero(best >= best.max())
    return int(tied[latency_ms[tied].argmin()])


def moved(factor: float, measured: float, predicted: float, weight: float = EMA) -> float:
    """The factor after one more window, within FACTORS."""
    ratio = measured / max(predicted, 1e-9)
    return float(np.clip((1 - weight) * factor + weight * ratio, *FACTORS))


def margin(overruns: Collection[float], in_time: float = IN_TIME) -> float:
    """How many times longer than foretold a next window takes at most, with probability `in_time`, where it
    is as likely as any of those seen to be the longest: the ceil((n + 1) in_time)-th of their n `overruns`,
    the longest where there are too few. At least 1; at least FIRST_OVERRUN where they are FEW."""
    count = len(overruns)
    least = FIRST_OVERRUN if count < FEW else 1.0
    rank = min(math.ceil((count + 1) * in_time), count)
    return max(least, sorted(overruns)[rank - 1]) if count else least


def processor_share(spin_ms: float = SPIN_MS) -> float:
    """The share of a core that this thread gets: processor time over time of the clock in a short spin."""
    start, used = time.perf_counter(), time.thread_time()
    while time.perf_counter() - start < spin_ms / 1000:
        pass
    return min(1.0, (time.thread_time() - used) / (time.perf_counter() - start))


class Policy:
    """The optimizer of one device and deadline: latencies for a grid of loads are computed once."""

    def __init__(self, profile: Profile, deadline_ms: float, *, least_ms: float = 0.0) -> None:
        if not deadline_ms > least_ms:
            raise UserError(
                f"a deadline of {deadline_ms:g} ms is shorter than fusing alone takes ({least_ms:.1f} ms); "
                "use "
                f"--deadline-ms {np.ceil(2 * least_ms) or 1:g} or more.",
                field="deadline_ms",
                given=deadline_ms,
                nearest=float(np.ceil(2 * least_ms) or 1),
            )
        self.deadline_ms = deadline_ms
        self._table = np.stack([profile.latency_ms(float(scale)) for scale in SCALES])
        self.factor = 1.0
        self.overruns: deque[float] = deque(maxlen=RECENT)
        self.predicted_ms = 0.0
        self._chosen, self._share = 0, 1.0

    def latencies(self, scale: float) -> F64:
        """Latency of every configuration in ms where computing takes `scale` times as long as profiled."""
        at = float(np.interp(np.log(scale), np.log(SCALES), np.arange(len(SCALES))))
        low, high = math.floor(at), math.ceil(at)
        return np.asarray(self._table[low] + (at - low) * (self._table[high] - self._table[low]))

    def scale_of(self, chosen: int, latency_ms: float) -> float:
        """By how much computing was slower than profiled, where a configuration took `latency_ms`."""
        found = np.interp(latency_ms, np.maximum.accumulate(self._table[:, chosen]), np.log(SCALES))
        return float(np.exp(found))

    def decided(self, accuracy: F64, share: float, factor: float, room: float) -> int:
        """The configuration for accuracies [n] expected of a window, where a thread gets `share` of a core,
        computing is slower by `factor`, and `room` times longer than that is reckoned with."""
        return decide(accuracy, self.latencies(room * factor / max(share, 1e-3)), self.deadline_ms)

    def choose(self, accuracy: F64, share: float = 1.0) -> int:
        """The configuration for accuracies [n] expected of this window."""
        self._share = max(share, 1e-3)
        self._chosen = self.decided(accuracy, share, self.factor, margin(self.overruns))
        self.predicted_ms = float(self.latencies(self.factor / self._share)[self._chosen])
        return self._chosen

    def learn(self, measured_ms: float) -> None:
        """Take what the last choice really took into account."""
        if self.predicted_ms > 0:
            factor = self.scale_of(self._chosen, measured_ms) * self._share
            self.overruns.append(min(factor / self.factor, MOST_OVERRUN))
            self.factor = moved(self.factor, factor, 1.0)
