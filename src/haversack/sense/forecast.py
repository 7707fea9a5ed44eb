"""Forecast a table of series: fit in seconds, backtest beside the baselines, plot, save a few hundred bytes.

The forecaster is MixLinear (models/series/mixlinear.py); SparseTSF, DLinear and the last period repeated are
its baselines, fitted by the same solver with ridges chosen on the same validation part. Nothing is chosen on
the test part; the errors on it are of every window, on channels scaled by their training part."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError, not_allowed
from haversack.core.progress import Progress
from haversack.formats.series_csv import Series
from haversack.formats.small_pack import SmallPack
from haversack.models.series._forecaster import Forecaster, detect_period
from haversack.models.series._saved import FORECASTERS, from_pack, to_pack
from haversack.sense._svg import Panel, picture, span

SYSTEM = 47

F64 = NDArray[np.float64]
SPLIT = (0.7, 0.1, 0.2)
PERIODS_BACK = 30
"""Periods in a window where nothing else is asked for and the table is long enough."""
SHOWN_CHANNELS = 8


@dataclass(frozen=True)
class Ask:
    """What is to be forecast and how; None is chosen from the table and reported."""

    horizon: int
    model: str = "mixlinear"
    seq: int | None = None
    period: int | None = None
    bins: int | None = None
    alpha: float | None = None
    split: tuple[float, float, float] = SPLIT
    compare: bool = True


@dataclass(frozen=True)
class Tested:
    """One forecaster in the backtest; `error` instead of figures where the table is too short for it."""

    name: str
    parameters: int
    mse: float
    mae: float
    windows: int
    seconds: float

    def record(self) -> dict[str, Any]:
        return dict(self.__dict__)


@dataclass
class Forecast:
    """What came of it: the fitted forecaster (on training and validation), `ahead` [horizon, channels] behind
    the table's end, the backtest."""

    ask: Ask
    series: Series
    model: Forecaster
    ahead: F64
    tested: list[Tested]
    rows: tuple[int, int, int]
    warnings: list[str] = field(default_factory=list)
    ridge: float | None = None


