"""Runs a graph in numpy, several rows at once, with the results of the device to the bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from haversack.models.graph import _backward, _forward
from haversack.models.graph._gradients import (
    LABEL,
    LOSS,
    RATE,
    BiasStep,
    Crop,
    CrossEntropy,
    GradBias,
    GradInput,
    GradWeight,
    Kept,
    Masked,
    PoolGrad,
    Rescaled,
    Step,
    Summed,
    Update,
)
from haversack.models.graph._integer import Rounding, requantized, with_bias
from haversack.models.graph._ir import (
    Add,
    AveragePool,
    Clamp,
    Conv2d,
    DepthwiseConv2d,
    Dequantize,
    FullyConnected,
    Graph,
    Linear,
    MaxPool,
    Mean,
    Op,
    Pad,
    Quantization,
    Reshape,
    Softmax,
)
from haversack.models.graph._moves import MOVES, moved
from haversack.models.graph._softmax import softmax_codes, softmax_fixed

Array = npt.NDArray[Any]
Values = dict[str, Any]


class Machine:
    """Runs `graph`. `rounding`: how sums become codes (default: the graph's own). `parameters` are changed in
    place by steps; those of integer type may be held in floats, which every pass rounds anew."""

    def __init__(
        self,
        graph: Graph,
        rounding: Rounding | None = None,
        parameters: Mapping[str, Array] | None = None,
        *,
        narrow_gradients: bool = False,
    ) -> None:
        self.graph, self.narrow = graph, narrow_gradients
        self.rounding = cast(Rounding, rounding or graph.rounding)
        self.parameters = parameters if parameters is not None else graph.constants
        last = {name: number for number, op in enumerate(graph.ops) for name in (*op.reads, *op.writes)}
        kept = {*graph.outputs, *graph.constants}
        self.saved_nbytes = 0
        """Bytes that the last run kept at its loss for the way back."""
        self._ends: list[list[str]] = [[] for _ in graph.ops]
        for name, number in last.items():
            if name not in kept:
                self._ends[number].append(name)

    def run(self, feeds: Mapping[str, Any]) -> Values:
        """The values of the graph's outputs for `feeds`: inputs by name, rows in front; `rate` for steps.

        Raises FloatingPointError before any step where the loss is not finite.
        """
        values: Values = dict(feeds)
        for op, ended in zip(self.graph.ops, self._ends, strict=True):
            KERNELS[type(op)](self, op, values)
            for name in ended:
                values.pop(name, None)
            if isinstance(op, CrossEntropy):
                others = {*feeds, *op.reads, *op.writes}
                kept = (value for name, value in values.items() if name not in others)
                self.saved_nbytes = sum(value.nbytes for value in kept)
        return {name: values[name] for name in self.graph.outputs}

    def quantization(self, name: str) -> Quantization | None:
        return self.graph.tensors[name].quantization

    def zero(self, name: str) -> int:
        found = self.quantization(name)
        return 0 if found is None else found.zero

    def parameter(self, name: str) -> Array:
        """The numbers of a weight or bias that a pass computes with."""
        held = self.parameters[name] if name in self.parameters else self.graph.constants[name]
        kind = self.graph.tensors[name].dtype
        if kind == "f32" or np.issubdtype(held.dtype, np.integer) or self.rounding == "none":
            return held
        if kind == "int8":
            return np.clip(np.rint(held), -127, 127).astype(np.int8)
        return np.rint(held.astype(np.float64)).astype(np.int32)

    def centred(self, name: str, values: Values) -> Array:
        return _forward.centred(values[name], self.zero(name))


def span(zero: int) -> int:
    """The largest size of a centred code."""
    return max(127 - zero, 128 + zero)


def _linear(machine: Machine, op: Linear, values: Values) -> None:
    x, weight = machine.centred(op.x, values), machine.parameter(op.weight)
    codes = machine.quantization(op.x)
    if codes is None:
        # floats: sums of f32 are as good as their order
        if weight.dtype != np.float64:
            weight = weight.astype(np.float32)
        bound = 0
    else:
        bound = span(codes.zero)
    if isinstance(op, DepthwiseConv2d):
        total = _forward.depthwise(x, weight, op.stride, op.pads)
    elif isinstance(op, Conv2d):
        total = _forward.conv2d(x, weight, op.stride, op.pads, bound)
    else:
        total = _forward.product(x.reshape(len(x), -1), weight, bound)
    bias = None if op.bias is None else machine.parameter(op.bias)
    _finish(machine, op, total, bias, values)


def _finish(machine: Machine, op: Linear, total: Array, bias: Array | None, values: Values) -> None:
    x, y, weight = (machine.quantization(name) for name in (op.x, op.y, op.weight))
    if x is not None and y is not None and weight is not None:
        scales = x.scale * weight.array() / y.scale
        if machine.rounding != "none":
            total = with_bias(total, bias)
        elif bias is not None:
            total = total.astype(np.float64) + bias
        once = isinstance(op, FullyConnected)
        found, mask = requantized(
            total, scales, y.zero, op.low, op.high, machine.rounding, op.mask is not None, once
        )
    else:
        found = total if bias is None else total + bias.astype(total.dtype)
        mask = None if op.mask is None else (found >= op.low) & (found <= op.high)
        if np.isfinite(op.low) or np.isfinite(op.high):
            found = np.clip(found, op.low, op.high)
    values[op.y] = found
    if op.mask is not None and mask is not None:
        values[op.mask] = np.packbits(mask)


def _add(machine: Machine, op: Add, values: Values) -> None:
    x, other = values[op.x], values[op.other]
    codes = tuple(machine.quantization(name) for name in (op.x, op.other, op.y))
    first, second, y = codes
    if first is None or second is None or y is None:
        found = x + other
        values[op.y] = np.clip(found, op.low, op.high) if np.isfinite([op.low, op.high]).any() else found
        return
    low, high = max(op.low, -128), min(op.high, 127)
    if machine.rounding == "fixed":
        whole = _forward.added_fixed(x, other, (first, second, y))
        values[op.y] = np.clip(whole, low, high).astype(np.int8)
        return
    real = _forward.added_float(x, other, (first, second, y))
    if machine.rounding == "none":
        values[op.y] = np.clip(real + y.zero, low, high)
    else:
        values[op.y] = np.clip(np.rint(real) + y.zero, low, high).astype(np.int8)


def _pool(machine: Machine, op: AveragePool, values: Values) -> None:
    x = values[op.x]
    if x.dtype == np.int8 and op.pads != ((0, 0), (0, 0)):
        x = x.astype(np.int64)
    total, counts = _forward.pooled(x, op.size, op.stride, op.pads)
    found = _forward.averaged(total, counts, machine.rounding, op.rounding)
    found = np.clip(found, op.low, op.high)
    values[op.y] = found.astype(x.dtype if x.dtype.kind == "f" else np.int8)


def _max_pool(machine: Machine, op: MaxPool, values: Values) -> None:
    values[op.y] = _forward.max_pooled(values[op.x], op.size, op.stride, op.pads)


def _mean(machine: Machine, op: Mean, values: Values) -> None:
    x, (first, y) = values[op.x], (machine.quantization(op.x), machine.quantization(op.y))
    shape = (len(x), *machine.graph.tensors[op.y].shape)
    if first is None or y is None:
        real = x.sum(axis=(1, 2)) if op.summed else x.mean(axis=(1, 2))
        values[op.y] = real.reshape(shape)
        return
    count = 1 if op.summed else x.shape[1] * x.shape[2]
    if x.dtype == np.float64:
        real = (x - first.zero).sum(axis=(1, 2)) * (first.scale / y.scale / count) + y.zero
        values[op.y] = np.clip(real, -128, 127).reshape(shape)
        return
    total = (x.astype(np.int64) - first.zero).sum(axis=(1, 2))
    if machine.rounding == "fixed":
        codes: Array = _forward.mean_fixed(total, count, first, y)
    else:
        codes = np.rint(total / count * (first.scale / y.scale)) + y.zero
    values[op.y] = np.clip(codes, -128, 127).astype(np.int8).reshape(shape)


def _reshape(machine: Machine, op: Reshape, values: Values) -> None:
    values[op.y] = values[op.x].reshape(len(values[op.x]), *machine.graph.tensors[op.y].shape)


def _pad(machine: Machine, op: Pad, values: Values) -> None:
    x = values[op.x]
    values[op.y] = np.pad(x, ((0, 0), *op.pads), constant_values=machine.zero(op.x))


def _clamp(machine: Machine, op: Clamp, values: Values) -> None:
    x, (first, y) = values[op.x], (machine.quantization(op.x), machine.quantization(op.y))
    if first is None or y is None:
        found, mask = np.clip(x, op.low, op.high), (x >= op.low) & (x <= op.high)
    else:
        kind = np.float64 if x.dtype == np.float64 else np.int64
        total = x.astype(kind) - first.zero
        scales = np.array([first.scale / y.scale])
        found, held = requantized(total, scales, y.zero, op.low, op.high, machine.rounding, True)
        assert held is not None
        mask = held
    values[op.y] = found
    if op.mask is not None:
        values[op.mask] = np.packbits(mask)


def _softmax(machine: Machine, op: Softmax, values: Values) -> None:
    x, (first, y) = values[op.x], (machine.quantization(op.x), machine.quantization(op.y))
    if first is None or y is None:
        values[op.y] = _forward.softmax(op.beta * x)
    elif x.dtype == np.int8:
        scale = first.scale * op.beta
        fixed = machine.rounding == "fixed"
        values[op.y] = softmax_fixed(x, scale) if fixed else softmax_codes(x, scale, y)
    else:
        values[op.y] = _forward.softmax(op.beta * first.scale * x) / y.scale + y.zero


def _dequantize(machine: Machine, op: Dequantize, values: Values) -> None:
    codes = machine.quantization(op.x)
    assert codes is not None
    x = machine.centred(op.x, values)
    values[op.y] = x * x.dtype.type(codes.scale)


def _cross_entropy(machine: Machine, op: CrossEntropy, values: Values) -> None:
    loss, values[op.gradient] = _forward.cross_entropy(values[op.x], values[op.label])
    if RATE in values and not math.isfinite(loss):
        raise FloatingPointError("the loss is not finite; no step was taken")
    values[op.y] = loss


def _masked(machine: Machine, op: Masked, values: Values) -> None:
    g = values[op.x]
    if op.factors is not None:
        g = g * machine.graph.constants[op.factors].astype(g.dtype)
    if op.mask is not None:
        inside = np.unpackbits(values[op.mask], count=g.size).view(bool).reshape(g.shape)
        g = g * inside
    values[op.y] = _backward.quantized(g, -1) if machine.narrow else g


def _grad_bias(machine: Machine, op: GradBias, values: Values) -> None:
    g = values[op.x]
    values[op.y] = g.reshape(-1, g.shape[-1]).sum(axis=0)


def weight_gradient(machine: Machine, op: GradWeight, values: Values) -> Array:
    """What GradWeight computes."""
    x, g = machine.centred(op.x, values), values[op.gradient]
    if op.kind == "dense":
        found = _backward.dense_weight(x.reshape(len(x), -1), g)
    elif op.kind == "conv":
        found = _backward.conv_weight(x, g, op.kernel, op.stride, op.pads)
    else:
        g = g if op.channels is None else g[..., np.array(op.channels, np.intp)]
        found = _backward.depthwise_weight(x, g, op.kernel, op.stride, op.pads)
    if machine.narrow:
        found = _backward.quantized(found, -1 if op.kind == "depthwise" else 0)
    return found


def _grad_weight(machine: Machine, op: GradWeight, values: Values) -> None:
    values[op.y] = weight_gradient(machine, op, values)


def _grad_input(machine: Machine, op: GradInput, values: Values) -> None:
    g, weight = values[op.gradient], machine.parameter(op.weight)
    shape = machine.graph.tensors[op.y].shape
    if op.kind == "dense":
        values[op.y] = (g @ weight.astype(g.dtype)).reshape(len(g), *shape)
    else:
        through = _backward.conv_input if op.kind == "conv" else _backward.depthwise_input
        values[op.y] = through(g, weight, shape, op.stride, op.pads)


def _rescaled(machine: Machine, op: Rescaled, values: Values) -> None:
    values[op.y] = values[op.x] * values[op.x].dtype.type(op.factor)


def _pool_grad(machine: Machine, op: PoolGrad, values: Values) -> None:
    g, shape = values[op.x], machine.graph.tensors[op.y].shape
    if g.ndim == 2:
        g = g[:, None, None, :]
    found = _backward.pool_input(g, shape, op.size, op.stride, op.pads)
    values[op.y] = found if op.factor == 1.0 else found * found.dtype.type(op.factor)


def _crop(machine: Machine, op: Crop, values: Values) -> None:
    x = values[op.x]
    inside = tuple(slice(low, x.shape[i + 1] - high) for i, (low, high) in enumerate(op.pads))
    values[op.y] = x[(slice(None), *inside)]


def _summed(machine: Machine, op: Summed, values: Values) -> None:
    values[op.y] = values[op.x] + values[op.other]


def _kept(machine: Machine, op: Kept, values: Values) -> None:
    values[op.y] = values[op.x][..., np.array(op.channels, np.intp)]


def _change(
    machine: Machine, op: Update | Step | BiasStep, gradient: Array, values: Values, last_axis: bool
) -> None:
    channels = None if isinstance(op, BiasStep) else op.channels
    held = machine.parameters[op.parameter]
    at = slice(None) if channels is None else np.array(channels, np.intp)
    change = gradient * values[RATE]
    if op.factors is not None:
        factors = machine.graph.constants[op.factors]
        if last_axis:
            change = change * (factors if channels is None else factors[at])
        else:
            change = change * factors.reshape(-1, *(1,) * (gradient.ndim - 1))
    new = held[..., at] - change
    if np.issubdtype(held.dtype, np.integer):
        lowest, highest = (-127, 127) if held.dtype == np.int8 else (-(1 << 31) + 1, (1 << 31) - 1)
        new = np.clip(np.rint(new), lowest, highest)
    held[..., at] = new.astype(held.dtype)


def _update(machine: Machine, op: Update, values: Values) -> None:
    last = gradient_axis_is_last(machine.graph, op.parameter)
    _change(machine, op, values[op.gradient], values, last)


def _step(machine: Machine, op: Step, values: Values) -> None:
    gradient = weight_gradient(machine, op.weight_gradient, values)
    _change(machine, op, gradient, values, op.weight_gradient.kind == "depthwise")


def _bias_step(machine: Machine, op: BiasStep, values: Values) -> None:
    g = values[op.gradient]
    _change(machine, op, g.reshape(-1, g.shape[-1]).sum(axis=0), values, True)


def _moved(machine: Machine, op: Op, values: Values) -> None:
    moved(op, values, machine.parameters, machine.graph.tensors[op.writes[0]].shape)


def gradient_axis_is_last(graph: Graph, parameter: str) -> bool:
    """Whether the outputs of a parameter lie in its last dimension (depthwise kernels, biases)."""
    tensor = graph.tensors[parameter]
    codes = tensor.quantization
    return len(tensor.shape) == 1 or len(tensor.shape) == 3 or (codes is not None and codes.axis == 2)


KERNELS: dict[type[Op], Callable[[Machine, Any, Values], None]] = {
    Add: _add,
    AveragePool: _pool,
    BiasStep: _bias_step,
    Clamp: _clamp,
    Conv2d: _linear,
    CrossEntropy: _cross_entropy,
    Crop: _crop,
    Dequantize: _dequantize,
    DepthwiseConv2d: _linear,
    FullyConnected: _linear,
    GradBias: _grad_bias,
    GradInput: _grad_input,
    GradWeight: _grad_weight,
    Kept: _kept,
    Masked: _masked,
    MaxPool: _max_pool,
    Mean: _mean,
    Pad: _pad,
    PoolGrad: _pool_grad,
    Rescaled: _rescaled,
    Reshape: _reshape,
    Softmax: _softmax,
    Step: _step,
    Summed: _summed,
    Update: _update,
    **dict.fromkeys(MOVES, _moved),
}

__all__ = ["KERNELS", "LABEL", "LOSS", "RATE", "Machine", "weight_gradient"]
