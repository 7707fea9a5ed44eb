"""Perplexity of held-out text: all ways of making the same model W8A8 and W4A8, static, in one run.

All ways are calibrated on the same pieces of the training text and differ in nothing but what they learn:
nearest (round to nearest), SmoothQuant (norm pairs as in its paper, or all pairs), layer-wise (transforms and
clipping of one block after the other; its ranges are calibrated again afterwards where that loses less) and
MobileQuant. The rates of both learned ways were chosen at W4A8 on other pieces of the training text, each out
of the same choices; they are far above the paper's, which takes 160 times as many steps. Ablations leave out
one part and keep the rest.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench.mobilequant._bench import bench
from haversack.bench.mobilequant._models import perplexity, pieces, plain, text, with_outliers

if TYPE_CHECKING:
    from haversack.shrink.precision._mobilequant_model import QuantizedModel
    from haversack.shrink.precision.mobilequant_torch import Recipe

CALIBRATION, EVALUATION = 384, 128
EPOCHS, BATCH = 4, 4


def recipes(bits: int) -> dict[str, Recipe]:
    """The ways by name."""
    from haversack.shrink.precision.mobilequant_torch import Rates, Recipe

    learned = Recipe(bits=bits, epochs=EPOCHS, batch=BATCH, checkpointed=False, rates=Rates(1e-2, 3e-1, 3e-3))
    return {
        "nearest": Recipe(bits=bits, mode="nearest"),
        "SmoothQuant, norm pairs": Recipe(bits=bits, mode="smoothed", pairs=("norm",)),
        "SmoothQuant, all pairs": Recipe(bits=bits, mode="smoothed"),
        "layer-wise": replace(learned, mode="layerwise", ranges=False, rates=Rates(1e-2, 1e-1)),
        "MobileQuant": learned,
        "without ranges": replace(learned, ranges=False),
        "without up to down": replace(learned, pairs=("norm", "linear")),
        "8 bits everywhere": replace(learned, full=True),
    }


@functools.cache
def outlying() -> tuple[Any, dict[str, Any]]:
    """The model with outliers."""
    architecture, tensors = plain()
    return architecture, with_outliers(architecture, tensors)


@functools.cache
def made(bits: int, name: str) -> QuantizedModel:
    """The model made in one way."""
    from haversack.shrink.precision.mobilequant_torch import quantize

    architecture, tensors = outlying()
    return quantize(
        architecture, tensors, pieces(text()[0], CALIBRATION, seed=1)[:, :-1], recipes(bits)[name]
    )


def held_out(count: int = EVALUATION, seed: int = 0) -> Any:
    """Pieces of the held-out text, one token longer than what is read."""
    return pieces(text()[1], count, seed=seed)


@functools.cache
def simulated(bits: int, name: str) -> float:
    """Perplexity of the model made in one way, simulated."""
    from haversack.shrink.precision.mobilequant_torch import simulate

    texts = held_out()
    return perplexity(simulate(made(bits, name), texts[:, :-1]), texts[:, 1:])


def float_logits(tensors: Any, texts: Any) -> Any:
    """Logits of the float model."""
    import torch

    from haversack.shrink.precision.mobilequant_torch import logits

    weights = {name: torch.from_numpy(values) for name, values in tensors.items()}
    return logits(outlying()[0], weights, texts)


@functools.cache
def float_perplexity() -> float:
    """Perplexity of the float model with outliers."""
    texts = held_out()
    return perplexity(float_logits(outlying()[1], texts[:, :-1]), texts[:, 1:])


@bench.measure(
    Row(
        "outliers-exact",
        "outliers leave what the float model computes: largest difference of logits over the largest logit",
        "share",
        "quality",
        Bar("<=", 1e-5),
        judged="ours",
    ),
    seconds=330,
)
def exact(run: Run) -> Outcomes:
    texts = held_out(16)[:, :-1]
    one, two = float_logits(plain()[1], texts), float_logits(outlying()[1], texts)
    note = "2 of 128 channels of each norm times 30 to 80, the columns after them divided"
    return {"outliers-exact": Outcome.single(np.abs(one - two).max() / np.abs(one).max(), note=note)}


def against_float(name: str, words: str, bits: int, bar: Bar | None = None) -> Row:
    return Row(
        f"w{bits}a8-{name}",
        f"perplexity of W{bits}A8 static, {words}, over the float model's",
        "perplexity",
        "quality",
        bar,
    )


WAYS = {
    "nearest": ("nearest", "round to nearest"),
    "smoothquant-norms": ("SmoothQuant, norm pairs", "SmoothQuant on the norm pairs"),
    "smoothquant-all": ("SmoothQuant, all pairs", "SmoothQuant on all pairs"),
    "layerwise": ("layer-wise", "transforms and clipping learned layer by layer"),
    "mobilequant": ("MobileQuant", "MobileQuant"),
}
BARS = {"w8a8-nearest": Bar(">=", 1.3), "w8a8-mobilequant": Bar("<=", 1.03)}


@bench.measure(
    *[
        against_float(id, words, bits, BARS.get(f"w{bits}a8-{id}"))
        for bits in (8, 4)
        for id, (_, words) in WAYS.items()
    ],
    against_float("full", "MobileQuant with 8 bits in softmax, norms and residual too", 8),
    Row(
        "w4a8-layerwise-order",
        "at W4A8 layer-wise learning loses no more than SmoothQuant (all pairs)",
        "perplexity",
        "quality",
        Bar("<=", 1.0),
    ),
    Row(
        "w4a8-mobilequant-order",
        "at W4A8 MobileQuant loses no more than layer-wise learning",
        "perplexity",
        "quality",
        Bar("<=", 1.0),
    ),
    Row(
        "w4a8-gap",
        "share of the gap from SmoothQuant (all pairs) to the float model that MobileQuant closes at W4A8",
        "share",
        "quality",
        Bar(">=", 0.5),
        judged="ours",
    ),
    Row(
        "w4a8-gap-norms",
        "share of the gap from SmoothQuant (its norm pairs) to float that MobileQuant closes at W4A8",
        "share",
        "quality",
        Bar(">=", 0.5),
        judged="ours",
    ),
    Row(
        "w8a8-gap",
        "share of the gap from SmoothQuant (its norm pairs) to float that MobileQuant closes at W8A8",
        "share",
        "quality",
        Bar(">=", 0.5),
        judged="ours",
    ),
    Row(
        "w4a8-without-ranges",
        "at W4A8 MobileQuant without learned ranges is worse",
        "perplexity",
        "quality",
        Bar(">=", 1.0),
    ),
    Row(
        "w4a8-without-gate-pair",
        "at W4A8 MobileQuant without the pair up -> down is worse",
        "perplexity",
        "quality",
        Bar(">=", 1.0),
    ),
    seconds=600,
)
def ways(run: Run) -> Outcomes:
    exact_one = float_perplexity()
    found: dict[str, Outcome] = {}
    for bits in (8, 4):
        for id, (name, _) in WAYS.items():
            found[f"w{bits}a8-{id}"] = Outcome.single(
                simulated(bits, name), exact_one, name=name, against="float"
            )
    found["w8a8-full"] = Outcome.single(
        simulated(8, "8 bits everywhere"), exact_one, name="8 bits everywhere", against="float"
    )
    ours, layered, smoothed = (
        simulated(4, name) for name in ("MobileQuant", "layer-wise", "SmoothQuant, all pairs")
    )
    found["w4a8-layerwise-order"] = Outcome.single(
        layered, smoothed, name="layer-wise", against="SmoothQuant, all pairs"
    )
    found["w4a8-mobilequant-order"] = Outcome.single(ours, layered, name="MobileQuant", against="layer-wise")
    found["w4a8-gap"] = Outcome.single((smoothed - ours) / (smoothed - exact_one))
    for id, bits in (("w4a8-gap-norms", 4), ("w8a8-gap", 8)):
        norms = simulated(bits, "SmoothQuant, norm pairs")
        found[id] = Outcome.single((norms - simulated(bits, "MobileQuant")) / (norms - exact_one))
    for id, name in (("ranges", "without ranges"), ("gate-pair", "without up to down")):
        found[f"w4a8-without-{id}"] = Outcome.single(
            simulated(4, name), ours, name=name, against="MobileQuant"
        )
    return found
