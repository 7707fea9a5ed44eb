"""A training step in numpy as the emitted C takes it: every sum in the C's order, every rounding where it is.

Integers are those of models/graph (exact in any order); floats, and the way back, are added up here term by
term, so that C and numpy agree to the bit on any machine with IEEE floats (the loss itself goes through the
math library's logarithm). Activations carry one row in front, as models/graph has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.embed._train_ops import Cast, MeanSquare
from haversack.embed.halves import Numbers, rounded
from haversack.models.graph import _forward
from haversack.models.graph._backward import _window
from haversack.models.graph._execute import KERNELS as INTEGERS
from haversack.models.graph._execute import Machine
from haversack.models.graph._gradients import (
    LABEL,
    LOSS,
    BiasStep,
    Crop,
    CrossEntropy,
    GradInput,
    Kept,
    Masked,
    PoolGrad,
    Rescaled,
    Step,
    Summed,
)
from haversack.models.graph._ir import (
    Add,
    AveragePool,
    Clamp,
    Conv2d,
    DepthwiseConv2d,
    FullyConnected,
    Graph,
    Linear,
    Mean,
    Op,
    Pad,
    Reshape,
)

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
Values = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """How steps are taken: `momentum` (0: none), `decay` (weight decay), `loss_scale` (a power of two),
    `master` (f32 copies of 16-bit weights); `examples` whose mean gradient a step takes."""

    momentum: float = 0.0
    decay: float = 0.0
    loss_scale: float = 1.0
    master: bool = False
    examples: int = 1


@dataclass
class Twin:
    """Runs the compiled `graph` of a step. `parameters` are changed in place: integers as they are, floats
    as f32 that hold numbers of their kind."""

    graph: Graph
    parameters: dict[str, Array]
    sums: str = "f32"
    recipe: Recipe = field(default_factory=Recipe)
    skipped: int = 0
    """Gradients that were not finite; their numbers did not change."""

    def __post_init__(self) -> None:
        self.machine = Machine(self.graph, parameters=self.parameters)
        self.velocity: dict[str, F32] = {}
        self.finer: dict[str, F32] = {}
        self.totals: dict[str, F32] = {}
        self.last = True

    def numbers(self, name: str) -> Numbers:
        """What the tensor `name` is computed in."""
        kind = self.graph.tensors[name].dtype
        return Numbers(kind if kind in ("f16", "bf16") else "f32", self.sums)

    def step(self, inputs: Mapping[str, Any], rate: float) -> float:
        """One step from as many examples as the recipe says (`inputs` with rows): the mean of their losses
        before it. Gradients are summed in f32, one example after the other; nothing has changed where a loss
        is not finite, which is then what comes back."""
        self.totals, total, count = {}, np.float32(0), self.recipe.examples
        for row in range(count):
            self.last = row == count - 1
            loss = self.run({name: each[row] for name, each in inputs.items()}, rate)[LOSS]
            if not math.isfinite(loss):
                self.last = True
                return float(loss)
            total = np.float32(total + np.float32(loss))
        return float(total / np.float32(count))

    def run(self, inputs: Mapping[str, Any], rate: float = 0.0) -> Values:
        """The graph's outputs for one example: `inputs` by name, without rows. No step is taken where the
        loss is not finite."""
        values: Values = {name: np.asarray(each)[None] for name, each in inputs.items()}
        with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
            for op in self.graph.ops:
                rule = RULES.get(type(op))
                if rule is None or (isinstance(op, OF_CODES) and self._codes(op)):
                    INTEGERS[type(op)](self.machine, op, values)
                elif isinstance(op, Step | BiasStep):
                    rule(self, op, values, np.float32(rate))
                else:
                    rule(self, op, values)
                if isinstance(op, CrossEntropy) and not math.isfinite(values[LOSS]):
                    break
        return {name: values[name] for name in self.graph.outputs if name in values}

    def _codes(self, op: Op) -> bool:
        return self.graph.tensors[op.reads[0]].dtype == "int8"

    def weight(self, name: str) -> F32:
        """A weight as f32."""
        held = self.parameters.get(name, self.graph.constants[name])
        return np.asarray(held, np.float32)

    def centred(self, name: str, values: Values) -> F32:
        """One example of a tensor as f32, codes less their zero, without rows."""
        codes = self.graph.tensors[name].quantization
        x = values[name][0]
        if x.dtype != np.int8:
            return np.asarray(x, np.float32)
        return x.astype(np.float32) - np.float32(codes.zero if codes is not None else 0)

    def changed(self, op: Step | BiasStep, gradient: F32, rate: np.float32) -> None:
        """The step of (a part of) a parameter. `gradient` f32 in the part's shape."""
        held = self.parameters[op.parameter]
        recipe = self.recipe
        channels = None if isinstance(op, BiasStep) else op.channels
        at = slice(None) if channels is None else np.array(channels, np.intp)
        if recipe.examples > 1:
            before = self.totals.get(op.parameter, np.zeros_like(gradient))
            self.totals[op.parameter] = gradient = before + gradient
            if not self.last:
                return
            gradient = gradient * np.float32(1 / recipe.examples)
        fine = np.isfinite(gradient)
        self.skipped += int((~fine).sum())
        gradient = np.where(fine, gradient, np.float32(0))
        if recipe.loss_scale != 1:
            gradient = gradient * np.float32(1 / recipe.loss_scale)
        now = self.finer.get(op.parameter) if recipe.master else None
        if now is None:
            now = held[..., at].astype(np.float32) if held.dtype != np.int32 else held[..., at]
        if recipe.decay and held.dtype != np.int32:
            gradient = gradient + np.where(fine, np.float32(recipe.decay) * now.astype(np.float32), 0)
            gradient = gradient.astype(np.float32)
        factors: Any = np.float32(1)
        if op.factors is not None:
            factors = np.asarray(self.graph.constants[op.factors], np.float32)
            if gradient.ndim == 3 or gradient.ndim == 1:
                factors = factors if channels is None or gradient.ndim == 1 else factors[at]
            else:
                factors = factors.reshape(-1, *(1,) * (gradient.ndim - 1))
        if recipe.momentum:
            before = self.velocity.get(op.parameter, np.zeros_like(gradient))
            after = np.float32(recipe.momentum) * before + gradient * factors
            after = np.where(fine, after, before)
            self.velocity[op.parameter] = after
            change = np.where(fine, after * rate, np.float32(0))
        else:
            change = np.where(fine, gradient * rate * factors, np.float32(0))
        if held.dtype == np.int8:
            held[..., at] = np.clip(np.rint(now - change), -127, 127).astype(np.int8)
        elif held.dtype == np.int32:
            limit = float((1 << 31) - 1)
            new = np.rint(now.astype(np.float64) - change.astype(np.float64))
            held[..., at] = np.clip(new, -limit, limit).astype(np.int32)
        else:
            new = (now - change).astype(np.float32)
            if recipe.master:
                self.finer[op.parameter] = new
            held[..., at] = rounded(new, self.graph.tensors[op.parameter].dtype)


