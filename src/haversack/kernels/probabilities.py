"""Scores to probabilities, row by row.

A score of minus infinity has probability 0. A row with NaN, with plus infinity, or with minus infinity
alone has no probabilities and is refused.
"""

from __future__ import annotations

import numpy as np

from haversack.core.errors import UserError
from haversack.kernels._arguments import check_array, check_out, placed, refuse_arrays
from haversack.kernels._matrix import Array
from haversack.kernels._native import native


def softmax_twin(x: Array) -> Array:
    """The definition of `softmax`."""
    with np.errstate(over="ignore"):
        powers = np.exp(x - np.max(x, axis=-1, keepdims=True))
    result: Array = (powers / np.sum(powers, axis=-1, keepdims=True, dtype=np.float64)).astype(np.float32)
    return result


def log_softmax_twin(x: Array) -> Array:
    """The definition of `log_softmax`."""
    shifted = (x - np.max(x, axis=-1, keepdims=True)).astype(np.float64)
    result: Array = (shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))).astype(np.float32)
    return result


def softmax(x: Array, *, out: Array | None = None) -> Array:
    """x f32[n, m] -> probabilities f32[n, m], each row summing to 1; `out` may be `x`.

    Raises UserError for a shape or type that does not fit and for rows without probabilities.
    """
    module = native()
    if module is not None:
        out = np.empty(np.shape(x), np.float32) if out is None else out
        if module.softmax(x, out):
            return out
    _check("softmax", x, out)
    if module is not None:
        refuse_arrays("softmax")
    return placed(softmax_twin(x), out)


def log_softmax(x: Array, *, out: Array | None = None) -> Array:
    """x f32[n, m] -> natural logarithms of the probabilities, f32[n, m]; `out` may be `x`.

    Raises UserError for a shape or type that does not fit and for rows without probabilities.
    """
    module = native()
    if module is not None:
        out = np.empty(np.shape(x), np.float32) if out is None else out
        if module.log_softmax(x, out):
            return out
    _check("log_softmax", x, out)
    if module is not None:
        refuse_arrays("log_softmax")
    return placed(log_softmax_twin(x), out)


def _check(op: str, x: Array, out: Array | None) -> None:
    check_array(op, "x", x, (None, None))
    check_out(op, out, x.shape)
    if x.size == 0:
        return
    bad = ~np.isfinite(np.max(x, axis=-1))
    if bad.any():
        row = int(np.argmax(bad))
        raise UserError(f"{op}: row {row} of x holds NaN, infinity, or no finite score", field="x", given=row)
