"""Errors on the test part of the transformer tables, and how many numbers it takes."""

from __future__ import annotations

from collections.abc import Callable

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench.mixlinear._bench import HORIZONS, bench, fitted
from haversack.models.series.mixlinear import MixLinear
from haversack.models.series.sparsetsf import SparseTSF

BARS = {"sparsetsf": 1.05, "dlinear": 1.08, "seasonal-naive": 0.75}
WORDS = {"sparsetsf": "SparseTSF", "dlinear": "dense DLinear", "seasonal-naive": "the last day repeated"}


def rows(table: str, horizon: int) -> list[Row]:
    """The rows of a table at a horizon, one a baseline."""
    return [
        Row(
            f"{table.lower()}-{horizon}-{name}",
            f"mean square error on {table}, {horizon} hours ahead, at most {limit} times that of "
            f"{WORDS[name]}",
            "MSE, channels scaled",
            "quality",
            Bar("<=", limit),
            published="up to 16.2 % below SparseTSF" if name == "sparsetsf" else None,
            quick=table == "ETTh1" and horizon == 96,
        )
        for name, limit in BARS.items()
    ]


def measured(table: str, horizon: int) -> Callable[[Run], Outcomes]:
    """The function that measures them."""

    def measure(run: Run) -> Outcomes:
        ours = fitted(table, "mixlinear", horizon)
        out = {}
        for name in BARS:
            other = fitted(table, name, horizon)
            out[f"{table.lower()}-{horizon}-{name}"] = Outcome.single(
                ours.errors.mse,
                other.errors.mse,
                name=f"MixLinear, {ours.model.count()} numbers",
                against=f"{name}, {other.model.count()} numbers",
                note=f"MAE {ours.errors.mae:.4f} and {other.errors.mae:.4f}; {ours.errors.windows} windows, "
                f"ridge {ours.model.ridge_:g} and {other.model.ridge_:g} chosen on validation",
            )
        return out

    return measure


for _table in ("ETTh1", "ETTh2"):
    for _horizon in HORIZONS:
        bench.measure(*rows(_table, _horizon), seconds=12 if _horizon < 720 else 30, quick_seconds=10)(
            measured(_table, _horizon)
        )


@bench.measure(
    Row(
        "numbers-96",
        "learned numbers at 96 hours over SparseTSF's",
        "numbers",
        "bytes",
        Bar("<=", 0.55),
        published="45 to 176 numbers",
        quick=True,
    ),
    Row(
        "numbers-720",
        "learned numbers at 720 hours over SparseTSF's",
        "numbers",
        "bytes",
        Bar("<=", 0.16),
        published="45 to 176 numbers",
        quick=True,
    ),
    seconds=1,
    quick_seconds=1,
)
def numbers(run: Run) -> Outcomes:
    found = {}
    for horizon in (96, 720):
        ours, other = MixLinear(horizon).count(), SparseTSF(horizon).count()
        note = "a complex number counts once, as its authors count it"
        if horizon == 720:
            note += "; the specification's own counts, 195 and 925, are 0.21 of one another"
        found[f"numbers-{horizon}"] = Outcome.single(ours, other, against="SparseTSF", note=note)
    return found
