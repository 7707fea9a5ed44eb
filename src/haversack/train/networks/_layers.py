"""Convolution, pooling, full layers and the maximum over points in numpy, forward and back, into given
buffers.

Rows are the first dimension of everything. A convolution copies the windows of a few rows at a time into one
scratch buffer and multiplies, so its memory does not grow with the batch; the way back copies them again.
The same functions serve f32 and integers that f32 or f64 holds exactly (train/_niti.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Floats = NDArray[Any]

SCRATCH_BYTES = 256 << 10
"""What windows of a convolution take, at least one row's."""

Kind = Literal["convolution", "pool", "full", "point-max"]


@dataclass(frozen=True)
class Layer:
    """One layer. `shape`: of its output without rows; `weight`: of its matrix [outputs, inputs], where it has
    one; `relu`: negative outputs become 0. A convolution's matrix is [outputs, channels * kernel * kernel],
    its stride 1, its border zero and half a kernel wide. A full layer works on the last dimension. `pool`
    takes the largest of 2 x 2, `point-max` that of all points."""

    kind: Kind
    name: str
    shape: tuple[int, ...]
    weight: tuple[int, int] | None = None
    relu: bool = False
    kernel: int = 0
    before: tuple[int, ...] = ()
    """The shape of its input without rows."""

    @property
    def size(self) -> int:
        """Numbers of its output for one row."""
        return math.prod(self.shape)

    @property
    def products(self) -> int:
        """Multiplications of one row."""
        return 0 if self.weight is None else self.size * self.weight[1]

    def scratch(self, itemsize: int) -> int:
        """Bytes that a pass through it needs beside input and output."""
        if self.kind != "convolution":
            return 0
        return rows_at_once(self, itemsize) * window_bytes(self, itemsize)


