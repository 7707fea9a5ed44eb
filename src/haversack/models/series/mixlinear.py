"""MixLinear: a forecaster of about a hundred numbers, half in time, half in frequency.

Paper: Ma et al., "MixLinear: Extreme Low Resource Multivariate Time Series Forecasting with 0.1K Parameters"
(arXiv 2410.02081, ICLR 2026).
What is here: the window's mean is taken away; one kernel of period + 1 taps smooths what is left and is added
to it; each phase of the period becomes a series over periods. Two maps forecast that series and are mixed,
alpha to 1 - alpha. The time path folds it into a square and applies one small matrix within segments and one
across them. The frequency path keeps the first bins of its full complex Fourier transform, sends them through
a complex map of rank 2 and takes the real part of the inverse transform. The mean is added back.
What we changed: the network is linear in its input, so its mean square error over all training windows is a
polynomial of the moments (_moments.py). It is lowered by Gauss-Newton steps on kernel and factors together
(_factors.py) instead of Adam on batches: no learning rate, no epochs, less than ten seconds. The first guess
is the best unstructured map, its two parts by singular values. The ridge is chosen on the validation part.
alpha scales the two paths and nothing else: what the solver reaches for any alpha strictly between 0 and 1 is
the same, and 0 and 1 are the ablations.
Cost: 25 multiplications a step for the kernel at period 24, then periods-ahead times periods-back a phase.
Limits: seq is a multiple of the period. Zeros fill the square at its newest end where periods-back is no
square. A level shift inside the window is seen through its mean alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError
from haversack.models.series import sparsetsf
from haversack.models.series._factors import Tensors, solve
from haversack.models.series._forecaster import RIDGES, Periodic, as_series
from haversack.models.series._moments import Moments

SYSTEM = 47

F64 = NDArray[np.float64]
C128 = NDArray[np.complex128]
PUBLISHED = {96: (0.95, 1), 192: (0.95, 5), 336: (0.99, 2), 720: (0.99, 19)}
"""Alpha and bins that the authors' scripts give the hourly transformer table, by horizon."""


def square_side(count: int) -> int:
    """The side of the smallest square that holds `count` numbers."""
    return math.isqrt(count - 1) + 1


def time_map(within: F64, across: F64, back: int, ahead: int) -> F64:
    """The map [ahead, back] of the two factors [side ahead, side back]: within segments, then across."""
    return np.asarray(np.kron(across, within)[:ahead, :back], np.float64)


def low_bins(bins: int, back: int) -> C128:
    """The first rows [bins, back] of the Fourier matrix."""
    return np.exp(-2j * np.pi * np.outer(np.arange(bins), np.arange(back)) / back)


def inverse(ahead: int) -> C128:
    """The inverse Fourier matrix [ahead, ahead]."""
    return np.exp(2j * np.pi * np.outer(np.arange(ahead), np.arange(ahead)) / ahead) / ahead


def frequency_map(narrow: C128, wide: C128, back: int) -> F64:
    """The map [ahead, back] of the factors `narrow` [rank, bins] and `wide` [ahead, rank]."""
    ahead = len(wide)
    return np.ascontiguousarray((inverse(ahead) @ wide @ narrow @ low_bins(narrow.shape[1], back)).real)


def parameter_count(
    seq: int, horizon: int, period: int, bins: int, rank: int = 2, *, complex_as: int = 1
) -> int:
    """Learned numbers; a complex one counts `complex_as` times (the authors count it once)."""
    back, ahead = seq // period, -(-horizon // period)
    segments = 2 * square_side(back) * square_side(ahead)
    return period + 1 + segments + complex_as * rank * (bins + ahead)