def plan_window(series: Series, ask: Ask) -> tuple[int, int, list[str]]:
    """(seq, period) of the window. Raises UserError where the table is too short for the horizon."""
    warnings = []
    period = ask.period
    if period is None:
        period = detect_period(series.values)
        if period == 1:
            warnings.append("no period was found in the table; give --period if it has one")
    rows = len(series.values)
    if period < 1 or ask.horizon < 1:
        name, value = ("period", period) if period < 1 else ("horizon", ask.horizon)
        raise UserError(
            f"{name}={value} is not supported (allowed 1 and more).", field=name, given=value, nearest=1
        )
    # Each part needs a window of its own ahead; the past of a window may lie in the part before.
    smallest_part = min(ask.split[1], ask.split[2])
    longest = int(rows * smallest_part) if smallest_part < 1 else int(smallest_part)
    if ask.horizon > longest:
        raise UserError(
            f"a horizon of {ask.horizon} steps is longer than the table allows: its validation or test part "
            f"has {longest} of {rows} rows; use --horizon {max(1, longest)} or a longer table.",
            field="horizon",
            given=ask.horizon,
            nearest=max(1, longest),
        )
    training = part_rows(rows, ask.split)[0]
    if ask.seq is not None:
        return ask.seq, period, warnings
    room = max(1, (training - ask.horizon) // 2 // period)
    if training - ask.horizon < 2 * period:
        raise UserError(
            f"the training part has {training} rows, too few for a horizon of {ask.horizon} and a period of "
            f"{period}; use a longer table, a shorter horizon or --period 1.",
            field="horizon",
            given=ask.horizon,
            nearest=max(1, training - 2 * period),
        )
    return min(PERIODS_BACK, room) * period, period, warnings


def part_rows(rows: int, split: tuple[float, float, float]) -> tuple[int, int, int]:
    """Rows where training, validation and test end; shares of the table, or rows where they are 1 and more.

    Raises UserError for parts that are empty or more than there is.
    """
    if all(part >= 1 for part in split):
        ends = tuple(int(sum(split[: at + 1])) for at in range(3))
    else:
        if any(not 0 < part < 1 for part in split) or sum(split) > 1 + 1e-9:
            raise UserError(
                f"a split of {', '.join(f'{part:g}' for part in split)} is not possible: give three shares "
                "that add up to 1 at most, or three counts of rows.",
                field="split",
                given=list(split),
                nearest=list(SPLIT),
            )
        first = int(rows * split[0])
        last = rows if abs(sum(split) - 1) < 1e-9 else int(rows * sum(split))
        ends = (first, int(rows * (split[0] + split[1]) + 1e-9), last)
    if ends[2] > rows or ends[0] < 1 or not ends[0] < ends[1] < ends[2]:
        raise UserError(
            f"a split that ends at row {ends[2]} does not fit a table of {rows} rows.",
            field="split",
            given=list(split),
            nearest=list(SPLIT),
        )
    return ends[0], ends[1], ends[2]


def make(name: str, horizon: int, seq: int, period: int, ask: Ask) -> Forecaster:
    """A forecaster by its name. Raises UserError for an unknown one."""
    if name not in FORECASTERS:
        raise not_allowed("model", name, tuple(FORECASTERS))
    kind = FORECASTERS[name]
    settings: dict[str, Any] = {"horizon": horizon, "seq": seq}
    if name != "dlinear":
        settings["period"] = period
    if name == "mixlinear":
        settings |= {"bins": ask.bins, "alpha": ask.alpha}
    return kind(**settings)


def forecast(series: Series, ask: Ask, bar: Progress | None = None) -> Forecast:
    """Fit, backtest and forecast. Raises UserError for what cannot be (see plan_window and the
    forecasters)."""
    seq, period, warnings = plan_window(series, ask)
    warnings = [*series.warnings, *warnings]
    values = series.values
    train, valid, test = part_rows(len(values), ask.split)
    names = [ask.model, *(name for name in FORECASTERS if ask.compare and name != ask.model)]
    tested, chosen = [], None
    for name in names:
        model = make(name, ask.horizon, seq, period, ask)
        start = time.perf_counter()
        model.fit(values[:train], validation=values[max(0, train - seq) : valid])
        seconds = time.perf_counter() - start
        found = model.errors(values[max(0, valid - seq) : test])
        tested.append(Tested(name, model.count(), found.mse, found.mae, found.windows, round(seconds, 3)))
        chosen = chosen or model
        if bar is not None:
            bar.advance(label=f"backtest: {name}")
    assert chosen is not None
    naive = next((one for one in tested if one.name == "seasonal-naive"), None)
    if naive is not None and naive.mse < tested[0].mse:
        warnings.append("the last period repeated does better on the test part than the forecaster")
    ahead = chosen.predict(values)
    done = Forecast(ask, series, chosen, ahead, tested, (train, valid, test), warnings)
    done.ridge = getattr(chosen, "ridge_", None)
    return done


def apply_pack(path: Path, series: Series) -> tuple[Forecaster, F64]:
    """The forecast behind the table's end by a saved forecaster. Raises UserError for a table of another
    step, and for one shorter than the window."""
    model, step = from_pack(SmallPack.read(path), path)
    if step is not None and abs(step - series.step) > 1e-6 * step:
        raise UserError(
            f"the table has a step of {series.step:g} and {path} was fitted to one of {step:g}; bring the "
            "table to that step.",
            field="table",
            given=series.step,
            nearest=step,
        )
    if len(series.values) < model.seq:
        raise UserError(
            f"the table has {len(series.values)} rows and this forecaster looks back over {model.seq}; give "
            "at least as many.",
            field="table",
            given=len(series.values),
            nearest=model.seq,
        )
    return model, model.predict(series.values)


def save(done: Forecast, path: Path, stored: str = "f2") -> int:
    """Write the forecaster as a pack of one file; returns its bytes."""
    return to_pack(done.model, step=done.series.step).write(path, stored)


def plot(series: Series, model: Forecaster, ahead: F64, tested: Sequence[Tested] = ()) -> bytes:
    """A picture of the table's end and what follows, one panel a channel (at most eight)."""
    shown = min(len(series.values), max(2 * model.horizon, model.seq // 2))
    past = series.values[-shown:]
    before = np.arange(-shown, 0, dtype=np.float64)
    after = np.arange(0, len(ahead), dtype=np.float64)
    panels = []
    for at, name in enumerate(series.channels[:SHOWN_CHANNELS]):
        panel = Panel(
            name,
            height=170,
            x_label="steps from the last row",
            x_range=(float(-shown), float(len(ahead))),
            y_range=span(past[:, at], ahead[:, at]),
        )
        panel.band(0, len(ahead), "grid")
        panel.line(before, past[:, at], "ink", "measured")
        panel.line(after, ahead[:, at], "two", "forecast")
        panels.append(panel)
    note = f"{model.name}, {model.count()} learned numbers"
    if tested:
        note += f"; on the test part: MSE {tested[0].mse:.4f}, MAE {tested[0].mae:.4f} (channels scaled)"
    return picture(panels, note=note)