def window_bytes(layer: Layer, itemsize: int) -> int:
    """Bytes of one row's windows and of its input with a border."""
    channels, height, width = layer.before
    border = 2 * (layer.kernel // 2)
    assert layer.weight is not None
    return itemsize * (layer.weight[1] * height * width + channels * (height + border) * (width + border))


def rows_at_once(layer: Layer, itemsize: int) -> int:
    """Rows whose windows fit SCRATCH_BYTES, at least one."""
    return max(1, SCRATCH_BYTES // window_bytes(layer, itemsize))


def windows(layer: Layer, x: Floats, dtype: Any = np.float32) -> Iterator[tuple[slice, Floats]]:
    """(rows, their windows [rows, channels * kernel^2, height * width] of `dtype`) a few rows at a time."""
    channels, height, width = layer.before
    half, at_once = layer.kernel // 2, rows_at_once(layer, np.dtype(dtype).itemsize)
    at_once = min(at_once, len(x))
    framed = np.zeros((at_once, channels, height + 2 * half, width + 2 * half), dtype)
    copied = np.empty((at_once, channels, layer.kernel, layer.kernel, height, width), dtype)
    for start in range(0, len(x), at_once):
        rows = slice(start, min(start + at_once, len(x)))
        count = rows.stop - start
        framed[:count, :, half : half + height, half : half + width] = x[rows]
        seen = sliding_window_view(framed[:count], (height, width), axis=(2, 3))
        copied[:count] = seen
        yield rows, copied[:count].reshape(count, -1, height * width)


def convolution(layer: Layer, x: Floats, weight: Floats, bias: Floats | None, out: Floats) -> None:
    """out [n, outputs, height, width] of x [n, channels, height, width]; the type of `weight` is that of the
    products."""
    flat = out.reshape(len(out), layer.shape[0], -1)
    for rows, seen in windows(layer, x, weight.dtype):
        np.matmul(weight, seen, out=flat[rows])
    if bias is not None:
        flat += bias[:, None]


def convolution_weight(layer: Layer, x: Floats, error: Floats, out: Floats) -> None:
    """out [outputs, channels * kernel^2]: the gradient for the weight, from the error of the output."""
    flat = error.reshape(len(error), layer.shape[0], -1)
    out[...] = 0
    for rows, seen in windows(layer, x, out.dtype):
        out += np.matmul(flat[rows].astype(out.dtype, copy=False), seen.transpose(0, 2, 1)).sum(axis=0)


def convolution_input(layer: Layer, error: Floats, weight: Floats, out: Floats) -> None:
    """out [n, channels, height, width]: the error of the input."""
    channels, height, width = layer.before
    half, at_once = layer.kernel // 2, rows_at_once(layer, weight.dtype.itemsize)
    flat = error.reshape(len(error), layer.shape[0], -1)
    for start in range(0, len(error), at_once):
        rows = slice(start, start + at_once)
        spread = np.matmul(weight.T, flat[rows].astype(weight.dtype, copy=False))
        count = len(spread)
        spread = spread.reshape(count, channels, layer.kernel, layer.kernel, height, width)
        framed = np.zeros((count, channels, height + 2 * half, width + 2 * half), weight.dtype)
        for i in range(layer.kernel):
            for j in range(layer.kernel):
                framed[:, :, i : i + height, j : j + width] += spread[:, :, i, j]
        out[rows] = framed[:, :, half : half + height, half : half + width]


def corners(x: Floats) -> tuple[Floats, ...]:
    """The four views of x [n, c, 2 h, 2 w] whose largest `pool` takes."""
    return x[:, :, ::2, ::2], x[:, :, ::2, 1::2], x[:, :, 1::2, ::2], x[:, :, 1::2, 1::2]


def pool(x: Floats, out: Floats) -> None:
    """out [n, c, h, w]: the largest of 2 x 2 of x [n, c, 2 h, 2 w]."""
    first, second, third, fourth = corners(x)
    np.maximum(first, second, out=out)
    np.maximum(out, third, out=out)
    np.maximum(out, fourth, out=out)


def pool_input(x: Floats, y: Floats, error: Floats, out: Floats) -> None:
    """out, like x: `error`, like y, where the largest was; the first of several that are equal."""
    free = np.ones(y.shape, bool)
    for seen, place in zip(corners(x), corners(out), strict=True):
        here = (seen == y) & free
        np.multiply(error, here, out=place)
        free &= ~here


def point_max_input(x: Floats, y: Floats, error: Floats, out: Floats) -> None:
    """out [n, points, width]: `error` [n, width] at the first point that has the largest value y."""
    out[...] = 0
    first = (x == y[:, None]).argmax(axis=1)
    rows, columns = np.ogrid[: len(x), : x.shape[2]]
    out[rows, first, columns] = error


def forward(layer: Layer, x: Floats, weight: Floats | None, bias: Floats | None, out: Floats) -> None:
    """One layer from x [n, *before] to out [n, *shape]."""
    x = x.reshape(len(x), *layer.before)
    if layer.kind == "convolution":
        assert weight is not None
        convolution(layer, x, weight, bias, out)
    elif layer.kind == "pool":
        pool(x, out)
    elif layer.kind == "point-max":
        np.max(x, axis=1, out=out)
    else:
        assert weight is not None
        width = layer.before[-1]
        flat = out.reshape(-1, layer.shape[-1])
        np.matmul(x.reshape(-1, width).astype(weight.dtype, copy=False), weight.T, out=flat)
        if bias is not None:
            flat += bias
    if layer.relu:
        np.maximum(out, 0, out=out)


def weight_gradient(layer: Layer, x: Floats, error: Floats, out: Floats) -> None:
    """out, like the layer's matrix: its gradient, from its input and the error of its output (before its
    relu)."""
    x = x.reshape(len(x), *layer.before)
    if layer.kind == "convolution":
        convolution_weight(layer, x, error, out)
    else:
        flat = error.reshape(-1, layer.shape[-1]).astype(out.dtype, copy=False)
        np.matmul(flat.T, x.reshape(-1, layer.before[-1]).astype(out.dtype, copy=False), out=out)


def bias_gradient(layer: Layer, error: Floats, out: Floats) -> None:
    """out [outputs]: the sum of the error of each output."""
    if layer.kind == "convolution":
        np.sum(error, axis=(0, 2, 3), out=out)
    else:
        np.sum(error.reshape(-1, layer.shape[-1]), axis=0, out=out)


def input_error(
    layer: Layer, x: Floats, y: Floats, error: Floats, weight: Floats | None, out: Floats
) -> None:
    """out, like x: the error of the layer's input."""
    x, out = x.reshape(len(x), *layer.before), out.reshape(len(x), *layer.before)
    if layer.kind == "convolution":
        assert weight is not None
        convolution_input(layer, error, weight, out)
    elif layer.kind == "pool":
        pool_input(x, y, error, out)
    elif layer.kind == "point-max":
        point_max_input(x, y, error, out)
    else:
        assert weight is not None
        flat = error.reshape(-1, layer.shape[-1]).astype(weight.dtype, copy=False)
        np.matmul(flat, weight, out=out.reshape(-1, layer.before[-1]))


# ---------------------------------------------------------------------------------------------- networks


def stacked(start: tuple[int, ...], *steps: tuple[Any, ...]) -> tuple[Layer, ...]:
    """Layers from short words: ("convolution", name, outputs, kernel), ("full", name, outputs, relu),
    ("pool", name), ("point-max", name); convolutions have a relu."""
    found: list[Layer] = []
    shape = start
    for kind, name, *rest in steps:
        before = shape
        if kind == "convolution":
            outputs, kernel = rest
            shape = (outputs, *shape[1:])
            matrix = (outputs, before[0] * kernel * kernel)
            found.append(Layer(kind, name, shape, matrix, True, kernel, before))
        elif kind == "full":
            outputs, relu = rest
            before = (math.prod(shape),) if len(shape) == 3 else shape
            shape = (*before[:-1], outputs)
            found.append(Layer(kind, name, shape, (outputs, before[-1]), relu, 0, before))
        else:
            shape = (shape[0], shape[1] // 2, shape[2] // 2) if kind == "pool" else shape[1:]
            found.append(Layer(kind, name, shape, before=before))
    return tuple(found)


def lenet5(classes: int) -> tuple[Layer, ...]:
    """LeNet-5 for grey pictures of 28 x 28: 107,786 numbers with ten classes."""
    return stacked(
        (1, 28, 28),
        ("convolution", "conv1", 6, 5),
        ("pool", "pool1"),
        ("convolution", "conv2", 16, 5),
        ("pool", "pool2"),
        ("full", "fc1", 120, True),
        ("full", "fc2", 84, True),
        ("full", "fc3", classes, False),
    )


def pointnet(classes: int, points: int = 256) -> tuple[Layer, ...]:
    """A small PointNet (Qi et al., 2017) without its transforms and norms: a layer for each point three
    times, the largest over the points, three layers for the whole."""
    return stacked(
        (points, 3),
        ("full", "point1", 32, True),
        ("full", "point2", 64, True),
        ("full", "point3", 128, True),
        ("point-max", "max"),
        ("full", "fc1", 64, True),
        ("full", "fc2", 32, True),
        ("full", "fc3", classes, False),
    )


NETWORKS = {"lenet5": lenet5, "pointnet": pointnet}
