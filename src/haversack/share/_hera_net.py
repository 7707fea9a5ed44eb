"""A small network over bags of hashed features, in numpy alone: one hidden layer, one number out.

    score(bag) = w . relu(b + sum of E[feature] / sqrt(features)) + c

It is the router (the score is a logit), the device's scorer of commands (a softmax over scores) and the
predictors of the baselines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from haversack.share._hera_features import DIMENSIONS

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
NAMES = ("embedding", "bias", "out", "offset")


@dataclass
class Packed:
    """Bags one behind the other: `features`, where each begins, and 1 / sqrt of its size."""

    features: I32
    starts: npt.NDArray[np.int64]
    scale: F32

    @classmethod
    def of(cls, bags: Sequence[I32]) -> Packed:
        """Bags of at least one feature each."""
        sizes = np.array([len(bag) for bag in bags], np.int64)
        starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
        return cls(np.concatenate(bags), starts, (1 / np.sqrt(sizes)).astype(np.float32))


class BagNet:
    """`parameters`: embedding [DIMENSIONS, hidden], bias [hidden], out [hidden], offset [1], all f32."""

    def __init__(self, parameters: dict[str, F32]) -> None:
        self.parameters = parameters

    @classmethod
    def new(cls, seed: int, hidden: int = 64) -> BagNet:
        """Drawn from `seed`; it says 0 of every bag."""
        draw = np.random.default_rng([seed, 39])
        return cls(
            {
                "embedding": draw.normal(0, 0.5, (DIMENSIONS, hidden)).astype(np.float32),
                "bias": np.zeros(hidden, np.float32),
                "out": np.zeros(hidden, np.float32),
                "offset": np.zeros(1, np.float32),
            }
        )

    def copy(self) -> BagNet:
        return BagNet({name: value.copy() for name, value in self.parameters.items()})

    def rows(self, used: I32) -> BagNet:
        """A copy for bags of the features `used` alone, each named by its place among them."""
        found = {name: value.copy() for name, value in self.parameters.items() if name != "embedding"}
        return BagNet({"embedding": self.parameters["embedding"][used], **found})

    def score(self, bag: I32) -> float:
        """Of one bag."""
        own = self.parameters
        hidden = own["embedding"][bag].sum(0) / np.float32(np.sqrt(len(bag))) + own["bias"]
        return float(np.maximum(hidden, 0) @ own["out"] + own["offset"][0])

    def scores(self, bags: Sequence[I32]) -> F32:
        """Of several bags, f32 [n]."""
        return self._forward(Packed.of(bags))[0]

    def _forward(self, packed: Packed) -> tuple[F32, F32]:
        own = self.parameters
        summed = np.add.reduceat(own["embedding"][packed.features], packed.starts, axis=0)
        hidden = summed * packed.scale[:, None] + own["bias"]
        scores: F32 = np.maximum(hidden, 0) @ own["out"] + own["offset"][0]
        return scores, hidden

    def gradients(self, packed: Packed, hidden: F32, wanted: F32) -> dict[str, F32]:
        """Of sum(wanted * scores) by every parameter; `hidden` as `_forward` gave it."""
        own = self.parameters
        below = (wanted[:, None] * own["out"]) * (hidden > 0)
        spread = np.repeat(
            below * packed.scale[:, None], np.diff(packed.starts, append=len(packed.features)), axis=0
        )
        order = np.argsort(packed.features, kind="stable")
        found, first = np.unique(packed.features[order], return_index=True)
        embedding = np.zeros_like(own["embedding"])
        embedding[found] = np.add.reduceat(spread[order], first, axis=0)
        return {
            "embedding": embedding,
            "bias": below.sum(0),
            "out": (np.maximum(hidden, 0) * wanted[:, None]).sum(0),
            "offset": wanted.sum(keepdims=True),
        }


Slope = Callable[[F32, npt.NDArray[np.int64]], F32]
"""(scores of a batch, its examples) -> d loss / d score."""


def fit(
    net: BagNet,
    examples: Sequence[Sequence[I32]],
    slope: Slope,
    *,
    epochs: int,
    rate: float,
    seed: int,
    batch: int = 64,
    decay: float = 1e-2,
    anchor: BagNet | None = None,
    hold: float = 0.0,
) -> None:
    """Learn by AdamW. An example is one bag or several (commands among which to choose); `slope` gets the
    scores of a batch one behind the other. With `anchor`, `hold` * ||theta - anchor||^2 is part of the
    loss. Features that no example has stay as they are."""
    draw = np.random.default_rng([seed, 40])
    used = np.unique(np.concatenate([bag for one in examples for bag in one]))
    places = [[np.searchsorted(used, bag).astype(np.int32) for bag in one] for one in examples]
    small, near = net.rows(used), None if anchor is None else anchor.rows(used)
    moments = {name: (np.zeros_like(value), np.zeros_like(value)) for name, value in small.parameters.items()}
    step = 0
    for _ in range(epochs):
        order = draw.permutation(len(examples))
        for begin in range(0, len(order), batch):
            chosen = order[begin : begin + batch]
            packed = Packed.of([bag for at in chosen for bag in places[at]])
            scores, hidden = small._forward(packed)
            found = small.gradients(packed, hidden, slope(scores, chosen))
            step += 1
            for name, value in small.parameters.items():
                gradient = found[name]
                if near is not None and hold > 0:
                    gradient = gradient + np.float32(2 * hold) * (value - near.parameters[name])
                first, second = moments[name]
                first += 0.1 * (gradient - first)
                second += 0.001 * (gradient * gradient - second)
                size = first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
                if near is None and name == "embedding":
                    size = size + decay * value
                value -= np.float32(rate) * size
    for name, value in small.parameters.items():
        net.parameters[name][used if name == "embedding" else ...] = value
