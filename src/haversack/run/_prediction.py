"""Which experts the next layer will choose, guessed before its router has run.

`paths` looks up what followed the choices of the two layers before (run/_paths.py); `gate` applies the next
layer's router to what this layer's router was given; `none` does not guess. A router that runs before
attention (SmallThinker) needs no guess: it announces its choice itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from haversack.run._paths import Profile

F32 = npt.NDArray[np.float32]
PREDICTIONS = ("paths", "gate", "none")
Gate = Callable[[int, F32], F32]
"""Scores f32 [experts] of the router of a layer, for an input f32 [width] of the layer before."""


class Predictor(Protocol):
    """Guesses for one token after the other; layers count those that have experts."""

    def chose(self, layer: int, experts: Sequence[int], x: F32 | None = None) -> None:
        """The last token's router of `layer` chose `experts`, the best first, seeing `x` f32 [width]."""

    def likely(self, layer: int) -> list[int]:
        """Experts that `layer`, the one after the last that chose, may choose, the likeliest first."""


class NoGuess:
    """Guesses nothing: experts are loaded when they are chosen."""

    def chose(self, layer: int, experts: Sequence[int], x: F32 | None = None) -> None:
        """See Predictor."""

    def likely(self, layer: int) -> list[int]:
        """See Predictor."""
        return []


class Paths:
    """What followed the same choices in calibration text."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self._before: list[Sequence[int]] = []

    def chose(self, layer: int, experts: Sequence[int], x: F32 | None = None) -> None:
        """See Predictor."""
        if layer == self.profile.first:
            self._before = []
        self._before = [*self._before[-1:], experts]

    def likely(self, layer: int) -> list[int]:
        """See Predictor; experts that never followed are left out."""
        chances = self.profile.chances(layer, self._before)
        return [int(e) for e in np.argsort(-chances, kind="stable") if chances[e] > 0]


class GateAhead:
    """What the next layer's router says of this layer's input, which changes little from layer to layer."""

    def __init__(self, gate: Gate, most: int) -> None:
        self._gate = gate
        self._most = most
        self._seen: F32 | None = None
        self._layer = -1

    def chose(self, layer: int, experts: Sequence[int], x: F32 | None = None) -> None:
        """See Predictor."""
        self._layer, self._seen = layer, x

    def likely(self, layer: int) -> list[int]:
        """See Predictor; nothing of the first layer, which sees another token."""
        if self._seen is None or layer != self._layer + 1:
            return []
        scores = self._gate(layer, self._seen)
        return [int(e) for e in np.argsort(-scores, kind="stable")[: self._most]]
