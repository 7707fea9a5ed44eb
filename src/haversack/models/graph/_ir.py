"""A static graph of a small network: tensors with shapes, types and quantization, operations in their order.

Every shape is that of one example; who runs a graph may put a dimension of rows in front. Activations are
[height, width, channels] or [features]. Kernels are [outputs, height, width, inputs], those of a depthwise
convolution [height, width, channels], matrices [outputs, inputs]. A graph is data alone: _execute.py runs it,
autodiff.py adds the way back, plan.py gives each tensor its place in memory, and a compiler writes it as C.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

BITS = {"bit": 1, "int8": 8, "f16": 16, "bf16": 16, "int32": 32, "f32": 32}


@dataclass(frozen=True)
class Quantization:
    """Codes q stand for (q - zero) * scale: one scale, or one for each index of dimension `axis`."""

    scales: tuple[float, ...]
    zero: int = 0
    axis: int | None = None

    @property
    def scale(self) -> float:
        """The one scale of all."""
        if self.axis is not None:
            raise ValueError("there is a scale for each channel")
        return self.scales[0]

    def array(self) -> F64:
        """f64 [1] or [channels]."""
        return np.array(self.scales, np.float64)


@dataclass(frozen=True)
class Tensor:
    """One value of the graph. `dtype` is one of BITS."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    quantization: Quantization | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes on the device; bits are packed."""
        return -(-self.size * BITS[self.dtype] // 8)


@dataclass(frozen=True)
class Op:
    """Base of all operations. Fields named in READS and WRITES hold names of tensors, or None."""

    READS: ClassVar[tuple[str, ...]] = ()
    WRITES: ClassVar[tuple[str, ...]] = ("y",)
    IN_PLACE: ClassVar[str | None] = None
    """The field of the tensor whose memory the result may take over, where nothing else reads it later."""

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(name for each in self.READS if (name := getattr(self, each)) is not None)

    @property
    def writes(self) -> tuple[str, ...]:
        return tuple(name for each in self.WRITES if (name := getattr(self, each)) is not None)

    def renamed(self, names: Mapping[str, str]) -> Op:
        """The same operation on tensors with other names."""
        changed = {
            each: names[name]
            for each in (*self.READS, *self.WRITES)
            if (name := getattr(self, each)) is not None and name in names
        }
        return replace(self, **changed)


Pads = tuple[tuple[int, int], tuple[int, int]]
NO_PADS: Pads = ((0, 0), (0, 0))


@dataclass(frozen=True)
class Linear(Op):
    """Base of what multiplies with weights: y = clamp(round((x - zero) * W + bias times a scale) + zero_y).

    `low`, `high` bound y in its own numbers (codes, or floats); `mask`, where wanted, gets a bit for each
    number that was inside the bounds before they were applied.
    """

    READS = ("x", "weight", "bias")
    WRITES = ("y", "mask")
    x: str
    weight: str
    bias: str | None
    y: str
    low: float = -math.inf
    high: float = math.inf
    mask: str | None = None


@dataclass(frozen=True)
class Conv2d(Linear):
    """`pads`: rows above and below, columns left and right, of the value 0."""

    stride: tuple[int, int] = (1, 1)
    pads: Pads = NO_PADS


@dataclass(frozen=True)
class DepthwiseConv2d(Conv2d):
    """Every channel by a kernel of its own."""


@dataclass(frozen=True)
class FullyConnected(Linear):
    """A matrix."""


@dataclass(frozen=True)
class Add(Op):
    """The sum of two tensors of one shape, each in its own codes."""

    READS = ("x", "other")
    x: str
    other: str
    y: str
    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True)
class AveragePool(Op):
    """The mean over windows of `size`; what lies outside the picture does not count."""

    READS = ("x",)
    x: str
    y: str
    size: tuple[int, int]
    stride: tuple[int, int]
    pads: Pads = NO_PADS
    low: float = -math.inf
    high: float = math.inf
    rounding: str = "away"
    """Halves of integers go `away` from zero or to the `even` one."""


