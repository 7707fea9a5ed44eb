"""Arithmetic of int8 networks, exactly: products, scales in floats and in fixed point, rounding.

Sources: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference" (2018) and the reference kernels of LiteRT, whose results `fixed` reproduces bit for bit: a scale
is a 31-bit multiplier and a shift, the product is rounded twice (to 32 bits, halves up; by the shift, halves
away from zero). `float` multiplies the sum with a 32-bit scale and rounds to nearest, halves to
even. `none` does not round at all: the function that gradients belong to.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
Rounding = Literal["float", "fixed", "none"]

EXACT = 1 << 24
"""Sums of integers below this are exact in 32-bit floats, whatever their order."""


def multiplier(scale: float) -> tuple[int, int]:
    """(m, shift) with scale = m / 2^31 * 2^shift, m in [2^30, 2^31); m = 0 for a scale of nothing."""
    if scale == 0.0:
        return 0, 0
    share, shift = math.frexp(scale)
    m = math.floor(share * (1 << 31) + 0.5)
    if m == 1 << 31:
        m, shift = m // 2, shift + 1
    return (0, 0) if shift < -31 else (m, shift)


def multipliers(scales: F64) -> tuple[I64, I64]:
    """`multiplier` of each scale."""
    found = [multiplier(float(each)) for each in scales]
    return np.array([m for m, _ in found], np.int64), np.array([s for _, s in found], np.int64)


def doubling_high(x: I64, m: I64 | int) -> I64:
    """round(x m / 2^31), halves up, within 32 bits."""
    product = x * np.int64(m) if isinstance(m, int) else x * m
    nudge = np.where(product >= 0, np.int64(1 << 30), np.int64(1 - (1 << 30)))
    total = product + nudge
    found = np.where(total >= 0, total >> 31, -((-total) >> 31))
    return np.clip(found, -(1 << 31), (1 << 31) - 1)


def shifted_right(x: I64, by: I64 | int) -> I64:
    """round(x / 2^by), halves away from zero."""
    count = np.asarray(by, np.int64)
    mask = (np.int64(1) << count) - 1
    threshold = (mask >> 1) + (x < 0)
    return (x >> count) + ((x & mask) > threshold)


def scaled_fixed(x: Array, m: I64 | int, shift: I64 | int) -> I64:
    """`x` times m / 2^31 * 2^shift, as the device computes it; m and shift one, or one for each channel."""
    by = np.asarray(shift, np.int64)
    left, right = np.maximum(by, 0), np.maximum(-by, 0)
    lifted = x.astype(np.int64) << left
    return shifted_right(doubling_high(lifted, m), right)


def scaled_once(x: Array, m: I64 | int, shift: I64 | int) -> I64:
    """`x` times m / 2^31 * 2^shift, rounded once, halves up: LiteRT's way for dense layers."""
    by = 31 - np.asarray(shift, np.int64)
    nudge = np.where(by > 0, np.int64(1) << np.maximum(by - 1, 0), np.int64(0))
    found: I64 = (x.astype(np.int64) * np.asarray(m, np.int64) + nudge) >> by
    return found


def divided(total: I64, count: Array | int) -> I64:
    """total / count, halves away from zero, as C divides."""
    n = np.asarray(count, np.int64)
    return np.where(total > 0, (total + n // 2) // n, -((-total + n // 2) // n))


def requantized(
    total: Array,
    scales: F64,
    zero: int,
    low: float,
    high: float,
    rounding: Rounding,
    inside: bool,
    once: bool = False,
) -> tuple[Array, Array | None]:
    """clamp(round(total * scales) + zero) as i8 (f64 for `none`), and which were inside the bounds, if asked.

    `total` [..., channels] are integers (f64 for `none`), `scales` f64 [channels] or [1]; `once`: fixed point
    rounds once instead of twice.
    """
    lowest, highest = max(low, -128.0), min(high, 127.0)
    if rounding == "fixed":
        scaled = scaled_once if once else scaled_fixed
        codes: Array = scaled(total, *multipliers(scales)) + zero
    elif rounding == "float":
        codes = total.astype(np.float32)
        codes *= scales.astype(np.float32)
        np.rint(codes, out=codes)
        codes += np.float32(zero)
    else:
        codes = total * scales + zero
    mask = (codes >= lowest) & (codes <= highest) if inside else None
    codes = np.clip(codes, lowest, highest)
    return (codes if rounding == "none" else codes.astype(np.int8)), mask


def product(rows: Array, matrix: Array, span: int) -> Array:
    """rows [n, k] x matrix [outputs, k]^T, exactly: f32 where no sum can leave what f32 holds, else f64.

    `span` bounds the size of the numbers in `rows`; numbers that are not integers are taken in f64.
    """
    if rows.dtype == np.float64 or matrix.dtype == np.float64:
        wide: Array = rows.astype(np.float64, copy=False) @ matrix.astype(np.float64, copy=False).T
        return wide
    largest = float(np.abs(matrix, dtype=np.float32).sum(axis=1).max(initial=0)) * span
    kind: Any = np.float32 if largest < EXACT else np.float64
    found: Array = rows.astype(kind, copy=False) @ matrix.astype(kind).T
    return found


def with_bias(total: Array, bias: Array | None) -> Array:
    """total + bias as i32 where both are integers, f64 where one is not."""
    if bias is not None and not np.issubdtype(bias.dtype, np.integer):
        return total.astype(np.float64) + bias
    whole = total.astype(np.int32)
    if bias is not None:
        whole += bias
    return whole


def with_headroom(bias: I32, weight: Array, outputs_axis: int) -> I32:
    """`bias` [outputs] moved off the ends of 32 bits by what products with 8-bit numbers can add, so that
    no sum overflows. Biases of dead channels (scales near 1e-9) lie at the ends."""
    axes = tuple(axis for axis in range(weight.ndim) if axis != outputs_axis)
    room = np.abs(weight.astype(np.int64)).sum(axis=axes) * 255
    limit = ((1 << 31) - 1024 - room) // 256 * 256  # whole numbers of f32, too
    return np.clip(bias.astype(np.int64), -limit, limit).astype(np.int32)
