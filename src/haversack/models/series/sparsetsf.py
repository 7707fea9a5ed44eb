"""SparseTSF: one dense map between periods for all phases; the baseline that MixLinear factors.

Paper: Lin et al., "SparseTSF: Modeling Long-term Time Series Forecasting with 1k Parameters" (ICML 2024).
What is here: the window's mean is taken away; one kernel of period + 1 taps smooths what is left and is added
to it; each phase of the period is a series over periods, forecast by one matrix [periods ahead, periods
back].
What we changed: fitted exactly from moments (_factors.py), by the same solver and the same choice of the
ridge as MixLinear, so that the two differ in nothing but their map.
Cost: period + 1 multiplications a step for the kernel, then periods-ahead times periods-back a phase.
Limits: seq is a multiple of the period."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from haversack.models.series._factors import Tensors, centred_taps, solve
from haversack.models.series._forecaster import RIDGES, Periodic
from haversack.models.series._moments import Moments

F64 = NDArray[np.float64]


def first_map(tensors: Tensors, ridge: float = 1e-3) -> tuple[F64, F64]:
    """The best map of the input as it is, and a kernel of zeros: where the solvers begin."""
    kernel = np.zeros(len(tensors.inputs))
    whole, cut, cross = tensors.seen(kernel)
    eye = ridge * np.trace(whole) / len(whole) * np.eye(len(whole))
    matrix = np.linalg.solve(whole + eye, cross.T).T
    matrix[-1] = np.linalg.solve(cut + eye * np.trace(cut) / np.trace(whole), cross[-1])
    return matrix, kernel


def whole_matrix(kernel: F64, between: F64, seq: int, horizon: int) -> F64:
    """Mean, kernel and the map between periods as one matrix [horizon, seq]."""
    back = between.shape[1]
    period = seq // back
    taps, half = centred_taps(kernel), len(kernel) // 2
    smooth = np.zeros((seq, seq))
    for at, tap in enumerate(taps):
        smooth += tap * np.eye(seq, k=at - half)
    rows = np.einsum("hi,ipt->hpt", between, smooth.reshape(back, period, seq)).reshape(-1, seq)[:horizon]
    return np.asarray(rows - rows.mean(1, keepdims=True) + 1 / seq)


def smoothed(windows: F64, kernel: F64) -> F64:
    """x + x * kernel along the steps of windows [n, seq, channels], zeros beyond both ends."""
    half = len(kernel) // 2
    n, seq, channels = windows.shape
    wide = np.zeros((n, seq + len(kernel) - 1, channels))
    wide[:, half : half + seq] = windows
    taps = np.lib.stride_tricks.sliding_window_view(wide, len(kernel), axis=1)
    return np.asarray(taps @ centred_taps(kernel))


def folded_forward(windows: F64, kernel: F64, between: F64, horizon: int) -> F64:
    """Forecasts [n, horizon, channels] of windows [n, seq, channels] by kernel and map between periods."""
    mean = windows.mean(1, keepdims=True)
    n, seq, channels = windows.shape
    ahead, back = between.shape
    inner = smoothed(windows - mean, kernel).reshape(n, back, -1)
    made = (between @ inner).reshape(n, ahead * seq // back, channels)[:, :horizon]
    return np.asarray(made + mean)


@dataclass
class DenseMap:
    """A map whose every entry is a parameter."""

    back: int
    ahead: int

    def __post_init__(self) -> None:
        self.parameters = np.zeros(self.ahead * self.back)
        self._slopes = np.eye(self.ahead * self.back).reshape(-1, self.ahead, self.back)

    def matrix(self, parameters: F64) -> F64:
        return parameters.reshape(self.ahead, self.back)

    def slopes(self, parameters: F64) -> F64:
        return self._slopes


class SparseTSF(Periodic):
    """Forecasts `horizon` steps from `seq` by one map between periods, shared by all phases and channels."""

    name: ClassVar[str] = "sparsetsf"

    def __init__(self, horizon: int = 96, seq: int = 720, period: int = 24) -> None:
        self.horizon = horizon
        self.seq = seq
        self.period = period

    def _choose(self, fitting: Moments, held_out: Moments, again: Moments | None) -> None:
        tensors, judge = Tensors.of(fitting, self.period), Tensors.of(held_out, self.period)
        dense = DenseMap(self.periods_back, self.periods_ahead)
        goal, kernel = first_map(tensors)
        start = goal.ravel()
        best: tuple[float, float, F64, F64] | None = None
        for ridge in sorted(RIDGES, reverse=True):
            found = solve(tensors, dense, kernel, start, ridge)
            start, kernel = found.parameters, found.kernel
            error = judge.error(found.kernel, dense.matrix(found.parameters))
            if best is None or error < best[0]:
                best = error, ridge, found.kernel, found.parameters
        assert best is not None
        _, self.ridge_, self.kernel_, values = best
        if again is not None:
            done = solve(Tensors.of(again, self.period), dense, self.kernel_, values, self.ridge_)
            self.kernel_, values = done.kernel, done.parameters
        self.map_ = dense.matrix(values)

    def count(self) -> int:
        return self.period + 1 + self.periods_ahead * self.periods_back

    def forward(self, windows: F64) -> F64:
        return folded_forward(windows, self.kernel_, self.map_, self.horizon)

    def to_matrix(self) -> F64:
        self._need_fit("map_")
        return whole_matrix(self.kernel_, self.map_, self.seq, self.horizon)