@dataclass(frozen=True)
class MaxPool(Op):
    """The largest number of each window; what lies outside the picture does not count."""

    READS = ("x",)
    x: str
    y: str
    size: tuple[int, int]
    stride: tuple[int, int]
    pads: Pads = NO_PADS


@dataclass(frozen=True)
class Mean(Op):
    """The mean over height and width (or the sum), in codes of its own."""

    READS = ("x",)
    x: str
    y: str
    summed: bool = False


@dataclass(frozen=True)
class Reshape(Op):
    """The same numbers in the shape of `y`."""

    READS = ("x",)
    IN_PLACE = "x"
    x: str
    y: str


@dataclass(frozen=True)
class Pad(Op):
    """Value 0 around a tensor: `pads` for each dimension."""

    READS = ("x",)
    x: str
    y: str
    pads: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Clamp(Op):
    """Bounds in the numbers of y: ReLU and ReLU6 where no layer before them could take them over."""

    READS = ("x",)
    WRITES = ("y", "mask")
    x: str
    y: str
    low: float = -math.inf
    high: float = math.inf
    mask: str | None = None


@dataclass(frozen=True)
class Softmax(Op):
    """exp(beta x) over its sum, over the last dimension."""

    READS = ("x",)
    x: str
    y: str
    beta: float = 1.0


@dataclass(frozen=True)
class Dequantize(Op):
    """Codes as the floats that they stand for."""

    READS = ("x",)
    x: str
    y: str


@dataclass(frozen=True)
class Graph:
    """Operations in an order in which they can run. `constants` hold the values of tensors that no operation
    writes; of them `parameters` may learn."""

    name: str
    tensors: Mapping[str, Tensor]
    ops: tuple[Op, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, Array] = field(repr=False)
    parameters: tuple[str, ...] = ()
    rounding: str = "float"
    """How sums become codes where nothing else is asked: `float` or `fixed` (_integer.py)."""

    def __post_init__(self) -> None:
        check(self)

    def linears(self) -> tuple[Linear, ...]:
        """What multiplies with weights, in order."""
        return tuple(op for op in self.ops if isinstance(op, Linear))

    def convolutions(self) -> tuple[Conv2d, ...]:
        """Convolutions in order: what the indices of sparse updates count."""
        return tuple(op for op in self.ops if isinstance(op, Conv2d))

    def producer(self, name: str) -> Op | None:
        """The operation that writes a tensor; None for inputs and constants."""
        return next((op for op in self.ops if name in op.writes), None)

    def readers(self, name: str) -> Iterator[Op]:
        """The operations that read a tensor, in order."""
        return (op for op in self.ops if name in op.reads)


def check(graph: Graph) -> None:
    """Raises ValueError unless every tensor is known and written once, before it is read, and constants have
    the shape and type that they declare."""
    known = set(graph.inputs) | set(graph.constants)
    for op in graph.ops:
        for name in (*op.reads, *op.writes):
            if name not in graph.tensors:
                raise ValueError(f"{type(op).__name__} names {name}, which is no tensor")
        for name in op.reads:
            if name not in known:
                raise ValueError(f"{type(op).__name__} reads {name} before it is written")
        for name in op.writes:
            if name in known:
                raise ValueError(f"{name} is written twice")
            known.add(name)
    for name, values in graph.constants.items():
        tensor = graph.tensors[name]
        if tuple(values.shape) != tensor.shape:
            raise ValueError(f"{name} is declared as {tensor.shape} and holds {values.shape}")
    missing = [name for name in graph.outputs if name not in known]
    if missing:
        raise ValueError(f"nothing writes the output {missing[0]}")


def out_size(size: int, kernel: int, stride: int, pads: tuple[int, int]) -> int:
    """Rows (or columns) that windows give."""
    return (size + sum(pads) - kernel) // stride + 1


def names_in(ops: Sequence[Op]) -> set[str]:
    """Every tensor that `ops` read or write."""
    return {name for op in ops for name in (*op.reads, *op.writes)}


def fields_of(op: Op) -> dict[str, Any]:
    """What an operation holds, by name: what a report or a compiler walks."""
    return {each.name: getattr(op, each.name) for each in fields(op)}
