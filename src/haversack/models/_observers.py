"""What calibration remembers of activations: ranges of tensors, channels and groups, and moments of channels.

Rows of an activation are tokens, columns are channels. Everything is added up piece by piece, in double
precision where sums are long, and holds a few numbers a channel at most. Ranges of single tokens are not
remembered: they are of each token as it comes (`_fake_quant.extent`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import not_allowed

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

GRANULARITIES = ("tensor", "channel", "group")
RULES = ("extreme", "running", "moving")


class RangeObserver:
    """The smallest and largest of activations f32 [n, columns], over all pieces seen.

    `granularity`: one range for all, one a channel, or one for each `group` of channels. `rule`: "extreme"
    keeps the extremes of all pieces, "running" the mean of the pieces' extremes, "moving" their moving
    average, in which a new piece weighs `share`.
    """

    def __init__(
        self, granularity: str = "tensor", rule: str = "extreme", *, group: int = 64, share: float = 0.1
    ) -> None:
        if granularity not in GRANULARITIES:
            raise not_allowed("granularity", granularity, GRANULARITIES)
        if rule not in RULES:
            raise not_allowed("rule", rule, RULES)
        self.granularity, self.rule, self.group, self.share = granularity, rule, group, share
        self.pieces = 0
        self.low: F64 = np.empty(0)
        self.high: F64 = np.empty(0)

    def add(self, x: F32) -> None:
        """See a piece x f32 [n, columns], n at least 1."""
        low, high = self._extremes(x)
        if self.pieces == 0:
            self.low, self.high = low, high
        elif self.rule == "extreme":
            self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
        else:
            share = self.share if self.rule == "moving" else 1 / (self.pieces + 1)
            self.low = self.low + share * (low - self.low)
            self.high = self.high + share * (high - self.high)
        self.pieces += 1

    def _extremes(self, x: F32) -> tuple[F64, F64]:
        low, high = x.min(axis=0).astype(np.float64), x.max(axis=0).astype(np.float64)
        if self.granularity == "tensor":
            return low.min(keepdims=True), high.max(keepdims=True)
        if self.granularity == "channel":
            return low, high
        starts = np.arange(0, x.shape[1], self.group)
        return np.minimum.reduceat(low, starts), np.maximum.reduceat(high, starts)


class ChannelMoments:
    """Of every channel of activations f32 [n, columns]: `low`, `high`, and sums that give means; with
    `fourth` those that give kurtosis as well.
    """

    def __init__(self, columns: int, *, fourth: bool = False) -> None:
        self.tokens = 0
        self.low: F32 = np.full(columns, np.inf, np.float32)
        self.high: F32 = np.full(columns, -np.inf, np.float32)
        self._sums: F64 = np.zeros((5 if fourth else 2, columns))  # of |x|, x, x^2, x^3, x^4

    def add(self, x: F32) -> None:
        """See the rows of x f32 [n, columns]."""
        if not len(x):
            return
        self.tokens += len(x)
        np.minimum(self.low, x.min(axis=0), out=self.low)
        np.maximum(self.high, x.max(axis=0), out=self.high)
        self._sums[0] += np.abs(x).sum(axis=0, dtype=np.float64)
        self._sums[1] += x.sum(axis=0, dtype=np.float64)
        power: Any = x.astype(np.float64) if len(self._sums) > 2 else None
        for row in range(2, len(self._sums)):
            power *= x
            self._sums[row] += power.sum(axis=0)

    @property
    def largest(self) -> F32:
        """The largest magnitude f32 [columns]."""
        return np.maximum(np.abs(self.low), np.abs(self.high)) if self.tokens else np.zeros_like(self.low)

    @property
    def magnitude(self) -> F32:
        """The mean magnitude f32 [columns]."""
        return (self._sums[0] / max(self.tokens, 1)).astype(np.float32)

    @property
    def mean(self) -> F32:
        """The mean f32 [columns]."""
        return (self._sums[1] / max(self.tokens, 1)).astype(np.float32)

    @property
    def kurtosis(self) -> F32:
        """The fourth moment about the mean over the variance squared, f32 [columns]: 3 for a normal
        channel, 0 for one that never changes."""
        one, two, three, four = self._sums[1:] / max(self.tokens, 1)
        variance = two - one**2
        fourth = four - 4 * one * three + 6 * one**2 * two - 3 * one**4
        still = variance <= 1e-12 * two
        return np.where(still, 0.0, fourth / np.where(still, 1.0, variance) ** 2).astype(np.float32)

    def finite(self) -> bool:
        """False when a channel held a NaN or an infinity."""
        return self.tokens == 0 or bool(np.isfinite(self._sums[1]).all())
