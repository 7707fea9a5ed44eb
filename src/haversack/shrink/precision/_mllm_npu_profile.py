"""Profiling for mllm-NPU: what calibration text sends through the float model, block after block."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError
from haversack.kernels import Matrix, matmul
from haversack.shrink._activations import Activations
from haversack.shrink._rounding import F32
from haversack.shrink._source import read_tensor
from haversack.shrink.precision.mllm_npu import HIGH, MllmNpu, Profile, Side, side_of, split

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
SHIFT = 15
BINS = 1 << (32 - SHIFT - 1)
"""A bin holds the magnitudes that agree in exponent and eight more bits: 0.4 % wide at most."""
CLIPS = 33
"""Grids that are tried for a side whose shadow is left out."""


class Magnitudes:
    """The magnitudes of all numbers seen, counted in bins, and the largest."""

    def __init__(self) -> None:
        self.counts: I64 = np.zeros(BINS, np.int64)
        self.largest = 0.0

    def add(self, x: F32) -> None:
        """See the numbers of x f32, any shape."""
        sizes = np.abs(np.ascontiguousarray(x, np.float32)).reshape(-1)
        self.largest = max(self.largest, float(sizes.max(initial=0.0)))
        self.counts += np.bincount(sizes.view(np.uint32) >> SHIFT, minlength=BINS)

    def passed_by(self, share: float) -> float:
        """The magnitude that at most the share `share` of the numbers pass: the upper end of its bin."""
        most = share * float(self.counts.sum())
        above = np.cumsum(self.counts[::-1])[::-1]  # numbers in this bin or a higher one
        passed = np.flatnonzero(above > most)
        if not len(passed):
            return self.largest
        ends = (np.array([passed[-1] + 1], np.uint32) << SHIFT).view(np.float32)
        return min(float(ends[0]), self.largest)

    def clipping(self, high: float) -> float:
        """The scale, between those of the magnitude `high` and of the largest, whose grid alone misses these
        numbers least: by the squares of what is clipped, and of rounding, even over a step."""
        if not 0 < high < self.largest:
            return self.largest / HIGH or 1.0
        edges = (np.arange(BINS, dtype=np.uint32) << SHIFT).view(np.float32)
        held = np.flatnonzero(self.counts)
        sizes, counts = edges[held].astype(np.float64), self.counts[held]
        scales = np.geomspace(high, self.largest, CLIPS) / HIGH
        errors = []
        for scale in scales:
            over = np.maximum(sizes - HIGH * scale, 0.0)
            errors.append(float((counts * np.where(over > 0, over**2, scale**2 / 12)).sum()))
        return float(scales[int(np.argmin(errors))])


@dataclass
class _Counts:
    inputs: dict[str, Magnitudes] = field(default_factory=dict)
    outputs: dict[str, Magnitudes] = field(default_factory=dict)


def profile_block(
    walk: Any, block: int, weights: Mapping[str, Any], states: Activations, method: MllmNpu
) -> dict[str, Profile]:
    """Matrix -> profile, of one block of the float model; `states` are then those behind it.

    Raises UserError, which names the matrix, for inputs that are not finite.
    """
    first = {name: group[0] for group in walk.products(block) for name in group}
    seen = _Counts()

    def look(name: str, x: F32) -> None:
        if not np.isfinite(x).all():
            raise UserError(
                f"calibration text gives inputs of {name} that are not finite; the model cannot be "
                "calibrated on it.",
                field="calibration",
                given=name,
            )
        if first[name] == name:
            seen.inputs.setdefault(name, Magnitudes()).add(x)
        seen.outputs.setdefault(name, Magnitudes()).add(matmul(x, weights[name]))

    def side(found: Magnitudes) -> Side:
        high = found.largest if method.sides == "clip" else found.passed_by(method.beyond)
        alone = found.clipping(high) if method.alone == "searched" else 0.0
        return side_of(found.largest, high, method.threshold, alone)

    for index in range(len(states)):
        walk.run(block, states.read(index), weights, look)
    sides = {name: side(found) for name, found in seen.inputs.items()}
    counts = {name: np.zeros(walk.shape(name)[1], np.int64) for name in sides}

    def count(name: str, x: F32) -> None:
        if name in sides and sides[name].mode == "shadow":
            counts[name] += (split(x, sides[name].scale)[1] != 0).sum(axis=0)

    for index in range(len(states)):
        states.write(index, walk.run(block, states.read(index), weights, count))
    return {
        name: Profile(sides[group], side(seen.outputs[name]), counts[group]) for name, group in first.items()
    }


def profile(source: Any, walk: Any, texts: I32, method: MllmNpu) -> dict[str, Profile]:
    """Matrix -> profile, of every matrix of every block, block after block."""
    found: dict[str, Profile] = {}
    pieces, length = texts.shape
    with Activations(pieces, length, walk.width, Path(tempfile.gettempdir())) as states:
        weights: dict[str, Any] = {name: Matrix.from_array(read_tensor(source, name)) for name in walk.first}
        for index, tokens in enumerate(texts):
            states.write(index, walk.embed(tokens, weights))
        for block in range(walk.blocks):
            weights = {name: read_tensor(source, name) for name in walk.names(block)}
            weights = {
                name: Matrix.from_array(values) if walk.is_matrix(name) else values
                for name, values in weights.items()
            }
            found |= profile_block(walk, block, weights, states, method)
    return found


def shares(profiles: Sequence[Profile]) -> tuple[float, float]:
    """Of the sides in the shadow: the mean share of their channels that are hot, and of their outliers that
    these hold."""
    found = [one for one in profiles if one.inputs.mode == "shadow" and one.channels.sum() > 0]
    if not found:
        return 0.0, 0.0
    hot = float(np.mean([len(one.hot) / len(one.channels) for one in found]))
    held = float(np.mean([one.channels[one.hot].sum() / one.channels.sum() for one in found]))
    return hot, held
