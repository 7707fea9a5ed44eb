"""DLinear: trend and remainder, each through one dense map; the dense linear baseline.

Paper: Zeng et al., "Are Transformers Effective for Time Series Forecasting?" (AAAI 2023).
What is here: a moving average of 25 steps, the end values repeated beyond the window, is the trend; the rest
is the remainder. One matrix [horizon, seq] with a bias for each, shared by all channels.
What we changed: fitted exactly by ridge regression from moments; the ridge is chosen as for the others here.
Cost: horizon times seq multiplications and as many numbers, twice.
Limits: no mean is taken from the window, so that a level never seen in training is met by the weights alone.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from haversack.models.series._forecaster import RIDGES, Forecaster
from haversack.models.series._moments import Moments

F64 = NDArray[np.float64]
TREND = 25


def moving_average(seq: int, width: int = TREND) -> F64:
    """The matrix [seq, seq] of the mean over `width` steps, end values repeated."""
    out = np.zeros((seq, seq))
    rows = np.arange(seq)
    for offset in range(-(width // 2), width - width // 2):
        out[rows, np.clip(rows + offset, 0, seq - 1)] += 1 / width
    return out


class DLinear(Forecaster):
    """Forecasts `horizon` steps from `seq` by two dense maps, of the trend and of what is left of it."""

    name: ClassVar[str] = "dlinear"

    def __init__(self, horizon: int = 96, seq: int = 720) -> None:
        self.horizon = horizon
        self.seq = seq

    def _choose(self, fitting: Moments, held_out: Moments, again: Moments | None) -> None:
        # Both maps act on x together as W = Ws (I - T) + Wt T. Their squared numbers are least for a given
        # W when W = V G, G = (I - T)^T (I - T) + T^T T, and then are tr(W inverse(G) W^T).
        trend = moving_average(self.seq)
        rest = np.eye(self.seq) - trend
        spread = rest.T @ rest + trend.T @ trend
        best: tuple[float, float, F64, F64] | None = None
        for ridge in RIDGES:
            matrix, bias = self._solve(fitting, spread, ridge)
            error = held_out.error(matrix, bias)
            if best is None or error < best[0]:
                best = error, ridge, matrix, bias
        assert best is not None
        _, self.ridge_, self.matrix_, self.bias_ = best
        if again is not None:
            self.matrix_, self.bias_ = self._solve(again, spread, self.ridge_)

    def _solve(self, moments: Moments, spread: F64, ridge: float) -> tuple[F64, F64]:
        mean = moments.first / moments.count
        centred = moments.second / moments.count - np.outer(mean, mean)
        inner, cross = centred[: self.seq, : self.seq], centred[self.seq :, : self.seq]
        weight = max(ridge, 1e-9) * np.trace(inner) / self.seq
        # W = cross (inner + weight inverse(G))^-1, without the inverse: W = cross G (inner G + weight)^-1.
        matrix = np.linalg.solve((inner @ spread + weight * np.eye(self.seq)).T, (cross @ spread).T).T
        return matrix, mean[self.seq :] - matrix @ mean[: self.seq]

    def count(self) -> int:
        return 2 * self.horizon * (self.seq + 1)

    def to_matrix(self) -> F64:
        self._need_fit("matrix_")
        return self.matrix_

    def bias(self) -> F64 | None:
        return self.bias_
