"""The contract of the forecasters here: fitted on moments, chosen on a validation part, one matrix in the
end."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError
from haversack.models.series._estimator import Estimator
from haversack.models.series._moments import Errors, Moments, window_errors

F64 = NDArray[np.float64]
RIDGES = (0.0, 1e-4, 1e-3, 1e-2, 1e-1)
"""Weights of the squared parameters that every forecaster is tried with, relative to the input's power."""
LARGEST_WINDOW = 8192


class Forecaster(Estimator):
    """Forecasts `horizon` steps from the last `seq`, every channel by the same weights.

    A series is an array [rows, channels] (or [rows]) of finite numbers at equal steps. Channels are weighed
    by the inverse of their variance in training; `mean_` and `scale_` hold it.
    """

    name: ClassVar[str]
    horizon: int
    seq: int

    def fit(self, series: Any, y: Any = None, *, validation: Any = None) -> Self:
        """Fit on all windows of `series`.

        The ridge is the one of RIDGES that does best on `validation`, a series [rows, channels] whose first
        `seq` rows may be the last of training; without one, the last fifth of the windows is held out, and
        the choice fitted again on everything. `y` is not used. Raises UserError for fewer than seq + horizon
        rows, for numbers that are not finite, and for parameters that do not go together.
        """
        self._check()
        values = as_series(series, self.seq + self.horizon, "series")
        self.mean_, self.scale_ = spread(values)
        scaled = self._scaled(values)
        whole = Moments.of(scaled, self.seq, self.horizon)
        if validation is not None:
            held = as_series(validation, self.seq + self.horizon, "validation", values.shape[1])
            self._choose(whole, Moments.of(self._scaled(held), self.seq, self.horizon), None)
            self.moments_ = whole
            return self
        windows = len(values) - self.seq - self.horizon + 1
        tail = max(1, windows // 5)
        gap = min(self.horizon - 1, max(0, windows - tail - 1))
        if windows < 5:
            self._choose(whole, whole, None)
        else:
            first = Moments.of(scaled[: len(scaled) - tail - gap], self.seq, self.horizon)
            last = Moments.of(
                scaled[len(scaled) - tail - self.seq - self.horizon + 1 :], self.seq, self.horizon
            )
            self._choose(first, last, whole)
        self.moments_ = whole
        return self

    def predict(self, recent: Any) -> F64:
        """The next steps [horizon, channels] after `recent` [at least seq, channels], whose last `seq` rows
        count; of windows [n, seq, channels] those of each [n, horizon, channels]."""
        self._need_fit("mean_")
        given = np.asarray(recent, np.float64)
        if given.ndim == 3:
            if given.shape[1] != self.seq or self._channels() not in (None, given.shape[2]):
                raise UserError(
                    f"windows of {given.shape[1]} steps and {given.shape[2]} channels do not fit; this "
                    f"forecaster takes {self.seq} steps and {self._channels() or 'any'} channels.",
                    field="recent",
                    given=list(given.shape),
                )
            windows = given
        else:
            windows = as_series(given, self.seq, "recent", self._channels())[None, -self.seq :]
        scaled = (windows - self.mean_) / self.scale_
        ahead = self.forward(scaled) * self.scale_ + self.mean_
        return ahead if given.ndim == 3 else np.asarray(ahead[0, :, 0] if given.ndim == 1 else ahead[0])

    def score(self, series: Any, y: Any = None) -> float:
        """Minus the mean square error over all windows of `series`, channels scaled as in training."""
        return -self.errors(series).mse

    def errors(self, series: Any) -> Errors:
        """Errors over all windows of `series` [rows, channels], channels scaled as in training."""
        self._need_fit("mean_")
        values = as_series(series, self.seq + self.horizon, "series", self._channels())
        return window_errors(self._scaled(values), self.seq, self.horizon, self.to_matrix(), self.bias())

    def _channels(self) -> int | None:
        """How many were fitted; None where any number will do (a pack of a forecaster without levels)."""
        return len(self.mean_) if np.ndim(self.mean_) else None

    def _scaled(self, values: F64) -> F64:
        return np.asarray((values - self.mean_) / self.scale_)

    def count(self) -> int:
        """Learned numbers; a complex one counts once, as its authors count it."""
        raise NotImplementedError

    def to_matrix(self) -> F64:
        """The fitted network as one matrix [horizon, seq]; it forecasts every channel."""
        raise NotImplementedError

    def bias(self) -> F64 | None:
        """What is added to the matrix's product, [horizon], in units of the scaled channels."""
        return None

    def forward(self, windows: F64) -> F64:
        """Forecasts [n, horizon, channels] of scaled windows [n, seq, channels], step by step as
        published."""
        ahead = np.einsum("hl,nlc->nhc", self.to_matrix(), windows, optimize=True)
        bias = self.bias()
        return ahead if bias is None else ahead + bias[:, None]

    def _check(self) -> None:
        """Raises UserError for parameters that cannot be."""
        for field, value in (("horizon", self.horizon), ("seq", self.seq)):
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise UserError(
                    f"{field}={value} is not supported (allowed whole numbers from 1 on).",
                    field=field,
                    given=value,
                    nearest=1,
                )
        if self.seq + self.horizon > LARGEST_WINDOW:
            raise UserError(
                f"seq + horizon = {self.seq + self.horizon} is not supported (at most {LARGEST_WINDOW}, "
                "whose "
                "moments take half a GiB); forecast a coarser series.",
                field="horizon",
                given=self.horizon,
                nearest=max(1, LARGEST_WINDOW - self.seq),
            )

    def _choose(self, fitting: Moments, held_out: Moments, again: Moments | None) -> None:
        """Fit on `fitting` with each ridge, keep what does best on `held_out`, then fit `again` with it."""
        raise NotImplementedError


class Periodic(Forecaster):
    """A forecaster that folds the window by a period."""

    period: int

    def _check(self) -> None:
        super()._check()
        if isinstance(self.period, bool) or not 1 <= self.period <= self.seq:
            raise UserError(
                f"period={self.period} is not supported (allowed 1 to seq={self.seq}).",
                field="period",
                given=self.period,
                nearest=min(max(1, int(self.period)), self.seq),
            )
        if self.seq % self.period:
            nearest = max(self.period, round(self.seq / self.period) * self.period)
            raise UserError(
                f"seq={self.seq} is not a multiple of the period {self.period}; use seq={nearest}.",
                field="seq",
                given=self.seq,
                nearest=nearest,
            )

    @property
    def periods_back(self) -> int:
        """Periods in the window."""
        return self.seq // self.period

    @property
    def periods_ahead(self) -> int:
        """Periods that the horizon reaches into."""
        return -(-self.horizon // self.period)


def as_series(given: Any, fewest: int, field: str, channels: int | None = None) -> F64:
    """`given` as [rows, channels] f64. Raises UserError for another shape, too few rows, numbers not
    finite."""
    values = np.asarray(given, np.float64)
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or values.shape[1] == 0:
        raise UserError(
            f"{field} has the shape {list(values.shape)}; give [rows, channels].",
            field=field,
            given=list(values.shape),
        )
    if channels is not None and values.shape[1] != channels:
        raise UserError(
            f"{field} has {values.shape[1]} channels and {channels} were fitted.",
            field=field,
            given=values.shape[1],
            nearest=channels,
        )
    if len(values) < fewest:
        raise UserError(
            f"{field} has {len(values)} rows and at least {fewest} are needed; give more rows, or a shorter "
            "seq or horizon.",
            field=field,
            given=len(values),
            nearest=fewest,
        )
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise UserError(
            f"{field} holds {values[row, column]} in row {row}, channel {column}; fill gaps before fitting "
            "(haversack sense forecast --impute linear).",
            field=field,
            given=str(values[row, column]),
        )
    return values


def spread(values: F64) -> tuple[F64, F64]:
    """Mean and standard deviation of each channel; a constant one is divided by 1."""
    mean, scale = values.mean(0), values.std(0)
    return mean, np.where(scale > 1e-12 * np.maximum(np.abs(mean), 1.0), scale, 1.0)


def detect_period(series: Any, *, longest: int | None = None) -> int:
    """The period at which the series [rows, channels] resembles itself most: the highest local maximum of its
    autocorrelation, differences of the series standing for it where it drifts; 1 where there is none."""
    values = as_series(series, 8, "series")
    values = values - values.mean(0)
    longest = min(longest or len(values) // 3, len(values) // 3)
    size = 1 << (2 * len(values) - 1).bit_length()
    total = np.zeros(longest + 2)
    for channel in np.diff(values, axis=0).T:
        power = float(channel @ channel)
        if power <= 0:
            continue
        spectrum = np.abs(np.fft.rfft(channel, size)) ** 2
        total += np.fft.irfft(spectrum, size)[: longest + 2] / power
    total /= values.shape[1]
    inner = range(2, longest + 1)
    peaks = [lag for lag in inner if total[lag] > total[lag - 1] and total[lag] >= total[lag + 1]]
    strong = [lag for lag in peaks if total[lag] > max(0.1, 4 / np.sqrt(len(values)))]
    if not strong:
        return 1
    top = max(total[lag] for lag in strong)
    return next(lag for lag in strong if total[lag] >= 0.9 * top)
