"""LiteRT networks as graphs, int8 ones with LiteRT's own results to the bit.

Source: LiteRT's reference kernels for 8-bit integers (conv_2d, depthwise_conv_2d, fully_connected, add,
average_pool_2d, mean, softmax).
What is here: scales become fixed-point multipliers (`rounding` of the graph is "fixed"), ReLU and ReLU6
bounds of what comes before them, padding SAME the rows and columns that it stands for; the batch dimension,
which has to be 1, is left out. Where LiteRT's reference kernels and those for processors differ by a code
(dense layers, softmax), the reference holds.
Limits: one input and one output; weights with zero point 0; no dilation; a depthwise convolution with one
kernel a channel, or of one channel. Weights in int8 before floats (LiteRT rounds activations then) are taken
as the floats that they stand for.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from haversack.core.errors import DamagedFileError, UserError
from haversack.formats.litert import LitertModel, LitertOp, LitertTensor, read_litert
from haversack.models.graph._ir import (
    Add,
    AveragePool,
    Clamp,
    Conv2d,
    DepthwiseConv2d,
    FullyConnected,
    Graph,
    Mean,
    Op,
    Pad,
    Pads,
    Quantization,
    Reshape,
    Softmax,
    Tensor,
    out_size,
)
from haversack.models.graph._softmax import SCALE, ZERO


def load_litert(path: str | Path) -> Graph:
    """The graph in a file. Raises UserError for what is not supported, DamagedFileError for what is none."""
    place = Path(path)
    try:
        return graph_of(read_litert(place), place.stem)
    except NotImplementedError as error:
        raise UserError(f"{place} has {error}.", field="model", given=str(error)) from error
    except (ValueError, IndexError, AssertionError) as error:
        raise DamagedFileError(
            place, f"its operations do not fit together ({error})", field="model"
        ) from error


def graph_of(model: LitertModel, name: str) -> Graph:
    """The graph of a model. Raises NotImplementedError for what is not supported, ValueError where its parts
    do not fit."""
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise NotImplementedError(
            f"{len(model.inputs)} inputs and {len(model.outputs)} outputs, not one each"
        )
    made = _Making(model)
    made.activation(model.inputs[0], "input")
    for op in model.ops:
        _RULES[op.kind](made, op)
    output = made.names.get(model.outputs[0])
    if output is None:
        raise ValueError("nothing writes the output")
    return Graph(
        name,
        made.tensors,
        tuple(made.ops),
        ("input",),
        (output,),
        made.constants,
        tuple(made.constants),
        rounding="fixed",
    )


class _Making:
    def __init__(self, model: LitertModel) -> None:
        self.model = model
        self.tensors: dict[str, Tensor] = {}
        self.constants: dict[str, Any] = {}
        self.ops: list[Op] = []
        self.names: dict[int, str] = {}
        self._counts: dict[str, int] = {}

    def fresh(self, kind: str) -> str:
        """The next layer's name."""
        self._counts[kind] = self._counts.get(kind, -1) + 1
        return f"{kind}{self._counts[kind]}"

    def activation(self, index: int, name: str) -> str:
        """Declare what an operation writes (or the input)."""
        source = self.model.tensors[index]
        if source.dtype not in ("f32", "int8") or not source.shape or source.shape[0] != 1:
            raise NotImplementedError(f"an activation of {source.dtype} with the shape {source.shape}")
        if index in self.names or source.data is not None:
            raise ValueError(f"{source.name[:80]} is written twice")
        self.tensors[name] = Tensor(name, source.shape[1:], source.dtype, _codes(source))
        self.names[index] = name
        return name

    def read(self, index: int) -> str:
        """The name of an activation."""
        if index not in self.names:
            raise ValueError("an operation reads what nothing wrote")
        return self.names[index]

    def values(self, index: int) -> LitertTensor:
        """A constant."""
        source = self.model.tensors[index] if index >= 0 else None
        if source is None or source.data is None:
            raise NotImplementedError("an operation whose weights or sizes are not constant")
        return source

    def weights(
        self, op: LitertOp, layer: str, axis: int, shape: tuple[int, ...] | None
    ) -> tuple[str, str | None]:
        """The constants of a linear operation: weight (in `shape`, outputs at `axis`) and bias."""
        x = self.model.tensors[op.inputs[0]]
        weight = self.values(op.inputs[1])
        assert weight.data is not None
        values = weight.data if shape is None else weight.data.reshape(shape)
        codes = _codes(weight)
        if x.dtype == "f32":
            if weight.dtype == "int8" and codes is not None:
                spread = [1] * values.ndim
                spread[axis if len(codes.scales) > 1 else 0] = len(codes.scales)
                values = values.astype(np.float32) * np.array(codes.scales, np.float32).reshape(spread)
            codes = None
        elif weight.dtype != "int8" or codes is None or codes.zero:
            raise NotImplementedError(f"weights of {weight.dtype} without scales or with zero points")
        elif codes.axis is not None:
            codes = Quantization(codes.scales, 0, axis)
        name = self.constant(f"{layer}.weight", values, "f32" if codes is None else "int8", codes)
        if len(op.inputs) < 3 or op.inputs[2] < 0:
            return name, None
        bias = self.values(op.inputs[2])
        assert bias.data is not None
        if bias.data.shape != (values.shape[axis],) or bias.dtype != ("f32" if codes is None else "int32"):
            raise ValueError(f"the bias of {layer} does not fit its weights")
        sums = None
        if codes is not None:
            scale = x.scales[0]
            sums = Quantization(
                tuple(scale * each for each in codes.scales), 0, 0 if len(codes.scales) > 1 else None
            )
        return name, self.constant(f"{layer}.bias", bias.data, bias.dtype, sums)

    def constant(self, name: str, values: Any, dtype: str, codes: Quantization | None) -> str:
        array = np.ascontiguousarray(values)
        self.tensors[name] = Tensor(name, array.shape, dtype, codes)
        self.constants[name] = array
        return name

    def bounds(self, y: str, activation: str) -> tuple[float, float]:
        """The range of an activation in the numbers of y."""
        codes = self.tensors[y].quantization
        low, high = {"none": (-math.inf, math.inf), "relu": (0.0, math.inf), "relu6": (0.0, 6.0)}[activation]
        if codes is None:
            return low, high
        ends = [
            codes.zero + math.floor(np.float32(each) / np.float32(codes.scale) + 0.5)
            if math.isfinite(each)
            else each
            for each in (low, high)
        ]
        return max(-128, ends[0]), min(127, ends[1])

    def pads(self, op: LitertOp, x: str, kernel: tuple[int, int], y: str) -> Pads:
        """Rows and columns that the padding stands for. Raises ValueError where y has another size."""
        sizes, strides = self.tensors[x].shape[:2], (op.whole("stride_h"), op.whole("stride_w"))
        if len(self.tensors[x].shape) != 3 or min(*strides, *kernel) < 1 or max(strides) > 64:
            raise ValueError("a window does not fit its picture")
        found = []
        for size, window, stride in zip(sizes, kernel, strides, strict=True):
            total = 0
            if op.whole("padding") == 0:
                total = max((-(-size // stride) - 1) * stride + window - size, 0)
            found.append((total // 2, total - total // 2))
        outs = tuple(out_size(*each) for each in zip(sizes, kernel, strides, found, strict=True))
        if self.tensors[y].shape[:2] != outs:
            raise ValueError(f"{y} has {self.tensors[y].shape[:2]} places, and its windows give {outs}")
        return found[0], found[1]


def _codes(source: LitertTensor) -> Quantization | None:
    if not source.scales or source.dtype not in ("int8", "int32"):
        if source.dtype == "int8":
            raise NotImplementedError("8-bit integers without scales")
        return None
    if len(source.scales) == 1:
        return Quantization(source.scales, source.zeros[0])
    if any(source.zeros):
        raise NotImplementedError("zero points for each channel")
    return Quantization(source.scales, 0, source.axis)


def _conv(made: _Making, op: LitertOp) -> None:
    if op.whole("dilation_w") != 1 or op.whole("dilation_h") != 1:
        raise NotImplementedError("a dilated convolution")
    x, layer = made.read(op.inputs[0]), made.fresh(op.kind)
    y = made.activation(op.outputs[0], f"{layer}.y")
    shape = made.values(op.inputs[1]).shape
    if len(shape) != 4:
        raise ValueError(f"a kernel has the shape {shape}")
    channels = made.tensors[x].shape[-1]
    kind: type[Conv2d] = Conv2d
    if op.kind == "conv":
        if shape[3] != channels:
            raise NotImplementedError("a convolution in groups")
        weight, bias = made.weights(op, layer, 0, None)
        kernel = (shape[1], shape[2])
    else:
        kernel = (shape[1], shape[2])
        if channels == shape[3] and shape[0] == 1:
            kind = DepthwiseConv2d
            weight, bias = made.weights(op, layer, 2, shape[1:])
        elif channels == 1 and shape[0] == 1:
            weight, bias = made.weights(op, layer, 2, shape[1:])
            _turn(made, weight)
        else:
            raise NotImplementedError("a depthwise convolution with several kernels a channel")
    pads = made.pads(op, x, kernel, y)
    low, high = made.bounds(y, op.activation)
    stride = (op.whole("stride_h"), op.whole("stride_w"))
    made.ops.append(kind(x, weight, bias, y, low, high, stride=stride, pads=pads))


def _turn(made: _Making, name: str) -> None:
    """Kernels over one channel: those of a convolution with one input."""
    values = np.ascontiguousarray(made.constants[name].transpose(2, 0, 1)[..., None])
    codes = made.tensors[name].quantization
    if codes is not None and codes.axis is not None:
        codes = Quantization(codes.scales, 0, 0)
    made.constant(name, values, made.tensors[name].dtype, codes)


def _fully_connected(made: _Making, op: LitertOp) -> None:
    if op.whole("format"):
        raise NotImplementedError("weights that are stored shuffled")
    x, layer = made.read(op.inputs[0]), made.fresh("dense")
    y = made.activation(op.outputs[0], f"{layer}.y")
    weight, bias = made.weights(op, layer, 0, None)
    outputs, inputs = made.tensors[weight].shape
    if made.tensors[x].size != inputs or made.tensors[y].size != outputs:
        raise ValueError(f"{layer} does not fit its input")
    low, high = made.bounds(y, op.activation)
    made.ops.append(FullyConnected(x, weight, bias, y, low, high))


def _add(made: _Making, op: LitertOp) -> None:
    x, other = (made.read(index) for index in op.inputs)
    y = made.activation(op.outputs[0], f"{made.fresh('sum')}.y")
    if not made.tensors[x].shape == made.tensors[other].shape == made.tensors[y].shape:
        raise NotImplementedError("a sum of tensors of two shapes")
    made.ops.append(Add(x, other, y, *made.bounds(y, op.activation)))


def _pool(made: _Making, op: LitertOp) -> None:
    x = made.read(op.inputs[0])
    y = made.activation(op.outputs[0], f"{made.fresh('pool')}.y")
    if made.tensors[x].quantization != made.tensors[y].quantization:
        raise NotImplementedError("a mean over windows between two scales")
    size = (op.whole("height"), op.whole("width"))
    pads = made.pads(op, x, size, y)
    low, high = made.bounds(y, op.activation)
    stride = (op.whole("stride_h"), op.whole("stride_w"))
    made.ops.append(AveragePool(x, y, size, stride, pads, low, high))


def _mean(made: _Making, op: LitertOp) -> None:
    x = made.read(op.inputs[0])
    axes = made.values(op.inputs[1]).data
    if (
        axes is None
        or len(made.tensors[x].shape) != 3
        or sorted(int(each) % 4 for each in axes.reshape(-1)) != [1, 2]
    ):
        raise NotImplementedError("a mean over other dimensions than height and width")
    y = made.activation(op.outputs[0], f"{made.fresh(op.kind)}.y")
    if made.tensors[y].size != made.tensors[x].shape[-1]:
        raise ValueError(f"{y} does not fit its input")
    made.ops.append(Mean(x, y, op.kind == "sum"))


def _reshape(made: _Making, op: LitertOp) -> None:
    x = made.read(op.inputs[0])
    y = made.activation(op.outputs[0], f"{made.fresh('reshape')}.y")
    if made.tensors[x].size != made.tensors[y].size:
        raise ValueError("a reshape changes the number of values")
    made.ops.append(Reshape(x, y))


def _pad(made: _Making, op: LitertOp) -> None:
    x = made.read(op.inputs[0])
    y = made.activation(op.outputs[0], f"{made.fresh('pad')}.y")
    widths = made.values(op.inputs[1]).data
    shape = made.tensors[x].shape
    if widths is None or widths.shape != (len(shape) + 1, 2) or (widths < 0).any() or widths[0].any():
        raise ValueError("padding does not fit its tensor")
    pads = tuple((int(low), int(high)) for low, high in widths[1:])
    sizes = tuple(size + low + high for size, (low, high) in zip(shape, pads, strict=True))
    if made.tensors[y].shape != sizes:
        raise ValueError("padding does not fit its result")
    made.ops.append(Pad(x, y, pads))


def _clamp(made: _Making, op: LitertOp) -> None:
    x = made.read(op.inputs[0])
    y = made.activation(op.outputs[0], f"{made.fresh(op.kind)}.y")
    made.ops.append(Clamp(x, y, *made.bounds(y, op.kind)))


def _softmax(made: _Making, op: LitertOp) -> None:
    x = made.read(op.inputs[0])
    y = made.activation(op.outputs[0], f"{made.fresh('softmax')}.y")
    codes = made.tensors[y].quantization
    if codes is not None and (codes.zero != ZERO or abs(codes.scale - SCALE) > SCALE / 1000):
        raise NotImplementedError(
            f"a softmax in codes of the scale {codes.scale:g} and the zero point {codes.zero} (1/256, -128)"
        )
    made.ops.append(Softmax(x, y, float(op.options["beta"])))


_RULES = {
    "add": _add,
    "average-pool": _pool,
    "conv": _conv,
    "depthwise": _conv,
    "fully-connected": _fully_connected,
    "mean": _mean,
    "pad": _pad,
    "relu": _clamp,
    "relu6": _clamp,
    "reshape": _reshape,
    "softmax": _softmax,
    "sum": _mean,
}
