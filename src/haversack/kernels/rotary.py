"""Rotary position embedding (RoFormer, arXiv 2104.09864): pairs of a head's numbers turn by position times
frequency.

The frequencies, and the factor that some scalings put on cosine and sine, belong to the model; here they are
only applied. `half` pairs number i with i + r/2 (hub checkpoints), `interleaved` pairs 2i with 2i + 1; r, the
turned part of the head, is twice the width of the tables and may be less than the head.
"""

from __future__ import annotations

import numpy as np

from haversack.core.errors import not_allowed
from haversack.kernels._arguments import check_array, refuse, refuse_arrays
from haversack.kernels._matrix import Array
from haversack.kernels._native import native

STYLES = ("half", "interleaved")


def rope_table_twin(positions: Array, inverse_frequencies: Array, scale: float = 1.0) -> tuple[Array, Array]:
    """The definition of `rope_table`: angles, cosines and sines in f64, rounded once."""
    angles = positions[:, None].astype(np.float64) * inverse_frequencies[None, :].astype(np.float64)
    return (np.cos(angles) * scale).astype(np.float32), (np.sin(angles) * scale).astype(np.float32)


def rope_twin(x: Array, cos: Array, sin: Array, style: str = "half") -> Array:
    """The definition of `rope`; returns a new array."""
    turned = 2 * cos.shape[1]
    cos, sin = cos[:, None, :], sin[:, None, :]
    result = x.copy()
    if style == "half":
        one, two = slice(0, turned // 2), slice(turned // 2, turned)
    else:
        one, two = slice(0, turned, 2), slice(1, turned, 2)
    result[..., one] = x[..., one] * cos - x[..., two] * sin
    result[..., two] = x[..., two] * cos + x[..., one] * sin
    return result


def rope_table(positions: Array, inverse_frequencies: Array, scale: float = 1.0) -> tuple[Array, Array]:
    """positions i32 or i64[n], inverse_frequencies f32 or f64[r/2] (radians a position) -> cos, sin f32[n,
    r/2], both times `scale`.

    Raises UserError for a shape or type that does not fit.
    """
    module = native()
    if module is not None:
        table = np.empty((2, np.size(positions), np.size(inverse_frequencies)), np.float32)
        if getattr(positions, "dtype", None) == np.int32:  # the kernel takes i64
            positions = positions.astype(np.int64)
        if module.rope_table(positions, inverse_frequencies, scale, table):
            return table[0], table[1]
    check_array("rope_table", "positions", positions, (None,), ("int32", "int64"))
    check_array("rope_table", "inverse_frequencies", inverse_frequencies, (None,), ("float32", "float64"))
    if module is not None:  # the kernel takes f64, and contiguous arrays
        wide = np.ascontiguousarray(positions, np.int64)
        if module.rope_table(wide, np.ascontiguousarray(inverse_frequencies, np.float64), scale, table):
            return table[0], table[1]
        refuse_arrays("rope_table")
    return rope_table_twin(positions, inverse_frequencies, scale)


def rope(x: Array, cos: Array, sin: Array, style: str = "half") -> Array:
    """Turns x f32[n, heads, d] in place by the tables cos, sin f32[n, r/2], r <= d; returns x.

    Raises UserError for a shape, type or style that does not fit.
    """
    module = native()
    if module is not None and style in STYLES and module.rope(x, cos, sin, style == "interleaved"):
        return x
    check_rope("rope", x, cos, sin, style)
    if module is not None:
        refuse_arrays("rope")
    x[...] = rope_twin(x, cos, sin, style)
    return x


def check_rope(op: str, x: Array, cos: Array, sin: Array, style: str) -> None:
    if style not in STYLES:
        raise not_allowed("style", style, STYLES)
    n, _, width = check_array(op, "x", x, (None, None, None)).shape
    check_array(op, "cos", cos, (n, None))
    check_array(op, "sin", sin, cos.shape)
    if not 1 <= cos.shape[1] <= width // 2:
        refuse(op, "cos", f"f32[{n}, r/2] with 2 <= r <= {width}", cos)