def _finish(twin: Twin, op: Any, value: F32, values: Values) -> None:
    low, high = np.float32(op.low), np.float32(op.high)
    if getattr(op, "mask", None) is not None:
        values[op.mask] = np.packbits((value >= low) & (value <= high))
    value = np.where(value < low, low, np.where(value > high, high, value))
    values[op.y] = twin.numbers(op.y).round(value)[None]


def _linear(twin: Twin, op: Linear, values: Values) -> None:
    x, weight, numbers = twin.centred(op.x, values), twin.weight(op.weight), twin.numbers(op.y)
    shape = twin.graph.tensors[op.y].shape
    if isinstance(op, DepthwiseConv2d):
        columns = _columns(x, weight.shape[:2], op.stride, op.pads)
        found = numbers.rowwise(columns.transpose(1, 0, 2), weight.reshape(-1, 1, weight.shape[-1]))
    elif isinstance(op, Conv2d):
        columns = _columns(x, weight.shape[1:3], op.stride, op.pads)
        found = numbers.dots(columns.reshape(len(columns), -1), weight.reshape(len(weight), -1))
    else:
        found = numbers.dots(x.reshape(1, -1), weight)
    found = found.reshape(shape)
    if op.bias is not None:
        found = numbers.added(found, twin.weight(op.bias))
    _finish(twin, op, found, values)


def _columns(x: F32, kernel: tuple[int, ...], stride: tuple[int, int], pads: Any) -> F32:
    """[places, kernel height * kernel width, channels]: what each output sees."""
    seen = _forward.patches(x[None], (kernel[0], kernel[1]), stride, pads)
    return seen.reshape(-1, kernel[0] * kernel[1], x.shape[-1])


def _add(twin: Twin, op: Add, values: Values) -> None:
    _finish(twin, op, (values[op.x] + values[op.other])[0], values)


def _clamp(twin: Twin, op: Clamp, values: Values) -> None:
    _finish(twin, op, values[op.x][0], values)


def _pool(twin: Twin, op: AveragePool, values: Values) -> None:
    x = values[op.x][0]
    height, width = twin.graph.tensors[op.y].shape[:2]
    ones = np.ones((*x.shape[:2], 1), np.float32)
    total, count = (
        sum_of_windows(each[None], op.size, op.stride, op.pads, (height, width))[0] for each in (x, ones)
    )
    _finish(twin, op, (total / count).astype(np.float32), values)


