"""Forecasts: ETTh1's oil temperature and a wave whose amplitude is modulated, beside LSTM-32 and DLinear."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench.cura._bench import bench, torch_of
from haversack.core._datasets import local_path
from haversack.formats.series_csv import read_series
from haversack.models.series import CuraRegressor, DLinear
from haversack.models.series._cura_fronts import window_features
from haversack.models.series.cura import Design

F64 = NDArray[np.float64]
SEQ, HORIZON, LAGS = 48, 12, (1, 2, 3, 12, 24, 48)
NAMES = ("etth1-ot", "modulated")
INPUTS = 6 + len(LAGS)
SIZES, RATES = ((4, 1), (6, 1), (8, 1), (8, 2)), (3e-3, 1e-2)
"""Width and cells of CURA, learning rates of the LSTM: chosen on the last fifth of training."""


def series(name: str) -> F64:
    """2,400 values, scaled by the first 1,600."""
    if name == "modulated":
        at = np.arange(2400)
        random = np.random.default_rng(0)
        values = (1 + 0.6 * np.sin(2 * np.pi * at / 190)) * np.sin(2 * np.pi * at / 24)
        values = values + 0.05 * random.standard_normal(2400)
    else:
        path = local_path("etth1")
        if path is None:
            raise Unavailable("ETTh1 is not at hand; let HAVERSACK_DATA name a folder with series/ETTh1.csv")
        values = read_series(path, channels=["OT"]).values[:2400, 0]
    return np.asarray((values - values[:1600].mean()) / values[:1600].std())


def windows(values: F64) -> tuple[F64, F64]:
    """Windows to learn from (with the fifth that is held out at random) and to test on."""
    made = np.lib.stride_tricks.sliding_window_view(values, SEQ + HORIZON)
    return made[: 1600 - SEQ - HORIZON], made[1600:]


def windows_held_out(train: F64) -> tuple[F64, F64]:
    """The first windows of training and the last fifth, which share no value to forecast."""
    cut = int(0.8 * len(train))
    return train[: cut - HORIZON], train[cut:]


def missed(made: F64, test: F64) -> float:
    """Mean absolute error."""
    return float(np.abs(made - test[:, SEQ:]).mean())


def cura(train: F64, test: F64, size: tuple[int, int]) -> tuple[F64, int]:
    """(forecasts, learned numbers) of CURA on the ends of RC filters and seasonal lags."""
    x, mean = window_features(train[:, :SEQ], LAGS)
    other, level = window_features(test[:, :SEQ], LAGS)
    model = CuraRegressor(*size, steps=1000, restarts=3).fit(x, train[:, SEQ:] - mean[:, None])
    made: Any = model.predict(other)
    return np.asarray(made) + level[:, None], model.count()["learned"]


def lstm(train: F64, test: F64, rate: float = 1e-2, steps: int = 300) -> tuple[F64, int]:
    """(forecasts, numbers) of an LSTM of 32 units with a linear head; the window's mean taken away."""
    torch = torch_of()
    torch.manual_seed(0)
    mean = train[:, :SEQ].mean(1, keepdims=True)
    x = torch.tensor((train[:, :SEQ] - mean)[..., None], dtype=torch.float32)
    y = torch.tensor(train[:, SEQ:] - mean, dtype=torch.float32)
    cell, head = torch.nn.LSTM(1, 32, batch_first=True), torch.nn.Linear(32, HORIZON)
    weights = [*cell.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=1e-4)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(step))[:256]
        optimizer.zero_grad()
        ((head(cell(x[rows])[0][:, -1]) - y[rows]) ** 2).mean().backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        plan.step()
    level = test[:, :SEQ].mean(1, keepdims=True)
    with torch.no_grad():
        rows = torch.tensor((test[:, :SEQ] - level)[..., None], dtype=torch.float32)
        made = head(cell(rows)[0][:, -1]).numpy()
    return made + level, sum(one.numel() for one in weights)


@bench.measure(
    *[
        row
        for name in NAMES
        for row in (
            Row(
                f"{name}-lstm",
                f"{name}, {HORIZON} steps ahead: mean absolute error over LSTM-32's, with fewer numbers",
                "MAE, scaled",
                "quality",
                Bar("<=", 0.8),
                published="MAE 1.6x lower",
            ),
            Row(
                f"{name}-dlinear",
                f"{name}, {HORIZON} steps ahead: mean absolute error over DLinear's, with fewer numbers",
                "MAE, scaled",
                "quality",
                Bar("<=", 1.0),
            ),
        )
    ],
    seconds=200,
)
def forecasts(run: Run) -> Outcomes:
    found: dict[str, Outcome | Unavailable] = {}
    for name in NAMES:
        try:
            values = series(name)
        except Unavailable as reason:
            found |= {f"{name}-{other}": reason for other in ("lstm", "dlinear")}
            continue
        train, test = windows(values)
        dense = DLinear(HORIZON, SEQ).fit(values[:1600])
        early, late = windows_held_out(train)
        sizes = [size for size in SIZES if Design(INPUTS, HORIZON, *size).count() <= dense.count()]
        size = min(sizes, key=lambda one: missed(cura(early, late, one)[0], late))
        made, count = cura(train, test, size)
        ours = missed(made, test)
        rate = min(RATES, key=lambda one: missed(lstm(early, late, one)[0], late))
        recurrent, numbers = lstm(train, test, rate)
        linear = dense.predict(test[:, :SEQ, None])[..., 0]
        for against, theirs, other in (("lstm", recurrent, numbers), ("dlinear", linear, dense.count())):
            found[f"{name}-{against}"] = Outcome.single(
                ours,
                missed(theirs, test),
                name=f"CURA, {count} numbers",
                against=f"{against}, {other} numbers",
                note=f"sizes {sizes} and rates {RATES} of the LSTM tried on the last fifth of training",
            )
    return found
