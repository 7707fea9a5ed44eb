"""The way back, written out before anything runs: a rule for each operation, and what nobody needs pruned.

Source: Lin, Zhu, Chen, Wang, Gan and Han, "On-Device Training Under 256KB Memory" (arXiv 2206.15472, 2022),
the compile-time part.
What is here: `with_loss` ends a graph in cross-entropy; `backward` adds, operation by operation in reverse,
the gradient of every tensor and an update of every parameter; `pruned` keeps the updates that are wanted (of
all input channels or some) and deletes every operation that no kept one needs: below the lowest wanted layer
nothing of the way back is left, and forward operations lose the bits that they would have kept for it.
Gradients are straight through for rounding: with s the scale of sums to codes, g_sum = g_y s where y was
inside its bounds, else 0; g_bias = sum g_sum; g_weight = correlation of (x - zero) and g_sum; g_x =
transposed convolution of g_sum. Sums of codes: g s_x / s_y. The mean over a window: an equal share.
What we changed: the bits of a bound and the convolution are one operation from the start.
Limits: softmax inside a graph has no rule (the loss has its own); nor has squeeze and excite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from haversack.models.graph._bounds import bounds_apart
from haversack.models.graph._gradients import (
    LABEL,
    LOSS,
    Crop,
    CrossEntropy,
    GradBias,
    GradInput,
    GradWeight,
    Kept,
    Kind,
    Masked,
    PoolGrad,
    Rescaled,
    Summed,
    Update,
)
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
    Mean,
    Op,
    Pad,
    Reshape,
    Softmax,
    Tensor,
    names_in,
)

Channels = tuple[int, ...]


def gradient_name(name: str) -> str:
    """The tensor that holds the gradient of `name`."""
    return f"grad:{name}"


class Builder:
    """A graph in the making."""

    def __init__(self, graph: Graph) -> None:
        self.tensors, self.constants = dict(graph.tensors), dict(graph.constants)
        self.ops: list[Op] = list(graph.ops)
        self.gradients: dict[str, str] = {}

    def tensor(self, name: str, shape: tuple[int, ...], dtype: str = "f32") -> str:
        """A tensor of this name, made unique."""
        found, number = name, 1
        while found in self.tensors:
            number += 1
            found = f"{name}#{number}"
        self.tensors[found] = Tensor(found, shape, dtype)
        return found

    def constant(self, name: str, values: Any) -> str:
        """A tensor with values f32."""
        array = np.asarray(values, np.float32)
        found = self.tensor(name, array.shape)
        self.constants[found] = array
        return found

    def like(self, name: str) -> str:
        """A new tensor for a gradient of `name`."""
        return self.tensor(gradient_name(name), self.tensors[name].shape)

    def give(self, name: str, make: Callable[[str], Op]) -> None:
        """Add the operation `make(y)` that gives a gradient of tensor `name`; a second one is summed up."""
        y = self.like(name)
        self.ops.append(make(y))
        self.pass_on(name, y)

    def pass_on(self, name: str, gradient: str) -> None:
        """The tensor `gradient` is (a part of) the gradient of `name`."""
        if name in self.gradients:
            both = self.like(name)
            self.ops.append(Summed(self.gradients[name], gradient, both))
            gradient = both
        self.gradients[name] = gradient

    def graph(self, of: Graph, outputs: tuple[str, ...], inputs: tuple[str, ...] | None = None) -> Graph:
        """What was built."""
        return replace(
            of,
            tensors=self.tensors,
            ops=tuple(self.ops),
            constants=self.constants,
            outputs=outputs,
            inputs=inputs or of.inputs,
        )


def with_loss(graph: Graph) -> Graph:
    """`graph`, whose one output are f32 logits, with the label as an input and the loss as another output.
    A softmax at its end is left out, bounds of sums and means are clamps of their own."""
    graph = bounds_apart(graph)
    ops = graph.ops
    (logits,) = graph.outputs
    last = ops[-1]
    if isinstance(last, Softmax):
        ops, logits = ops[:-1], last.x
    if graph.tensors[logits].dtype != "f32":
        raise ValueError("a loss needs logits in f32: put a float head in place of the classifier")
    builder = Builder(replace(graph, ops=ops, outputs=(logits,)))
    builder.tensors[LABEL] = Tensor(LABEL, (), "int32")
    builder.tensors[LOSS] = Tensor(LOSS, (), "f32")
    gradient = builder.like(logits)
    builder.ops.append(CrossEntropy(logits, LABEL, LOSS, gradient))
    return builder.graph(graph, (logits, LOSS), (*graph.inputs, LABEL))


def scale_of_sums(graph: Graph, op: Linear) -> np.ndarray[Any, Any] | None:
    """x scale * weight scales / y scale, f64 [outputs] or [1]; None where y is a float."""
    x, y, weight = (graph.tensors[name].quantization for name in (op.x, op.y, op.weight))
    if x is None or y is None or weight is None:
        return None
    return x.scale * weight.array() / y.scale


def backward(graph: Graph) -> Graph:
    """`graph`, which ends in its loss, with the gradients and updates of all its parameters behind it."""
    builder = Builder(graph)
    for op in reversed(graph.ops):
        if isinstance(op, CrossEntropy):
            builder.gradients[op.x] = op.gradient
        elif op.writes[0] in builder.gradients:
            rule = RULES.get(type(op))
            if rule is None:
                raise ValueError(f"{type(op).__name__} has no way back")
            rule(builder, graph, op, builder.gradients[op.writes[0]])
    for name in graph.parameters:
        if name in builder.gradients:
            builder.ops.append(Update(name, builder.gradients[name]))
    return builder.graph(graph, graph.outputs)


def pruned(
    graph: Graph, wanted: Mapping[str, Channels | None], *, factors: Mapping[str, Any] | None = None
) -> Graph:
    """`graph` (of `backward`) with the updates of `wanted` alone: parameter -> input channels, None for all.

    `factors`: parameter -> f32 [outputs], what its gradient is scaled by.
    """
    return _without_dead(_chosen(graph, wanted, factors or {}))


def gradients_of(graph: Graph, wanted: Mapping[str, Channels | None]) -> tuple[Graph, dict[str, str]]:
    """`graph` (of `backward`) whose outputs are the gradients of `wanted`, and their names by parameter."""
    chosen = _chosen(graph, wanted, {})
    found = {op.parameter: op.gradient for op in chosen.ops if isinstance(op, Update)}
    ops = tuple(op for op in chosen.ops if not isinstance(op, Update))
    asked = replace(chosen, ops=ops, outputs=(*graph.outputs, *found.values()))
    return _without_dead(asked), found


def _chosen(graph: Graph, wanted: Mapping[str, Channels | None], factors: Mapping[str, Any]) -> Graph:
    """Updates of other parameters taken away, slices put in."""
    builder = Builder(graph)
    builder.ops = []
    slices = {name: channels for name, channels in wanted.items() if channels is not None}
    weights = {op.weight: op for op in graph.linears()}
    kept: dict[str, tuple[str, str]] = {}
    for op in graph.ops:
        if isinstance(op, Update):
            if op.parameter not in wanted:
                continue
            scale = factors.get(op.parameter)
            name = None if scale is None else builder.constant(f"factors:{op.parameter}", scale)
            op = replace(op, factors=name, channels=wanted[op.parameter])
        elif isinstance(op, GradWeight) and (owner := _owner(graph, op)) in slices:
            channels = slices[owner]
            shape = graph.tensors[weights[owner].x].shape
            part = builder.tensor(f"kept:{op.x}", (*shape[:-1], len(channels)), graph.tensors[op.x].dtype)
            builder.tensors[part] = replace(
                builder.tensors[part], quantization=graph.tensors[op.x].quantization
            )
            kept[part] = (op.x, owner)
            whole = builder.tensors[op.y]
            builder.tensors[op.y] = replace(whole, shape=(*whole.shape[:-1], len(channels)))
            op = replace(op, x=part, channels=channels)
        builder.ops.append(op)
    for part, (x, owner) in kept.items():
        last = max(i for i, op in enumerate(builder.ops) if x in op.reads and _forward(op))
        builder.ops.insert(last + 1, Kept(x, part, slices[owner]))
    return builder.graph(graph, graph.outputs)


def _owner(graph: Graph, op: GradWeight) -> str:
    """The parameter whose gradient this is."""
    update = next(each for each in graph.ops if isinstance(each, Update) and each.gradient == op.y)
    return update.parameter


def _forward(op: Op) -> bool:
    return not isinstance(op, GradWeight | GradInput | GradBias | Masked | Update)


def _without_dead(graph: Graph) -> Graph:
    """Operations that no output and no update needs are deleted; bits that nobody reads are not kept."""
    needed = set(graph.outputs)
    alive: list[Op] = []
    for op in reversed(graph.ops):
        if not op.writes or needed & set(op.writes):
            if isinstance(op, Linear | Clamp) and op.mask is not None and op.mask not in needed:
                op = replace(op, mask=None)
            alive.append(op)
            needed.update(op.reads)
    ops = tuple(reversed(alive))
    names = names_in(ops) | set(graph.outputs) | set(graph.inputs)
    return replace(
        graph,
        ops=ops,
        tensors={name: tensor for name, tensor in graph.tensors.items() if name in names},
        constants={name: values for name, values in graph.constants.items() if name in names},
        parameters=tuple(name for name in graph.parameters if name in names),
    )


def _linear(builder: Builder, graph: Graph, op: Any, g: str) -> None:
    scales = scale_of_sums(graph, op)
    bounded = scales is not None or math.isfinite(op.low) or math.isfinite(op.high)
    if bounded:
        mask = builder.tensor(f"inside:{op.y}", graph.tensors[op.y].shape, "bit")
        at = builder.ops.index(op)
        builder.ops[at] = replace(op, mask=mask)
        factors = None if scales is None else builder.constant(f"scale:{op.y}", scales)
        inside = builder.tensor(gradient_name(f"sums of {op.y}"), graph.tensors[op.y].shape)
        builder.ops.append(Masked(g, mask, inside, factors))
        g = inside
    kind: Kind = "dense"
    options: dict[str, Any] = {}
    kernel = (1, 1)
    if isinstance(op, Conv2d):
        shape = graph.tensors[op.weight].shape
        kind, kernel = "conv", (shape[1], shape[2])
        if isinstance(op, DepthwiseConv2d):
            kind, kernel = "depthwise", (shape[0], shape[1])
        options = {"stride": op.stride, "pads": op.pads}
    if op.x not in graph.inputs:
        builder.give(op.x, lambda y: GradInput(kind, g, op.weight, y, **options))
    if op.weight in graph.parameters:
        builder.give(op.weight, lambda y: GradWeight(kind, op.x, g, y, kernel, **options))
    if op.bias is not None and op.bias in graph.parameters:
        builder.give(op.bias, lambda y: GradBias(g, y))


def _rescale(builder: Builder, name: str, g: str, factor: float) -> None:
    if factor == 1.0:
        builder.pass_on(name, g)
    else:
        builder.give(name, lambda y: Rescaled(g, y, factor))


def _add(builder: Builder, graph: Graph, op: Any, g: str) -> None:
    y = graph.tensors[op.y].quantization
    for name in (op.x, op.other):
        x = graph.tensors[name].quantization
        factor = 1.0 if x is None or y is None else x.scale / y.scale
        if name not in graph.inputs:
            _rescale(builder, name, g, factor)


def _pool(builder: Builder, graph: Graph, op: Any, g: str) -> None:
    builder.give(op.x, lambda y: PoolGrad(g, y, op.size, op.stride, op.pads))


def _mean(builder: Builder, graph: Graph, op: Any, g: str) -> None:
    x, codes = graph.tensors[op.x], graph.tensors[op.y].quantization
    factor = 1.0 if x.quantization is None or codes is None else x.quantization.scale / codes.scale
    size = (x.shape[0], x.shape[1])
    factor *= size[0] * size[1] if op.summed else 1
    builder.give(op.x, lambda y: PoolGrad(g, y, size, size, factor=factor))


def _reshape(builder: Builder, graph: Graph, op: Any, g: str) -> None:
    builder.give(op.x, lambda y: Reshape(g, y))


def _pad(builder: Builder, graph: Graph, op: Any, g: str) -> None:
    builder.give(op.x, lambda y: Crop(g, y, op.pads))


def _clamp(builder: Builder, graph: Graph, op: Any, g: str) -> None:
    mask = builder.tensor(f"inside:{op.y}", graph.tensors[op.y].shape, "bit")
    builder.ops[builder.ops.index(op)] = replace(op, mask=mask)
    x, y = graph.tensors[op.x].quantization, graph.tensors[op.y].quantization
    factor = None if x is None or y is None or x.scale == y.scale else [x.scale / y.scale]
    name = None if factor is None else builder.constant(f"scale:{op.y}", factor)
    builder.give(op.x, lambda grad: Masked(g, mask, grad, name))


def _dequantize(builder: Builder, graph: Graph, op: Any, g: str) -> None:
    codes = graph.tensors[op.x].quantization
    assert codes is not None
    _rescale(builder, op.x, g, codes.scale)


RULES: dict[type[Op], Callable[[Builder, Graph, Any, str], None]] = {
    Add: _add,
    AveragePool: _pool,
    Clamp: _clamp,
    Conv2d: _linear,
    Dequantize: _dequantize,
    DepthwiseConv2d: _linear,
    FullyConnected: _linear,
    Mean: _mean,
    Pad: _pad,
    Reshape: _reshape,
}
