"""What each operation of the way back computes, in numpy: pure functions on arrays, rows in front.

`g` is the gradient of a sum before its scale and bounds, [rows, height out, width out, outputs].
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.models.graph._forward import padded, patches, window_counts
from haversack.models.graph._ir import Pads

Array = npt.NDArray[Any]


def conv_weight(x: Array, g: Array, kernel: tuple[int, int], stride: tuple[int, int], pads: Pads) -> Array:
    """[outputs, height, width, inputs]: correlation of inputs and gradient, summed over rows."""
    columns = patches(x, kernel, stride, pads)
    flat = g.reshape(-1, g.shape[-1]).T @ columns.reshape(-1, columns.shape[-1])
    return flat.reshape(g.shape[-1], *kernel, x.shape[-1])


def conv_input(g: Array, weight: Array, shape: tuple[int, ...], stride: tuple[int, int], pads: Pads) -> Array:
    """[rows, *shape]: the transposed convolution."""
    outputs, height, width, inputs = weight.shape
    flat = weight.reshape(outputs, -1).astype(g.dtype)
    spread = (g.reshape(-1, outputs) @ flat).reshape(*g.shape[:3], height, width, inputs)
    return _gathered(spread, shape, stride, pads)


def depthwise_weight(
    x: Array, g: Array, kernel: tuple[int, int], stride: tuple[int, int], pads: Pads
) -> Array:
    """[height, width, channels], summed over rows."""
    source, found = padded(x, pads), np.empty((*kernel, x.shape[-1]), g.dtype)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            seen = _window(source, i, j, g.shape[1:3], stride)
            found[i, j] = np.einsum("nhwc,nhwc->c", seen, g)
    return found


def depthwise_input(
    g: Array, weight: Array, shape: tuple[int, ...], stride: tuple[int, int], pads: Pads
) -> Array:
    """[rows, *shape]."""
    (top, bottom), (left, right) = pads
    found = np.zeros((len(g), shape[0] + top + bottom, shape[1] + left + right, shape[2]), g.dtype)
    kernel = weight.astype(g.dtype)
    for i in range(weight.shape[0]):
        for j in range(weight.shape[1]):
            _window(found, i, j, g.shape[1:3], stride)[...] += g * kernel[i, j]
    return found[:, top : top + shape[0], left : left + shape[1]]


def dense_weight(x: Array, g: Array) -> Array:
    """[outputs, inputs], summed over rows."""
    return g.reshape(-1, g.shape[-1]).T @ x.reshape(-1, x.shape[-1])


def pool_input(
    g: Array, shape: tuple[int, ...], size: tuple[int, int], stride: tuple[int, int], pads: Pads
) -> Array:
    """[rows, *shape]: every number of a window gets an equal share."""
    share = g / window_counts(shape, size, stride, pads)
    spread = np.broadcast_to(share[:, :, :, None, None, :], (*g.shape[:3], *size, g.shape[-1]))
    return _gathered(spread, shape, stride, pads)


def quantized(gradient: Array, axis: int) -> Array:
    """A gradient as 8 bits would hold it, a scale for each index of `axis`."""
    axes = tuple(each for each in range(gradient.ndim) if each != axis % gradient.ndim)
    step = np.abs(gradient).max(axis=axes, keepdims=True) / 127
    step[step == 0] = 1
    return np.rint(gradient / step) * step


def _window(source: Array, i: int, j: int, out: tuple[int, ...], stride: tuple[int, int]) -> Array:
    return source[
        :, i : i + (out[0] - 1) * stride[0] + 1 : stride[0], j : j + (out[1] - 1) * stride[1] + 1 : stride[1]
    ]


def _gathered(spread: Array, shape: tuple[int, ...], stride: tuple[int, int], pads: Pads) -> Array:
    """Sums [rows, *shape] of what windows [rows, height out, width out, height, width, channels] say."""
    (top, bottom), (left, right) = pads
    rows, down, across, height, width, channels = spread.shape
    if (height, width) == (1, 1) and stride == (1, 1) and pads == ((0, 0), (0, 0)):
        return spread.reshape(rows, down, across, channels)
    found = np.zeros((rows, shape[0] + top + bottom, shape[1] + left + right, channels), spread.dtype)
    for i in range(height):
        for j in range(width):
            _window(found, i, j, (down, across), stride)[...] += spread[:, :, :, i, j]
    return found[:, top : top + shape[0], left : left + shape[1]]
