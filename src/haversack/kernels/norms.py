"""Normalisation of rows.

`rms_norm`: y = x / sqrt(mean(x^2) + eps) * (offset + weight), the norm of Llama-like decoders; `offset` 1
is the form whose weights are kept less one. `layer_norm`: y = (x - mean) / sqrt(variance + eps) * weight +
bias.
"""

from __future__ import annotations

import numpy as np

from haversack.kernels._arguments import check_array, check_out, check_rows, placed, refuse_arrays
from haversack.kernels._matrix import Array
from haversack.kernels._native import native


def rms_norm_twin(x: Array, weight: Array, eps: float, offset: float = 0.0) -> Array:
    """The definition of `rms_norm`."""
    mean_square = np.mean(np.square(x, dtype=np.float64), axis=-1, keepdims=True)
    result: Array = (x / np.sqrt(mean_square + eps) * (offset + weight)).astype(np.float32)
    return result


def layer_norm_twin(x: Array, weight: Array, bias: Array | None, eps: float) -> Array:
    """The definition of `layer_norm`."""
    centred = x - np.mean(x, axis=-1, keepdims=True, dtype=np.float64)
    variance = np.mean(np.square(centred), axis=-1, keepdims=True)
    scaled = centred / np.sqrt(variance + eps) * weight
    result: Array = (scaled if bias is None else scaled + bias).astype(np.float32)
    return result


def rms_norm(x: Array, weight: Array, eps: float, *, offset: float = 0.0, out: Array | None = None) -> Array:
    """x f32[..., d] (rows [n, d], or heads [n, heads, d]) and weight f32[d] -> f32 of x's shape.

    `out` may be `x`. Raises UserError for a shape or type that does not fit.
    """
    module = native()
    if module is not None:
        out = np.empty(np.shape(x), np.float32) if out is None else out
        if module.rms_norm(x, weight, eps, offset, out):
            return out
    width = check_rows("rms_norm", "x", x).shape[-1]
    check_array("rms_norm", "weight", weight, (width,))
    check_out("rms_norm", out, x.shape)
    if module is not None:
        refuse_arrays("rms_norm")
    return placed(rms_norm_twin(x, weight, eps, offset), out)


def layer_norm(x: Array, weight: Array, bias: Array | None, eps: float, *, out: Array | None = None) -> Array:
    """x f32[..., d], weight f32[d], bias f32[d] or None -> f32 of x's shape; `out` may be `x`.

    Raises UserError for a shape or type that does not fit.
    """
    module = native()
    if module is not None:
        out = np.empty(np.shape(x), np.float32) if out is None else out
        if module.layer_norm(x, weight, bias, eps, out):
            return out
    width = check_rows("layer_norm", "x", x).shape[-1]
    check_array("layer_norm", "weight", weight, (width,))
    if bias is not None:
        check_array("layer_norm", "bias", bias, (width,))
    check_out("layer_norm", out, x.shape)
    if module is not None:
        refuse_arrays("layer_norm")
    return placed(layer_norm_twin(x, weight, bias, eps), out)
