"""Seconds to fit, and the latency of one forecast of seven channels."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import MIN_PAIRS, Bar, Outcome, Outcomes, Row, Side, Unavailable
from haversack.bench.mixlinear._bench import HORIZONS, SEQ, bench, parts
from haversack.models.series.mixlinear import MixLinear
from haversack.models.series.sparsetsf import SparseTSF, folded_forward

CALLS = 40


@bench.measure(
    *[
        Row(
            f"fit-{horizon}",
            f"fitted and its ridge chosen in less than ten seconds, {horizon} hours ahead",
            "s",
            "time",
            Bar("<=", 10.0),
            judged="ours",
        )
        for horizon in HORIZONS
    ],
    seconds=300,
)
def fitting(run: Run) -> Outcomes:
    data = parts("ETTh1")
    found = {}
    for horizon in HORIZONS:

        def one(kind: Any, horizon: int = horizon) -> float:
            start = time.perf_counter()
            kind(horizon).fit(data.train, validation=data.valid)
            return time.perf_counter() - start

        taken = run.interleave({"mixlinear": lambda: one(MixLinear), "sparsetsf": lambda: one(SparseTSF)})
        found[f"fit-{horizon}"] = Outcome.of(taken, ours="mixlinear", baseline="sparsetsf")
    return found


@bench.measure(
    Row(
        "latency",
        "a forecast of one window is no slower than SparseTSF's",
        "us",
        "time",
        Bar("<=", 1.0),
        published="up to 3.2x faster than other forecasters",
        quick=True,
    ),
    Row(
        "latency-factors",
        "the same, path by path through the factors as in the paper, not multiplied out",
        "us",
        "time",
        published="up to 3.2x faster than other forecasters",
    ),
    Row(
        "latency-patches",
        "a forecast of one window takes a tenth of a small transformer's over patches",
        "us",
        "time",
        Bar("<=", 0.1),
    ),
    seconds=15,
    quick_seconds=8,
)
def latency(run: Run) -> Outcomes:
    random = np.random.default_rng(run.seed)
    window = random.standard_normal((1, SEQ, 7))
    ours, other = MixLinear(96), SparseTSF(96)
    ours._check()
    ours._keep(random.standard_normal(25), random.standard_normal(ours._map().size))
    between = ours.period_map()
    other.kernel_, other.map_ = ours.kernel_, random.standard_normal(between.shape)
    sides: dict[str, Callable[[], Any]] = {
        "mixlinear": lambda: folded_forward(window, ours.kernel_, between, 96),
        "sparsetsf": lambda: other.forward(window),
    }
    if not run.quick:
        sides["factors"] = lambda: ours.forward(window)
        sides["patches"] = _patches(window)
    for side in sides.values():
        side()
    taken = run.interleave({name: _timed(side) for name, side in sides.items()}, 3 * MIN_PAIRS)
    found: dict[str, Outcome | Unavailable] = {
        "latency": Outcome.of(
            taken,
            ours="mixlinear",
            baseline="sparsetsf",
            note="both are a kernel and one map of the same size when they run: equal work",
        )
    }
    if not run.quick:
        found["latency-factors"] = Outcome(
            Side("factors", tuple(taken["factors"])), Side("map", tuple(taken["mixlinear"]))
        )
        found["latency-patches"] = Outcome.of(taken, ours="mixlinear", baseline="patches")
    return found


def _timed(call: Callable[[], Any]) -> Callable[[], float]:
    def once() -> float:
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        return (time.perf_counter() - start) / CALLS * 1e6

    return once


def _patches(window: Any) -> Callable[[], Any]:
    """A transformer over patches of 16 steps every 8, three layers of width 16, one head a horizon."""
    try:
        import torch
    except ImportError:
        raise Unavailable("PyTorch is not installed; run: pip install 'haversack[workshop]'") from None
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(16, 4, 128, batch_first=True)
    network = torch.nn.ModuleDict(
        {
            "embed": torch.nn.Linear(16, 16),
            "encoder": torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False),
            "head": torch.nn.Linear(89 * 16, 96),
        }
    ).eval()
    series = torch.tensor(window[0].T, dtype=torch.float32)

    def once() -> Any:
        with torch.inference_mode():
            patches = series.unfold(1, 16, 8)
            hidden = network["encoder"](network["embed"](patches))
            return network["head"](hidden.flatten(1))

    return once
