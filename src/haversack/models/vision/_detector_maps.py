"""What the layers of a published detector are computed with, and the first of three ways: by their sizes
alone.

A family of detectors (faster_rcnn.py, efficientdet.py) writes its layers once, as calls of `Maps`. `Sizes`
walks them without computing anything: it holds a checkpoint's shapes against one another.
`_detector_torch.py` computes them with PyTorch, with gradients, for training; `_detector_onnx.py` writes
them as a graph for the server. Maps are square; a convolution's width, kernel and groups follow from its
weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Shapes = Mapping[str, tuple[int, ...]]
WIDEST = 1 << 16
"""Channels of a layer."""


class Maps(Protocol):
    """The operations. `x` is a map of this way of computing; tensors are found by their names."""

    shapes: Shapes

    def conv(self, x: Any, name: str, stride: int = 1, *, pad: int | None = None, same: bool = False) -> Any:
        """`name`.weight and, where there is one, `name`.bias. Padded by (kernel - 1) / 2, by `pad`, or,
        `same`, as TensorFlow does: only as much as is needed, the odd row last."""

    def relu(self, x: Any) -> Any: ...

    def silu(self, x: Any) -> Any:
        """x sigmoid(x), also known as swish."""

    def pooled(self, x: Any, kernel: int, stride: int, pad: int = 0, *, same: bool = False) -> Any:
        """The largest of each window."""

    def doubled(self, x: Any) -> Any:
        """Each place four times: twice the side."""

    def add(self, *xs: Any) -> Any: ...

    def weighted(self, xs: Sequence[Any], name: str) -> Any:
        """The sum of `xs`, each times its number of the tensor `name`."""

    def gated(self, x: Any, inner: str, outer: str) -> Any:
        """Squeeze-and-excite: x times sigmoid(outer(silu(inner(the mean of each channel))))."""


def same_pads(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME: rows before and after, so that ceil(side / stride) leave.

    >>> same_pads(8, 3, 2), same_pads(7, 3, 2), same_pads(8, 3, 1)
    ((0, 1), (1, 1), (1, 1))
    """
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


def side_after(side: int, kernel: int, stride: int, pads: tuple[int, int]) -> int:
    """The side of what leaves a window of `kernel`."""
    return (side + sum(pads) - kernel) // stride + 1


class Map(NamedTuple):
    """Channels and side."""

    channels: int
    side: int


class MisfitError(ValueError):
    """Tensors whose shapes do not fit together."""


