"""Second moments of all windows of a series, from which every linear forecaster is fitted and judged exactly.

A linear forecaster errs by e = y - W x on a window z = (x, y) of `seq` + `horizon` steps. Its mean square
error over any set of windows is a quadratic form in W whose coefficients are the sums of z z^T over these
windows: one square matrix, however many windows and channels there were. Neighbouring windows share all but
one row, so the matrix costs a running sum along each of its diagonals, not a product of windows.

Cost: (seq + horizon) * rows * channels operations; the windows themselves are never formed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]
BLOCK = 512  # windows that are forecast at once


@dataclass(frozen=True)
class Moments:
    """Sums over `count` windows (channels counted one by one): `second` [n, n] of z z^T and `first` [n] of z,
    n = seq + horizon."""

    seq: int
    horizon: int
    count: int
    first: F64
    second: F64

    @classmethod
    def of(cls, values: F64, seq: int, horizon: int) -> Moments:
        """Of all windows of a series [rows, channels] of at least seq + horizon rows."""
        size = seq + horizon
        windows = len(values) - size + 1
        columns = np.ascontiguousarray(np.asarray(values, np.float64).T)
        second = np.empty((size, size))
        totals = np.concatenate([[0.0], np.cumsum(columns.sum(0))])
        starts = np.arange(size)
        first = totals[starts + windows] - totals[starts]
        for lag in range(size):
            products = np.einsum("ct,ct->t", columns[:, : columns.shape[1] - lag], columns[:, lag:])
            running = np.concatenate([[0.0], np.cumsum(products)])
            rows = starts[: size - lag]
            diagonal = running[rows + windows] - running[rows]
            second[rows, rows + lag] = diagonal
            second[rows + lag, rows] = diagonal
        return cls(seq, horizon, windows * len(columns), first, second)

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.seq,
            self.horizon,
            self.count + other.count,
            self.first + other.first,
            self.second + other.second,
        )

    def centred(self) -> tuple[F64, F64, float]:
        """Means over windows once each window's own mean over its `seq` steps is taken from it: of x x^T
        [seq, seq], of y x^T [horizon, seq], and of the squares of y."""
        away = self.second[:, : self.seq].mean(1)
        level = away[: self.seq].mean()
        whole = (self.second - away[:, None] - away[None, :] + level) / self.count
        past, ahead = slice(0, self.seq), slice(self.seq, None)
        return whole[past, past], whole[ahead, past], float(np.trace(whole[ahead, ahead]))

    def error(self, matrix: F64, bias: F64 | None = None) -> float:
        """Mean square error of y = matrix x + bias, matrix [horizon, seq], over steps and windows."""
        left = np.concatenate([matrix, -np.eye(self.horizon)], axis=1)
        total = float(np.einsum("hi,hi->", left @ self.second, left))
        if bias is not None:
            total += 2 * float(bias @ (left @ self.first)) + self.count * float(bias @ bias)
        return total / (self.count * self.horizon)


@dataclass(frozen=True)
class Errors:
    """Mean over windows, steps and channels, every window counted."""

    mse: float
    mae: float
    windows: int


def window_errors(values: F64, seq: int, horizon: int, matrix: F64, bias: F64 | None = None) -> Errors:
    """Errors of y = matrix x + bias on every window of a series [rows, channels]."""
    columns = np.ascontiguousarray(np.asarray(values, np.float32).T)
    weights = matrix.astype(np.float32).T
    square = absolute = 0.0
    windows = columns.shape[1] - seq - horizon + 1
    for channel in columns:
        past = np.lib.stride_tricks.sliding_window_view(channel, seq)[:windows]
        ahead = np.lib.stride_tricks.sliding_window_view(channel[seq:], horizon)
        for start in range(0, windows, BLOCK):
            missed: Any = ahead[start : start + BLOCK] - past[start : start + BLOCK] @ weights
            if bias is not None:
                missed -= bias.astype(np.float32)
            square += float(np.einsum("th,th->", missed, missed, dtype=np.float64))
            absolute += float(np.abs(missed).sum(dtype=np.float64))
    count = windows * len(columns) * horizon
    return Errors(square / count, absolute / count, windows)
