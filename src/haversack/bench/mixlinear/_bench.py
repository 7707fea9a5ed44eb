"""The bench object that the files of this folder add their rows to, the tables and the fitted forecasters."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.bench._harness import Bench
from haversack.bench._rows import Unavailable
from haversack.core._datasets import local_path
from haversack.formats.series_csv import read_series
from haversack.models.series._forecaster import Forecaster, spread
from haversack.models.series._moments import Errors, window_errors
from haversack.models.series.dlinear import DLinear
from haversack.models.series.mixlinear import MixLinear
from haversack.models.series.seasonal_naive import SeasonalNaive
from haversack.models.series.sparsetsf import SparseTSF

FILES = ("bench/mixlinear/*.py", "models/series/*.py", "formats/series_csv.py")
F64 = NDArray[np.float64]
HORIZONS = (96, 192, 336, 720)
SEQ, PERIOD = 720, 24
ENDS = (8640, 11520, 14400)
"""Rows where training, validation and test end: 12, 4 and 4 months of 30 days."""

bench = Bench("mixlinear", number=47, watches=FILES)


@dataclass(frozen=True)
class Parts:
    """A table in its standard parts; validation and test look back into the part before."""

    train: F64
    valid: F64
    test: F64


@functools.cache
def parts(name: str) -> Parts:
    """The parts of ETTh1 or ETTh2. Raises Unavailable where the table is not at hand."""
    folder = os.environ.get("HAVERSACK_DATA")
    path = local_path("etth1") if name == "ETTh1" else Path(folder or "", "series", f"{name}.csv")
    if path is None or not path.is_file():
        raise Unavailable(
            f"{name} is not at hand; put ETT-small/{name}.csv at series/{name}.csv in a folder and let "
            "HAVERSACK_DATA name the folder"
        )
    return split(read_series(path).values)


def split(values: F64) -> Parts:
    """A transformer table's standard parts."""
    first, second, third = ENDS
    return Parts(values[:first], values[first - SEQ : second], values[second - SEQ : third])


@dataclass(frozen=True)
class Fitted:
    """A forecaster, the seconds of its fit, its errors on the test part."""

    model: Any
    seconds: float
    errors: Errors


def fit(model: Forecaster, data: Parts, train: F64 | None = None) -> Fitted:
    """Fit on the training part (or a piece of it), choose on validation, judge on test.

    Errors are on channels scaled by the whole training part.
    """
    start = time.perf_counter()
    model.fit(data.train if train is None else train, validation=data.valid)
    seconds = time.perf_counter() - start
    mean, scale = spread(data.train)
    matrix, bias = model.to_matrix(), model.bias()
    if train is not None:
        level = (model.mean_ - mean) / scale  # what the forecaster adds where it was scaled otherwise
        if bias is not None:
            return Fitted(model, seconds, _by_channel(data.test, model, mean, scale, level))
    found = window_errors((data.test - mean) / scale, SEQ, model.horizon, matrix, bias)
    return Fitted(model, seconds, found)


def _by_channel(test: F64, model: Forecaster, mean: F64, scale: F64, level: F64) -> Errors:
    """Errors of a forecaster whose channels were scaled by another part: each has a bias of its own."""
    matrix, bias = model.to_matrix(), model.bias()
    assert bias is not None
    rest = 1 - matrix.sum(1)
    found = [
        window_errors(
            ((test - mean) / scale)[:, [at]],
            SEQ,
            model.horizon,
            matrix,
            bias * (model.scale_[at] / scale[at]) + level[at] * rest,
        )
        for at in range(test.shape[1])
    ]
    return Errors(
        float(np.mean([one.mse for one in found])),
        float(np.mean([one.mae for one in found])),
        found[0].windows,
    )


@functools.cache
def fitted(table: str, name: str, horizon: int) -> Fitted:
    """A forecaster of a table at a horizon, fitted once in a run."""
    kinds: dict[str, Callable[..., Forecaster]] = {
        kind.name: kind for kind in (MixLinear, SparseTSF, DLinear, SeasonalNaive)
    }
    return fit(kinds[name](horizon=horizon, seq=SEQ), parts(table))