@dataclass
class Sizes:
    """`Maps` of sizes alone. `used`: the tensors that were asked for; `products`: multiplications;
    `widest`: the most numbers that a convolution reads and writes. Raises MisfitError for a tensor that is
    missing or does not fit."""

    shapes: Shapes
    used: set[str] = field(default_factory=set)
    products: int = 0
    widest: int = 0

    def conv(self, x: Map, name: str, stride: int = 1, *, pad: int | None = None, same: bool = False) -> Map:
        weight = self.take(f"{name}.weight", 4)
        outputs, inputs, kernel, wide = weight
        grouped = x.channels % inputs or outputs % max(x.channels // inputs, 1)
        if kernel != wide or grouped or (kernel == 1 and x.channels != inputs):
            raise MisfitError(f"{name}.weight is {list(weight)}; {x.channels} channels come in")
        if f"{name}.bias" in self.shapes and self.take(f"{name}.bias", 1) != (outputs,):
            raise MisfitError(f"{name}.bias has not {outputs} numbers")
        side = side_after(x.side, kernel, stride, pads_of(x.side, kernel, stride, pad, same))
        if side < 1:
            raise MisfitError(f"{name} has nothing to read in a map of {x.side}")
        self.products += outputs * inputs * kernel * kernel * side * side
        self.widest = max(self.widest, x.channels * x.side**2 + outputs * side**2)
        return Map(outputs, side)

    def take(self, name: str, axes: int) -> tuple[int, ...]:
        """The shape of a tensor that has so many axes."""
        shape = self.shapes.get(name)
        if shape is None or len(shape) != axes or not all(0 < size <= WIDEST for size in shape):
            raise MisfitError(f"{name} is missing or has not {axes} axes")
        self.used.add(name)
        return tuple(shape)

    def relu(self, x: Map) -> Map:
        return x

    def silu(self, x: Map) -> Map:
        return x

    def pooled(self, x: Map, kernel: int, stride: int, pad: int = 0, *, same: bool = False) -> Map:
        return Map(x.channels, side_after(x.side, kernel, stride, pads_of(x.side, kernel, stride, pad, same)))

    def doubled(self, x: Map) -> Map:
        return Map(x.channels, 2 * x.side)

    def add(self, *xs: Map) -> Map:
        if len(set(xs)) != 1:
            raise MisfitError(f"maps of {', '.join(f'{x.channels} x {x.side}' for x in xs)} do not add up")
        return xs[0]

    def weighted(self, xs: Sequence[Map], name: str) -> Map:
        if self.take(name, 1) != (len(xs),):
            raise MisfitError(f"{name} has not {len(xs)} numbers")
        return self.add(*xs)

    def gated(self, x: Map, inner: str, outer: str) -> Map:
        if self.conv(self.conv(Map(x.channels, 1), inner), outer).channels != x.channels:
            raise MisfitError(f"{outer}.weight does not give {x.channels} channels")
        return x


def pads_of(side: int, kernel: int, stride: int, pad: int | None, same: bool) -> tuple[int, int]:
    """Rows before and after, as `Maps.conv` words it."""
    if same:
        return same_pads(side, kernel, stride)
    own = (kernel - 1) // 2 if pad is None else pad
    return own, own


class Source:
    """The tensors of a checkpoint, taken by name: `missing` is what was asked for and is not there, `left`
    what nobody asked for."""

    def __init__(self, tensors: Mapping[str, F32]) -> None:
        self.left = {name: each for name, each in tensors.items() if not name.endswith("num_batches_tracked")}
        self.missing: list[str] = []

    def has(self, name: str) -> bool:
        return name in self.left

    def count(self, before: str, after: str) -> int:
        """How many of `before`0`after`, `before`1`after`, ... there are; one where there are none."""
        number = 0
        while f"{before}{number}{after}" in self.left:
            number += 1
        return max(number, 1)

    def take(self, name: str, axes: int) -> F32:
        """A tensor; one number where it is missing or has other axes."""
        found = self.left.get(name)
        if found is None or found.ndim != axes:
            self.missing.append(name if found is None else f"{name} with {axes} axes")
            return np.zeros((1,) * axes, np.float32)
        del self.left[name]
        return found

    def folded(self, conv: str, norm: str, eps: float, *, biased: bool = False) -> tuple[F32, F32]:
        """Weight and bias of a convolution with the frozen batch norm behind it."""
        weight = self.take(f"{conv}.weight", 4)
        bias = self.take(f"{conv}.bias", 1) if biased else np.zeros(1, np.float32)
        return self.behind((weight, bias), norm, eps)

    def behind(self, conv: tuple[F32, F32], norm: str, eps: float) -> tuple[F32, F32]:
        """The same, of a convolution's weight and bias. Raises MisfitError where their sizes differ."""
        weight, before = conv
        parts = [self.take(f"{norm}.{end}", 1) for end in ("weight", "bias", "running_mean", "running_var")]
        if self.missing:
            return weight, before
        if any(len(part) != len(weight) for part in parts) or len(before) not in (1, len(weight)):
            raise MisfitError(f"{norm} has not {len(weight)} numbers, as its convolution")
        scale, shift, mean, variance = parts
        factor = scale.astype(np.float64) / np.sqrt(np.maximum(variance.astype(np.float64) + eps, 1e-30))
        made = weight * factor[:, None, None, None]
        return made.astype(np.float32), ((before - mean) * factor + shift).astype(np.float32)
