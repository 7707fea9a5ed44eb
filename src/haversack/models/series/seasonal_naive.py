"""Seasonal naive: the last period again and again; what every forecaster has to beat.

Paper: none; the standard reference forecast (Hyndman and Athanasopoulos, "Forecasting: Principles and
Practice").
What is here: step h ahead is the step of the same phase in the last period of the window.
Cost: none; nothing is learned.
Limits: knows no trend, and repeats whatever noise the last period had."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from haversack.models.series._forecaster import Periodic
from haversack.models.series._moments import Moments

F64 = NDArray[np.float64]


class SeasonalNaive(Periodic):
    """Repeats the last `period` steps over `horizon`."""

    name: ClassVar[str] = "seasonal-naive"

    def __init__(self, horizon: int = 96, seq: int = 720, period: int = 24) -> None:
        self.horizon = horizon
        self.seq = seq
        self.period = period

    def _choose(self, fitting: Moments, held_out: Moments, again: Moments | None) -> None:
        self.ridge_ = 0.0

    def count(self) -> int:
        return 0

    def to_matrix(self) -> F64:
        out = np.zeros((self.horizon, self.seq))
        steps = np.arange(self.horizon)
        out[steps, self.seq - self.period + steps % self.period] = 1.0
        return out
