"""Uniform quantizers on floats: a grid of levels, the nearest level of a number, ranges that clip.

Affine, b bits: scale = (high - low) / (2^b - 1), zero = round(-low / scale), code = clip(round(x / scale) +
zero, 0, 2^b - 1). Symmetric: scale = max(-low, high) / (2^(b-1) - 1), code = clip(round(x / scale), -2^(b-1),
2^(b-1) - 1). Either way a level is (code - zero) * scale, and ties go to even.

Ranges are taken over the last axis, or over everything: what the last axis is decides the granularity (the
inputs of a weight's row: per channel; the features of a token: per token; `grouped` inputs: per group). These
are the formulas that learned methods repeat on tensors, with a straight-through `round`. Pure functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError

Array = npt.NDArray[Any]

SCALE_LIMITS = (1e-5, 1e6)
"""Between these a scale of activations is kept (system 08); weights' scales are as they come."""
SHRINKS = tuple(1.0 - i / 100 for i in range(80))
"""Shares of the full range that `clipped_range` tries, widest first."""
NORM = 2.4
"""The power of errors that it adds up."""


@dataclass(frozen=True)
class Grid:
    """Levels (code - `zero`) * `scale` for whole codes `low` to `high`; arrays that broadcast with numbers.

    A scale of 0 has the level 0 alone.
    """

    scale: Array
    zero: Array
    low: int
    high: int

    def codes(self, x: Array) -> Array:
        """The code of the level nearest to each of `x`, as whole floats of x's type."""
        ratio = np.divide(x, self.scale, out=np.zeros_like(x + self.scale), where=self.scale != 0)
        return np.clip(np.rint(ratio) + self.zero, self.low, self.high)

    def values(self, codes: Array) -> Array:
        """The levels of `codes`."""
        return (codes - self.zero) * self.scale

    def nearest(self, x: Array) -> Array:
        """The level nearest to each of `x`: quantized and back, which is what fake quantization is."""
        return self.values(self.codes(x))


def affine_grid(
    low: Array | float, high: Array | float, bits: int, limits: tuple[float, float] | None = None
) -> Grid:
    """The affine grid over the range `low` to `high`; `limits` bound its scale."""
    top = (1 << checked_bits(bits)) - 1
    scale = _limited((np.asarray(high) - np.asarray(low)) / top, limits)
    with np.errstate(divide="ignore", invalid="ignore"):
        zero = np.where(scale != 0, np.rint(-np.asarray(low) / scale), 0.0)
    return Grid(scale, zero, 0, top)


def symmetric_grid(
    low: Array | float, high: Array | float, bits: int, limits: tuple[float, float] | None = None
) -> Grid:
    """The grid around 0 whose largest code stands for the larger of -`low` and `high`."""
    top = (1 << (checked_bits(bits) - 1)) - 1
    scale = _limited(np.maximum(np.abs(low), np.abs(high)) / top, limits)
    return Grid(scale, np.zeros_like(scale), -top - 1, top)


def grid(low: Array | float, high: Array | float, bits: int, *, symmetric: bool) -> Grid:
    """The grid of either kind over a range."""
    return (symmetric_grid if symmetric else affine_grid)(low, high, bits)


def extent(x: Array, *, axis: int | None = -1, with_zero: bool = True) -> tuple[Array, Array]:
    """The smallest and largest of `x` along `axis` (None: of all), kept as an axis of 1.

    `with_zero` widens the range to hold 0, so that an affine grid has a level for it.
    """
    low, high = x.min(axis=axis, keepdims=True), x.max(axis=axis, keepdims=True)
    return (np.minimum(low, 0), np.maximum(high, 0)) if with_zero else (low, high)


def clipped_range(
    x: Array, bits: int, *, symmetric: bool, shrinks: tuple[float, ...] = SHRINKS, norm: float = NORM
) -> tuple[Array, Array]:
    """The range [..., 1] along the last axis of `x` whose grid has the least sum of |error|^norm: the full
    range times each of `shrinks` is tried."""
    low, high = extent(x)
    best_low, best_high = low, high
    least = np.full(low.shape, np.inf)
    for share in shrinks:
        tried = grid(low * share, high * share, bits, symmetric=symmetric)
        error = (np.abs(tried.nearest(x) - x) ** norm).sum(axis=-1, keepdims=True)
        better = error < least
        least = np.where(better, error, least)
        best_low, best_high = (
            np.where(better, low * share, best_low),
            np.where(better, high * share, best_high),
        )
    return best_low, best_high


def fake_quantized(
    x: Array, bits: int, *, symmetric: bool = False, axis: int | None = -1, clipped: bool = False
) -> Array:
    """`x` quantized to `bits` and back, its range taken along `axis` (None: one range for all).

    `clipped` searches the range for the least error (along the last axis only).
    """
    low, high = clipped_range(x, bits, symmetric=symmetric) if clipped else extent(x, axis=axis)
    return grid(low, high, bits, symmetric=symmetric).nearest(x)


def checked_bits(bits: int) -> int:
    """`bits`; UserError when there is no uniform grid of so many."""
    if not 2 <= bits <= 16:
        raise UserError(
            f"bits={bits} is no width of a uniform quantizer (allowed 2 to 16); use bits=8.",
            field="bits",
            given=bits,
            nearest=min(max(bits, 2), 16),
        )
    return bits


def _limited(scale: Array, limits: tuple[float, float] | None) -> Array:
    return scale if limits is None else np.clip(scale, *limits)
