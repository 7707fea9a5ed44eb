"""MixLinear with a part taken away, in eight bits, and on a tenth of the data."""

from __future__ import annotations

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench.mixlinear._bench import HORIZONS, SEQ, Fitted, bench, fit, fitted, parts
from haversack.models.series._forecaster import spread
from haversack.models.series._mixlinear_c import rounded, weight_nbytes
from haversack.models.series._moments import window_errors
from haversack.models.series.dlinear import DLinear
from haversack.models.series.mixlinear import MixLinear
from haversack.models.series.sparsetsf import SparseTSF

TENTH = 864


@bench.measure(
    *[
        Row(
            f"full-over-time-{horizon}",
            f"both paths are at least as good as the time path alone, {horizon} hours ahead",
            "MSE, channels scaled",
            "quality",
            Bar("<=", 1.0),
        )
        for horizon in HORIZONS
    ],
    Row(
        "frequency-only-720",
        "the frequency path alone is within 0.5 % of both, 720 hours ahead",
        "MSE, channels scaled",
        "quality",
        Bar("<=", 1.005),
    ),
    *[
        Row(
            f"rank-{horizon}",
            f"a frequency path of rank 1 is worse than one of rank 2, {horizon} hours ahead",
            "MSE, channels scaled",
            "quality",
            Bar(">=", 1.0),
        )
        for horizon in HORIZONS
    ],
    seconds=60,
)
def paths(run: Run) -> Outcomes:
    data = parts("ETTh1")
    found: dict[str, Outcome] = {}
    for horizon in HORIZONS:
        full = fitted("ETTh1", "mixlinear", horizon)
        time = fit(MixLinear(horizon, alpha=1.0), data)
        rank = fit(MixLinear(horizon, rank=1), data)
        found[f"full-over-time-{horizon}"] = Outcome.single(
            full.errors.mse, time.errors.mse, name="both", against="time alone", note=_learned(full, time)
        )
        found[f"rank-{horizon}"] = Outcome.single(
            rank.errors.mse, full.errors.mse, name="rank 1", against="rank 2", note=_learned(rank, full)
        )
    alone = fit(MixLinear(720, alpha=0.0), data).errors.mse
    found["frequency-only-720"] = Outcome.single(
        alone, fitted("ETTh1", "mixlinear", 720).errors.mse, name="frequency alone", against="both"
    )
    return found


def _learned(ours: Fitted, other: Fitted) -> str:
    """What both err by on the part that they were fitted to: there more numbers are never worse but for the
    ridge, and what they win may not last until the test part, eight months on."""
    errors = [one.model.moments_.error(one.model.to_matrix()) for one in (ours, other)]
    return (
        f"on the training part {errors[0]:.4f} and {errors[1]:.4f}; ridges {ours.model.ridge_:g} and "
        f"{other.model.ridge_:g}"
    )


@bench.measure(
    Row(
        "c-bytes-720",
        "constants of the C file, 720 hours ahead",
        "bytes",
        "bytes",
        Bar("<=", 1024),
        judged="ours",
    ),
    *[
        Row(
            f"int8-{horizon}",
            f"in eight bits the error is at most 1 % greater, {horizon} hours ahead",
            "MSE, channels scaled",
            "quality",
            Bar("<=", 1.01),
        )
        for horizon in HORIZONS
    ],
    seconds=60,
)
def eight_bits(run: Run) -> Outcomes:
    data = parts("ETTh1")
    mean, scale = spread(data.train)
    found: dict[str, Outcome] = {}
    for horizon in HORIZONS:
        full = fitted("ETTh1", "mixlinear", horizon)
        small = rounded(full.model)
        ours = window_errors((data.test - mean) / scale, SEQ, horizon, small.to_matrix()).mse
        found[f"int8-{horizon}"] = Outcome.single(ours, full.errors.mse, name="int8", against="f64")
        if horizon == 720:
            found["c-bytes-720"] = Outcome.single(weight_nbytes(full.model))
    return found


@bench.measure(
    *[
        Row(
            f"tenth-{horizon}-{name}",
            f"trained on a tenth of the data it beats {words}, {horizon} hours ahead",
            "MSE, channels scaled",
            "quality",
            Bar("<=", 0.95) if name == "dlinear" else None,
        )
        for horizon in (96, 192)
        for name, words in (("dlinear", "the dense linear map"), ("sparsetsf", "SparseTSF"))
    ],
    seconds=30,
)
def tenth(run: Run) -> Outcomes:
    data = parts("ETTh1")
    found = {}
    for horizon in (96, 192):
        rows = TENTH + max(0, SEQ + horizon + 24 - TENTH)
        train = data.train[-rows:]
        ours = fit(MixLinear(horizon), data, train).errors.mse
        note = f"the last {rows} rows of training; ridges chosen on the whole validation part for all"
        for model in (DLinear(horizon), SparseTSF(horizon)):
            other = fit(model, data, train).errors.mse
            found[f"tenth-{horizon}-{model.name}"] = Outcome.single(
                ours, other, against=model.name, note=note
            )
    return found