@dataclass
class MixedMap:
    """M = alpha * time + (1 - alpha) * frequency, of one flat array of parameters (core of _factors.Map)."""

    back: int
    ahead: int
    bins: int
    alpha: float
    rank: int

    def __post_init__(self) -> None:
        self.sides = square_side(self.ahead), square_side(self.back)
        self._down = low_bins(self.bins, self.back)
        self._up = inverse(self.ahead)
        self.parameters = np.zeros(self.size)

    @property
    def size(self) -> int:
        """Parameters as real numbers."""
        return 2 * self.sides[0] * self.sides[1] + 2 * self.rank * (self.bins + self.ahead)

    def parts(self, parameters: F64) -> tuple[F64, F64, C128, C128]:
        """(within, across, narrow, wide)."""
        segment, low = self.sides[0] * self.sides[1], self.rank * self.bins
        at = 2 * segment
        within, across = parameters[:segment], parameters[segment:at]
        narrow = parameters[at : at + low] + 1j * parameters[at + low : at + 2 * low]
        rest = parameters[at + 2 * low :]
        wide = rest[: len(rest) // 2] + 1j * rest[len(rest) // 2 :]
        shape = self.sides
        return (
            within.reshape(shape),
            across.reshape(shape),
            narrow.reshape(self.rank, self.bins),
            wide.reshape(self.ahead, self.rank),
        )

    def matrix(self, parameters: F64) -> F64:
        within, across, narrow, wide = self.parts(parameters)
        time = time_map(within, across, self.back, self.ahead)
        return self.alpha * time + (1 - self.alpha) * (self._up @ wide @ narrow @ self._down).real

    def slopes(self, parameters: F64) -> F64:
        within, across, narrow, wide = self.parts(parameters)
        tall, side = self.sides
        unit = np.eye(tall * side).reshape(-1, tall, side)
        by_within = np.einsum("pi,zqj->zpqij", across, unit).reshape(-1, tall**2, side**2)
        by_across = np.einsum("zpi,qj->zpqij", unit, within).reshape(-1, tall**2, side**2)
        left, right = self._up @ wide, narrow @ self._down
        by_narrow = np.einsum("hr,bt->rbht", left, self._down).reshape(-1, self.ahead, self.back)
        by_wide = np.einsum("ha,rt->arht", self._up, right).reshape(-1, self.ahead, self.back)
        time = np.concatenate([by_within, by_across])[:, : self.ahead, : self.back]
        frequency = np.concatenate([by_narrow.real, -by_narrow.imag, by_wide.real, -by_wide.imag])
        return np.concatenate([self.alpha * time, (1 - self.alpha) * frequency])

    def start(self, goal: F64, random: np.random.Generator) -> F64:
        """Parameters whose map is near `goal` [ahead, back]: the best segments of it, the rest at random."""
        tall, side = self.sides
        padded = np.zeros((tall**2, side**2))
        padded[: self.ahead, : self.back] = goal
        blocks = (
            padded.reshape(tall, tall, side, side).transpose(0, 2, 1, 3).reshape(tall * side, tall * side)
        )
        u, s, v = np.linalg.svd(blocks)
        root = math.sqrt(s[0] / max(self.alpha, 1e-3))
        segments = np.concatenate([root * v[0], root * u[:, 0]])
        noise = 0.1 * random.standard_normal(self.size - len(segments))
        return np.concatenate([segments, noise])


class MixLinear(Periodic):
    """Forecasts `horizon` steps from `seq` by a network of about a hundred numbers, shared by all channels.

    `bins` (the authors' lpf) and `alpha` default to the authors' for 96, 192, 336 and 720 steps, else to 1
    bin (or a share of periods ahead) and 0.95. `restarts` first guesses of the frequency path are tried.

    >>> import numpy as np
    >>> days = 20 + np.sin(np.arange(24 * 90) * 2 * np.pi / 24)[:, None]
    >>> model = MixLinear(horizon=24, seq=24 * 30, period=24).fit(days)
    >>> bool(np.abs(model.predict(days[:-24]) - days[-24:]).max() < 0.01), model.count()
    (True, 41)
    """

    name: ClassVar[str] = "mixlinear"

    def __init__(
        self,
        horizon: int = 96,
        seq: int = 720,
        period: int = 24,
        bins: int | None = None,
        alpha: float | None = None,
        rank: int = 2,
        restarts: int = 1,
        seed: int = 0,
    ) -> None:
        self.horizon = horizon
        self.seq = seq
        self.period = period
        self.bins = bins
        self.alpha = alpha
        self.rank = rank
        self.restarts = restarts
        self.seed = seed

    def _check(self) -> None:
        super()._check()
        bins, alpha = self._bins(), self._alpha()
        if not 1 <= bins <= self.periods_back:
            raise UserError(
                f"bins={bins} is not supported (allowed 1 to seq / period = {self.periods_back}).",
                field="bins",
                given=bins,
                nearest=min(max(1, bins), self.periods_back),
            )
        if not 0 <= alpha <= 1:
            raise UserError(
                f"alpha={alpha} is not supported (allowed 0 to 1).",
                field="alpha",
                given=alpha,
                nearest=min(max(0.0, alpha), 1.0),
            )
        if not 1 <= self.rank <= 8:
            raise UserError(
                f"rank={self.rank} is not supported (allowed 1 to 8).",
                field="rank",
                given=self.rank,
                nearest=min(max(1, self.rank), 8),
            )

    def _bins(self) -> int:
        if self.bins is not None:
            return int(self.bins)
        known = PUBLISHED.get(self.horizon, (0.95, max(1, self.periods_ahead // 2)))[1]
        return min(known, self.periods_back)

    def _alpha(self) -> float:
        return PUBLISHED.get(self.horizon, (0.95, 1))[0] if self.alpha is None else float(self.alpha)

    def _map(self) -> MixedMap:
        return MixedMap(self.periods_back, self.periods_ahead, self._bins(), self._alpha(), self.rank)

    def _choose(self, fitting: Moments, held_out: Moments, again: Moments | None) -> None:
        tensors, judge = Tensors.of(fitting, self.period), Tensors.of(held_out, self.period)
        mixed = self._map()
        best: tuple[float, float, F64, F64] | None = None
        goal, kernel = sparsetsf.first_map(tensors)
        for restart in range(max(1, self.restarts)):
            start = mixed.start(goal, np.random.default_rng([self.seed, restart]))
            at_kernel = kernel
            for ridge in sorted(RIDGES, reverse=True):
                found = solve(tensors, mixed, at_kernel, start, ridge)
                start, at_kernel = found.parameters, found.kernel
                error = judge.error(found.kernel, mixed.matrix(found.parameters))
                if best is None or error < best[0]:
                    best = error, ridge, found.kernel, found.parameters
        assert best is not None
        _, self.ridge_, kernel, parameters = best
        if again is not None:
            done = solve(Tensors.of(again, self.period), mixed, kernel, parameters, self.ridge_)
            kernel, parameters = done.kernel, done.parameters
        self._keep(kernel, parameters)

    def _keep(self, kernel: F64, parameters: F64) -> None:
        self.kernel_, self.parameters_ = kernel, parameters
        self.within_, self.across_, self.narrow_, self.wide_ = self._map().parts(parameters)

    def partial_fit(self, series: Any, y: Any = None) -> Self:
        """Learn from more rows [rows, channels] without those seen before: their moments are kept.

        The first call fits; later calls add the windows of `series` and go on from the weights that are
        there. The scale of the channels stays that of the first call.
        """
        if not hasattr(self, "moments_"):
            return self.fit(series)
        values = as_series(series, self.seq + self.horizon, "series", self._channels())
        self.moments_ = self.moments_ + Moments.of(self._scaled(values), self.seq, self.horizon)
        tensors = Tensors.of(self.moments_, self.period)
        done = solve(tensors, self._map(), self.kernel_, self.parameters_, self.ridge_)
        self._keep(done.kernel, done.parameters)
        return self

    def count(self) -> int:
        return parameter_count(self.seq, self.horizon, self.period, self._bins(), self.rank)

    def period_map(self) -> F64:
        """The map [periods ahead, periods back] of every phase."""
        self._need_fit("parameters_")
        return self._map().matrix(self.parameters_)

    def to_matrix(self) -> F64:
        return sparsetsf.whole_matrix(self.kernel_, self.period_map(), self.seq, self.horizon)

    def forward(self, windows: F64) -> F64:
        mean = windows.mean(1, keepdims=True)
        inner = sparsetsf.smoothed(windows - mean, self.kernel_)
        n, _, channels = inner.shape
        folded = inner.reshape(n, self.periods_back, self.period, channels).transpose(0, 3, 2, 1)
        tall, side = self._map().sides
        square = np.zeros((*folded.shape[:3], side * side))
        square[..., : self.periods_back] = folded
        segments = square.reshape(*folded.shape[:3], side, side) @ self.within_.T
        across = (segments.swapaxes(-1, -2) @ self.across_.T).swapaxes(-1, -2)
        time = across.reshape(*folded.shape[:3], tall * tall)[..., : self.periods_ahead]
        spectrum = np.fft.fft(folded, axis=-1)[..., : self._bins()]
        frequency = np.fft.ifft(spectrum @ self.narrow_.T @ self.wide_.T, axis=-1).real
        alpha = self._alpha()
        mixed = alpha * time + (1 - alpha) * frequency
        ahead = mixed.transpose(0, 3, 2, 1).reshape(n, -1, channels)[:, : self.horizon]
        return np.asarray(ahead + mean)
