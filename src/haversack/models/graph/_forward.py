"""What each operation computes, in numpy: pure functions on arrays with a dimension of rows in front.

Pictures are [rows, height, width, channels]. `x` of the linear ones is centred already (codes less their
zero), so that what pads a picture is 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from haversack.models.graph._integer import I64, Rounding, divided, multiplier, product, scaled_fixed
from haversack.models.graph._ir import Pads, Quantization, out_size

Array = npt.NDArray[Any]

CACHED = 1 << 16
"""Numbers that stay near while a kernel goes over them."""


def centred(x: Array, zero: int) -> Array:
    """x - zero as f32 (f64 stays f64)."""
    if x.dtype == np.float64:
        return x - zero
    found = x.astype(np.float32)
    if zero:
        found -= np.float32(zero)
    return found


def padded(x: Array, pads: Pads) -> Array:
    """Zeros around pictures."""
    if pads == ((0, 0), (0, 0)):
        return x
    (top, bottom), (left, right) = pads
    rows, height, width, channels = x.shape
    found = np.zeros((rows, height + top + bottom, width + left + right, channels), x.dtype)
    found[:, top : top + height, left : left + width] = x
    return found


def patches(x: Array, kernel: tuple[int, int], stride: tuple[int, int], pads: Pads) -> Array:
    """[rows, height out, width out, kernel height * kernel width * channels]: what each output looks at."""
    if kernel == (1, 1) and pads == ((0, 0), (0, 0)):
        return x[:, :: stride[0], :: stride[1]]
    windows = sliding_window_view(padded(x, pads), kernel, axis=(1, 2))
    windows = windows[:, :: stride[0], :: stride[1]].transpose(0, 1, 2, 4, 5, 3)
    return windows.reshape(*windows.shape[:3], -1)


def conv2d(x: Array, weight: Array, stride: tuple[int, int], pads: Pads, span: int) -> Array:
    """Sums [rows, height out, width out, outputs] over kernels [outputs, height, width, inputs]."""
    columns = patches(x, (weight.shape[1], weight.shape[2]), stride, pads)
    flat = product(columns.reshape(-1, columns.shape[-1]), weight.reshape(len(weight), -1), span)
    return flat.reshape(*columns.shape[:3], len(weight))


def depthwise(x: Array, weight: Array, stride: tuple[int, int], pads: Pads) -> Array:
    """Sums [rows, height out, width out, channels] of kernels [height, width, channels]; below 15 x 15 no
    sum of 8-bit products leaves what f32 holds exactly."""
    kind = np.float64 if np.float64 in (x.dtype, weight.dtype) else np.float32
    height, width, _ = weight.shape
    source = padded(x, pads)
    rows_out = (source.shape[1] - height) // stride[0] + 1
    columns_out = (source.shape[2] - width) // stride[1] + 1
    kernel = weight.astype(kind)
    total = np.zeros((len(x), rows_out, columns_out, weight.shape[2]), kind)
    at_once = max(1, CACHED // max(1, total[0].size)) if len(x) else 1
    part = np.empty_like(total[:at_once])
    for row in range(0, len(x), at_once):
        goal = total[row : row + at_once]
        for i in range(height):
            for j in range(width):
                seen = source[
                    row : row + at_once,
                    i : i + (rows_out - 1) * stride[0] + 1 : stride[0],
                    j : j + (columns_out - 1) * stride[1] + 1 : stride[1],
                ]
                np.multiply(seen, kernel[i, j], out=part[: len(goal)])
                goal += part[: len(goal)]
    return total


def added_fixed(x: Array, other: Array, codes: tuple[Quantization, Quantization, Quantization]) -> I64:
    """The sum of two tensors of codes as LiteRT takes it: both lifted by 20 bits to a common scale."""
    first, second, y = codes
    twice = 2 * max(first.scale, second.scale)
    lifted = [
        scaled_fixed((each.astype(np.int64) - q.zero) << 20, *multiplier(q.scale / twice))
        for each, q in ((x, first), (other, second))
    ]
    return scaled_fixed(lifted[0] + lifted[1], *multiplier(twice / ((1 << 20) * y.scale))) + y.zero


def added_float(x: Array, other: Array, codes: tuple[Quantization, Quantization, Quantization]) -> Array:
    """The sum in floats, as codes of y before they are rounded."""
    first, second, y = codes
    kind: Any = np.float64 if x.dtype == np.float64 else np.float32
    real: Array = (x.astype(kind) - kind(first.zero)) * kind(first.scale)
    real += (other.astype(kind) - kind(second.zero)) * kind(second.scale)
    real /= kind(y.scale)
    return real


def pooled(x: Array, size: tuple[int, int], stride: tuple[int, int], pads: Pads) -> tuple[Array, Array]:
    """Sums over windows [rows, height out, width out, channels], and how many numbers each has [height out,
    width out, 1]."""
    kind = np.float64 if x.dtype in (np.float64, np.float32) else np.int64
    windows = sliding_window_view(padded(x.astype(kind), pads), size, axis=(1, 2))
    total = windows[:, :: stride[0], :: stride[1]].sum(axis=(-2, -1))
    return total, window_counts(x.shape[1:3], size, stride, pads)


def max_pooled(x: Array, size: tuple[int, int], stride: tuple[int, int], pads: Pads) -> Array:
    """The largest number of each window [rows, height out, width out, channels]."""
    (top, bottom), (left, right) = pads
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    wide = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=lowest)
    found: Array = sliding_window_view(wide, size, axis=(1, 2))[:, :: stride[0], :: stride[1]].max(
        axis=(-2, -1)
    )
    return found


def window_counts(
    shape: tuple[int, ...], size: tuple[int, int], stride: tuple[int, int], pads: Pads
) -> Array:
    """How many numbers of the picture are in each window: i64 [height out, width out, 1]."""
    sides = []
    for axis in range(2):
        starts = np.arange(out_size(shape[axis], size[axis], stride[axis], pads[axis])) * stride[axis]
        starts = starts - pads[axis][0]
        sides.append(np.minimum(starts + size[axis], shape[axis]) - np.maximum(starts, 0))
    return (sides[0][:, None] * sides[1][None, :])[..., None]


def averaged(total: Array, counts: Array, rounding: Rounding, halves: str) -> Array:
    """The mean of codes: halves `away` from zero, or to the `even` integer."""
    if rounding == "none" or total.dtype == np.float64:
        return total / counts
    return divided(total, counts) if halves == "away" else np.rint(total / counts)


def mean_fixed(total: I64, count: int, x: Quantization, y: Quantization) -> I64:
    """The mean of codes in codes of y, as LiteRT takes it: the division is folded into the multiplier.
    `total` is the sum of (code - zero); a count of 1 gives the sum."""
    m, shift = multiplier(x.scale / y.scale)
    folded = min(count.bit_length() - 1, 32, 31 + shift)
    return scaled_fixed(total, (m << folded) // count, shift - folded) + y.zero


def softmax(x: Array) -> Array:
    """exp(x) over its sum, over the last dimension."""
    power = np.exp(x - x.max(axis=-1, keepdims=True))
    found: Array = power / power.sum(axis=-1, keepdims=True)
    return found


def cross_entropy(logits: Array, labels: Array) -> tuple[float, Array]:
    """Mean loss in nats of i64 labels [rows], and its gradient in the shape of the logits."""
    rows = np.arange(len(labels))
    top = logits - logits.max(axis=-1, keepdims=True)
    power = np.exp(top)
    total = power.sum(axis=-1, keepdims=True)
    loss = float((np.log(total[:, 0]) - top[rows, labels]).mean())
    gradient = power / total
    gradient[rows, labels] -= 1
    gradient /= len(labels)
    return loss, gradient