def sum_of_windows(
    x: F32, size: tuple[int, int], stride: tuple[int, int], pads: Any, out: tuple[int, int]
) -> F32:
    """Sums over windows, the numbers of each in order of rows."""
    source = _forward.padded(x, pads)
    total = np.zeros((1, *out, x.shape[-1]), np.float32)
    for i in range(size[0]):
        for j in range(size[1]):
            total += _window(source, i, j, out, stride)
    return total


def _mean(twin: Twin, op: Mean, values: Values) -> None:
    x = values[op.x][0]
    places = x.reshape(-1, x.shape[-1])
    total = np.zeros(x.shape[-1], np.float32)
    for place in places:
        total += place
    share = np.float32(1 if op.summed else 1 / len(places))
    shape = twin.graph.tensors[op.y].shape
    values[op.y] = twin.numbers(op.y).round(total * share).reshape(1, *shape)


def _pad(twin: Twin, op: Pad, values: Values) -> None:
    values[op.y] = np.pad(values[op.x], ((0, 0), *op.pads))


def _cast(twin: Twin, op: Cast, values: Values) -> None:
    values[op.y] = twin.numbers(op.y).round(values[op.x])


def power(x: F32) -> F32:
    """exp(x) for x <= 0 as nn_exp takes it: 2^n times a polynomial, in 32-bit sums and products."""
    f = np.float32
    n = np.rint(x * f(1.44269504))
    r = x - n * f(0.693145752) - n * f(1.42860677e-06)
    found = np.full_like(r, f(1.38888889e-03))
    for each in (8.33333377e-03, 4.16666679e-02, 1.66666672e-01, 0.5, 1.0, 1.0):
        found = found * r + f(each)
    whole = np.clip(np.nan_to_num(n), -127, 127).astype(np.int32)
    scale = ((whole + 127).astype(np.uint32) << np.uint32(23)).view(np.float32)
    found = found * scale
    return np.where(x > f(-87), found, np.where(np.isnan(x), x, f(0))).astype(np.float32)


def _cross_entropy(twin: Twin, op: CrossEntropy, values: Values) -> None:
    x, label = values[op.x][0], int(values[LABEL][0])
    each = power(x - x.max())
    total = np.float32(0)
    for one in each:
        total = np.float32(total + one)
    share = each / total
    share[label] -= np.float32(1)
    gradient = share * np.float32(twin.recipe.loss_scale)
    values[op.gradient] = twin.numbers(op.gradient).round(gradient)[None]
    values[op.y] = float(np.log(total) - (x[label] - x.max()))


def _mean_square(twin: Twin, op: MeanSquare, values: Values) -> None:
    x, target = values[op.x][0].reshape(-1), np.asarray(values[LABEL][0], np.float32).reshape(-1)
    gap = x - target
    total = np.float32(0)
    for one in gap:
        total = np.float32(total + one * one)
    gradient = gap * (np.float32(2) / np.float32(len(gap))) * np.float32(twin.recipe.loss_scale)
    shape = twin.graph.tensors[op.gradient].shape
    values[op.gradient] = twin.numbers(op.gradient).round(gradient).reshape(1, *shape)
    values[op.y] = float(total / np.float32(len(gap)))


def _masked(twin: Twin, op: Masked, values: Values) -> None:
    g = values[op.x]
    if op.factors is not None:
        g = g * np.asarray(twin.graph.constants[op.factors], np.float32)
    if op.mask is not None:
        inside = np.unpackbits(values[op.mask], count=g.size).view(bool).reshape(g.shape)
        g = np.where(inside, g, np.float32(0))
    values[op.y] = twin.numbers(op.y).round(g)


def _rescaled(twin: Twin, op: Rescaled, values: Values) -> None:
    values[op.y] = twin.numbers(op.y).round(values[op.x] * np.float32(op.factor))


def _summed(twin: Twin, op: Summed, values: Values) -> None:
    values[op.y] = twin.numbers(op.y).round(values[op.x] + values[op.other])


def _pool_grad(twin: Twin, op: PoolGrad, values: Values) -> None:
    shape = twin.graph.tensors[op.y].shape
    g = values[op.x][0]
    g = g if g.ndim == 3 else g[None, None]
    share = g / _forward.window_counts(shape, op.size, op.stride, op.pads).astype(np.float32)
    (top, bottom), (left, right) = op.pads
    found = np.zeros((1, shape[0] + top + bottom, shape[1] + left + right, shape[2]), np.float32)
    for i in range(op.size[0]):
        for j in range(op.size[1]):
            _window(found, i, j, share.shape[:2], op.stride)[...] += share
    inner = found[:, top : top + shape[0], left : left + shape[1]]
    values[op.y] = twin.numbers(op.y).round(inner * np.float32(op.factor))


