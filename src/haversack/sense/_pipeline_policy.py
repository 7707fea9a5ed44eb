"""Which configuration a window gets: the most accurate that is expected to answer before the deadline.

Paper: MMEdge (arXiv 2510.25327): arg max of the predicted accuracy over configurations whose profiled
latency is at most the deadline. Where none is, the one with the least latency [inferred]. Load: a factor
follows measured over predicted latency (moving average), and, ours, the share of a core that a short spin
got right before: the factor alone learns of a load only after it has spoilt an answer, and a small encoder
hardly notices what would slow a large one down. Latencies are reckoned longer by four times the mean
deviation of what was foretold, as TCP reckons its timeouts [inferred]: a deadline is met by the slow windows,
not by the mean of all."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError
from haversack.sense._pipeline_profile import Profile

F64 = NDArray[np.float64]
SCALES = np.geomspace(1.0, 12.0, 25)
EMA = 0.2
FACTORS = (0.7, 3.0)
SPIN_MS = 12.0
DEVIATIONS = 4.0
MOST_DEVIATION = 0.5


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
        self.deviation = 0.0
        self.predicted_ms = 0.0

    def latencies(self, share: float) -> F64:
        """Latency of every configuration in ms where a thread gets `share` of a core."""
        at = min(int(np.searchsorted(SCALES, 1 / max(share, 1e-3) - 1e-9)), len(SCALES) - 1)
        return np.asarray(self.factor * self._table[at])

    def decided(self, accuracy: F64, share: float) -> int:
        """The configuration for accuracies [n] expected of a window."""
        margin = 1 + DEVIATIONS * self.deviation
        return decide(accuracy, margin * self.latencies(share), self.deadline_ms)

    def choose(self, accuracy: F64, share: float = 1.0) -> int:
        """The configuration for accuracies [n] expected of this window."""
        chosen = self.decided(accuracy, share)
        self.predicted_ms = float(self.latencies(share)[chosen])
        return chosen

    def learn(self, measured_ms: float) -> None:
        """Take what the last choice really took into account."""
        if self.predicted_ms > 0:
            off = min(abs(measured_ms / self.predicted_ms - 1), MOST_DEVIATION)
            self.deviation += EMA * (off - self.deviation)
            self.factor = moved(self.factor, measured_ms * self.factor, self.predicted_ms)