def _crop(twin: Twin, op: Crop, values: Values) -> None:
    x = values[op.x]
    inside = tuple(slice(low, x.shape[i + 1] - high) for i, (low, high) in enumerate(op.pads))
    values[op.y] = x[(slice(None), *inside)]


def _kept(twin: Twin, op: Kept, values: Values) -> None:
    values[op.y] = values[op.x][..., np.array(op.channels, np.intp)]


def spread_gradient(
    g: Array,
    kernel: tuple[int, int],
    shape: tuple[int, ...],
    stride: tuple[int, int],
    pads: Any,
    dtype: Any = np.float32,
) -> Array:
    """[input places, kernel height * kernel width, outputs]: what of the gradient each input sees of a kernel
    turned round, zeros between where strides are above 1 (the transform of the paper's input-gradient step).
    """
    high, wide = kernel
    (top, _), (left, _) = pads
    down, across, outputs = g.shape
    found = np.zeros((shape[0], shape[1], high * wide, outputs), dtype)
    for a in range(high):
        for b in range(wide):
            for row in range(shape[0]):
                to_row, odd = divmod(row + top - (high - 1 - a), stride[0])
                if odd or not 0 <= to_row < down:
                    continue
                columns = np.arange(shape[1]) + left - (wide - 1 - b)
                fits = (columns % stride[1] == 0) & (columns >= 0) & (columns // stride[1] < across)
                found[row, fits, a * wide + b] = g[to_row, columns[fits] // stride[1]]
    return found.reshape(-1, high * wide, outputs)


def _grad_input(twin: Twin, op: GradInput, values: Values) -> None:
    g, weight, numbers = values[op.gradient][0], twin.weight(op.weight), twin.numbers(op.y)
    shape = twin.graph.tensors[op.y].shape
    if op.kind == "dense":
        found = numbers.dots(g.reshape(1, -1), weight.T)
    elif op.kind == "conv":
        seen = spread_gradient(g, weight.shape[1:3], shape, op.stride, op.pads)
        turned = weight[:, ::-1, ::-1].transpose(3, 1, 2, 0)
        found = numbers.dots(seen.reshape(len(seen), -1), turned.reshape(len(turned), -1))
    else:
        seen = spread_gradient(g, weight.shape[:2], shape, op.stride, op.pads)
        turned = weight[::-1, ::-1].reshape(-1, 1, weight.shape[-1])
        found = numbers.rowwise(seen.transpose(1, 0, 2), turned)
    values[op.y] = numbers.round(found).reshape(1, *shape)


def _step(twin: Twin, op: Step, values: Values, rate: np.float32) -> None:
    of = op.weight_gradient
    x, g, numbers = twin.centred(op.x, values), values[op.gradient][0], twin.numbers(op.gradient)
    if of.kind == "dense":
        found = numbers.dots(g.reshape(-1, 1), x.reshape(-1, 1))
    elif of.kind == "conv":
        columns = _columns(x, of.kernel, of.stride, of.pads).reshape(-1, math.prod(of.kernel) * x.shape[-1])
        found = numbers.dots(g.reshape(-1, g.shape[-1]).T, columns.T)
        found = found.reshape(g.shape[-1], *of.kernel, x.shape[-1])
    else:
        g = g if op.channels is None else g[..., np.array(op.channels, np.intp)]
        columns = _columns(x, of.kernel, of.stride, of.pads)
        found = numbers.rowwise(columns, g.reshape(len(columns), 1, -1)).reshape(*of.kernel, -1)
    twin.changed(op, found, rate)


def _bias_step(twin: Twin, op: BiasStep, values: Values, rate: np.float32) -> None:
    g, numbers = values[op.gradient][0], twin.numbers(op.gradient)
    places = g.reshape(-1, g.shape[-1])
    twin.changed(op, numbers.rowwise(places, np.ones_like(places)), rate)


OF_CODES = (Linear, Add, AveragePool, Clamp, Mean, Pad)
"""What models/graph computes itself where its input are codes."""

RULES: dict[type[Op], Callable[..., None]] = {
    Add: _add,
    AveragePool: _pool,
    BiasStep: _bias_step,
    Cast: _cast,
    Clamp: _clamp,
    Conv2d: _linear,
    Crop: _crop,
    CrossEntropy: _cross_entropy,
    DepthwiseConv2d: _linear,
    FullyConnected: _linear,
    GradInput: _grad_input,
    Kept: _kept,
    Masked: _masked,
    Mean: _mean,
    MeanSquare: _mean_square,
    Pad: _pad,
    PoolGrad: _pool_grad,
    Rescaled: _rescaled,
    Step: _step,
    Summed: _summed,
}

__all__ = ["RULES", "Recipe", "Reshape", "Twin"]
