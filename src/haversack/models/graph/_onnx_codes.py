"""ONNX networks of 8-bit codes: QuantizeLinear and DequantizeLinear around the operators, as exporters write
them.

Source: ONNX's two operators as documented: code = clamp(round(x / scale) + zero), halves to the even one.
While the model is read, its operators stand as those of floats, and a `Coded` where numbers become codes;
`lowered` then gives every operation the codes of what it reads and writes. The result runs in whole numbers
(the graph's rounding "float": a sum times one 32-bit factor), where the model multiplies floats: a code may
differ by one where a number lies within a float's error of a half. Input and output are codes, too: what
stands before the first QuantizeLinear and behind the last DequantizeLinear is the caller's.
uint8 codes become int8 codes 128 below, with a zero point 128 below.
Limits: 8 bits; weights whose codes less their zero fit in int8; no function but softmax, no product of two
values, no recurrent layers; a mean over windows between two scales has no pads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError
from haversack.formats.onnx import OnnxNode
from haversack.models.graph._integer import with_headroom
from haversack.models.graph._ir import (
    Add,
    AveragePool,
    Clamp,
    DepthwiseConv2d,
    Graph,
    Linear,
    MaxPool,
    Mean,
    Op,
    Pad,
    Quantization,
    Reshape,
    Softmax,
    Tensor,
)
from haversack.models.graph._moves import Part, Permute
from haversack.models.graph._onnx_making import Making
from haversack.models.graph._tidy import alive

Array = npt.NDArray[Any]

MOVES = (MaxPool, Pad, Part, Permute, Reshape)
"""What gives numbers that it reads: in the same codes."""
SUMS = (Linear, Add, AveragePool, Mean, Softmax)
"""What gives numbers that need codes of their own."""
OUTPUTS_AXIS = {"Conv": 0, "MatMul": 1}


@dataclass(frozen=True)
class Coded(Op):
    """The nearest codes of `codes`; stands in a graph until it is lowered."""

    READS = ("x",)
    x: str
    y: str
    codes: Quantization


def quantize(made: Making, node: OnnxNode) -> None:
    """QuantizeLinear, of a value or of a constant."""
    scales, zeros, kind = _scales(made, node)
    name = node.inputs[0]
    if name in made.known:
        bounds = np.iinfo(kind)
        spread = _spread(node, scales, made.known[name].ndim)
        whole = np.rint(made.known[name].astype(np.float32) / scales.reshape(spread)) + zeros.reshape(spread)
        made.known[node.outputs[0]] = np.clip(whole, bounds.min, bounds.max).astype(kind)
        return
    value = made.read(node)
    y = made.tensor(f"{made.fresh('Coded')}.y", made.tensors[value.name].shape)
    made.add(Coded(value.name, y, _activation(scales, zeros, kind)))
    made.write(node, replace(value, name=y))


def dequantize(made: Making, node: OnnxNode) -> None:
    """DequantizeLinear: codes go on as codes, constants as floats whose scales are remembered."""
    scales, zeros, kind = _scales(made, node)
    name = node.inputs[0]
    if name in made.known:
        spread = _spread(node, scales, made.known[name].ndim)
        whole = made.known[name].astype(np.int64) - zeros.reshape(spread)
        made.known[node.outputs[0]] = (whole * scales.reshape(spread)).astype(np.float32)
        made.scales[node.outputs[0]] = scales, int(node.attributes.get("axis", 1))
        return
    value, codes = made.read(node), _activation(scales, zeros, kind)
    maker: Op | None = next((op for op in made.ops if value.name in op.writes), None)
    while isinstance(maker, MOVES):
        before = maker.x
        maker = next((op for op in made.ops if before in op.writes), None)
    if maker is None:  # an input that comes in codes
        y = made.add(
            Coded(value.name, made.tensor(f"{value.name}.codes", made.tensors[value.name].shape), codes)
        )
        value = replace(value, name=y)
    elif not isinstance(maker, Coded) or maker.codes != codes:
        raise ValueError("its scale or zero point is not that of the codes it reads")
    made.write(node, value)


def remembered(made: Making, node: OnnxNode, before: int) -> None:
    """Keep the scales of the weights that a node brought, under what its layer writes."""
    found = made.scales.get(node.inputs[1]) if len(node.inputs) > 1 else None
    layers = [op for op in made.ops[before:] if isinstance(op, Linear)]
    if found is None or not layers:
        return
    scales, axis = found
    transposed = int(node.attributes.get("transB", 0))
    wanted = OUTPUTS_AXIS.get(node.kind, 0 if transposed else 1)
    if scales.size > 1 and axis % made.known[node.inputs[1]].ndim != wanted:
        raise ValueError(f"scales of its weights along the axis {axis}; along {wanted} is supported")
    made.layer_scales[layers[0].y] = scales.reshape(-1) * float(node.attributes.get("alpha", 1.0))


def _scales(made: Making, node: OnnxNode) -> tuple[Array, Array, Any]:
    """Scales f64 [n], zero points i64 [n], the type of the codes."""
    scales = made.needed(node, 1, "scale").astype(np.float64).reshape(-1)
    zeros = made.fixed(node, 2, "zero point")
    known = made.known.get(node.inputs[0])
    kind: Any = np.dtype(np.uint8)
    if zeros is not None:
        kind = zeros.dtype
    elif known is not None and known.dtype.kind in "iu":
        kind = known.dtype
    if kind not in (np.int8, np.uint8) and not (kind == np.int32 and node.kind == "DequantizeLinear"):
        raise ValueError(f"codes of {kind}; int8 and uint8 are supported")
    if not (np.isfinite(scales).all() and (scales > 0).all()):
        raise ValueError("a scale that is not above 0")
    if int(node.attributes.get("block_size", 0)):
        raise ValueError("scales for blocks, which are not supported")
    found = np.zeros(scales.size, np.int64) if zeros is None else zeros.reshape(-1).astype(np.int64)
    if found.size != scales.size:
        raise ValueError(f"{scales.size} scales and {found.size} zero points")
    return scales, found, kind


def _spread(node: OnnxNode, scales: Array, rank: int) -> tuple[int, ...]:
    axis = int(node.attributes.get("axis", 1))
    if scales.size == 1:
        return (1,) * rank
    return tuple(-1 if at == axis % rank else 1 for at in range(rank))


def _activation(scales: Array, zeros: Array, kind: Any) -> Quantization:
    if scales.size > 1:
        raise ValueError("a scale for each channel of an activation; one for all is supported")
    return Quantization((float(scales[0]),), int(zeros[0]) - (128 if kind == np.uint8 else 0))


def lowered(graph: Graph, scales: dict[str, Array]) -> Graph:
    """`graph` in codes. `scales`: what a layer writes -> the scales of its weights, f64 [1] or [outputs].

    Raises UserError for what is left in floats, naming it.
    """
    found = _Lowering(graph, scales)
    for op in graph.ops:
        found.take(op)
    goal = found.names.get(graph.outputs[0], graph.outputs[0])
    if goal not in found.codes:
        raise _left(graph, graph.outputs[0], "the network's output is in floats; quantize it, too")
    return alive(
        replace(
            graph,
            tensors=found.tensors,
            ops=tuple(found.ops),
            outputs=(goal,),
            constants=found.constants,
            rounding="float",
        )
    )


def _left(graph: Graph, name: str, what: str) -> UserError:
    maker = graph.producer(name)
    who = f"{type(maker).__name__} (it writes {name})" if maker is not None else name
    return UserError(f"{who} of {graph.name}: {what}.", field="model", given=name)


class _Lowering:
    """`waiting`: what a tensor without codes is made by, since the last one with codes."""

    def __init__(self, graph: Graph, scales: dict[str, Array]) -> None:
        self.graph, self.scales = graph, scales
        self.tensors, self.constants = dict(graph.tensors), dict(graph.constants)
        self.ops: list[Op] = []
        self.codes: dict[str, Quantization] = {}
        self.names: dict[str, str] = {}
        self.waiting: dict[str, list[Op]] = {}

    def take(self, old: Op) -> None:
        """Bring one operation into codes, or let it wait for those of what it writes."""
        op = old.renamed({name: self.names[name] for name in old.reads if name in self.names})
        if isinstance(op, Coded):
            self._coded(op)
        elif isinstance(op, MOVES) and op.x in self.codes:
            self._typed(op.y, self.codes[op.x])
            self.ops.append(op)
        elif isinstance(op, MOVES) and op.x in self.graph.inputs:
            self.waiting[op.y] = [op]
        elif isinstance(op, MOVES) and op.x in self.waiting:
            self.waiting[op.y] = [*self._waited(op.x), op]
        elif isinstance(op, Clamp) and op.x in self.waiting:
            *rest, last = self._waited(op.x)
            if (
                not isinstance(last, Linear | Add | AveragePool)
                or math.isfinite(last.low)
                or math.isfinite(last.high)
            ):
                raise _left(
                    self.graph, op.y, "bounds of floats that no sum takes over; quantize what it reads"
                )
            self.waiting[op.y] = [*rest, replace(last, y=op.y, low=op.low, high=op.high)]
            self.scales[op.y] = self.scales.get(last.y, np.zeros(0))
        elif isinstance(op, (*SUMS, Clamp)):
            for name in op.reads:
                if name not in self.codes and name not in self.constants:
                    raise _left(
                        self.graph, op.writes[0], f"it reads {name}, which is in floats; quantize that, too"
                    )
            self.waiting[op.writes[0]] = [op]
        else:
            raise _left(self.graph, op.writes[0], "it has no kernel for codes")

    def _waited(self, name: str) -> list[Op]:
        if len(list(self.graph.readers(name))) > 1 or name in self.graph.outputs:
            raise _left(
                self.graph, name, "it is read in floats and in codes; quantize it for all that read it"
            )
        return self.waiting.pop(name)

    def _coded(self, op: Coded) -> None:
        if op.x in self.waiting:
            chain = self._waited(op.x)
            source = chain[0].reads[0]
            if isinstance(chain[0], MOVES) and source not in self.codes:
                self._typed(source, op.codes)
            elif isinstance(chain[0], MOVES):
                raise _left(self.graph, source, "it is quantized in two ways; one is supported")
            for each in chain:
                self._typed(each.writes[0], op.codes)
            for each in chain:
                self._emit(each, op.codes)
        elif op.x not in self.codes and op.x in self.graph.inputs:
            self._typed(op.x, op.codes)
        elif op.x not in self.codes:
            raise _left(self.graph, op.x, "nothing in codes leads to it")
        if self.codes[op.x] == op.codes:
            self.names[op.y] = op.x
        elif op.x in self.graph.inputs:
            raise _left(self.graph, op.x, "the input is quantized in two ways; one is supported")
        else:
            self._typed(op.y, op.codes)
            self.ops.append(Clamp(op.x, op.y))

    def _typed(self, name: str, codes: Quantization) -> None:
        self.codes[name] = codes
        self.tensors[name] = replace(self.tensors[name], dtype="int8", quantization=codes)

    def _emit(self, op: Op, codes: Quantization) -> None:
        """Add an operation whose result has `codes`, its bounds and weights as codes."""
        if isinstance(op, Linear | Add | AveragePool | Clamp):
            low, high = (
                end if math.isinf(end) else float(np.rint(end / codes.scale) + codes.zero)
                for end in (op.low, op.high)
            )
            op = replace(op, low=low, high=high)
        if isinstance(op, AveragePool):
            op = replace(op, rounding="even")
            if self.codes[op.x] != codes:
                op = self._as_layer(op)
        elif isinstance(op, Linear):
            op = self._layer(op)
        self.ops.append(op)

    def _layer(self, op: Linear) -> Linear:
        """A linear layer with the codes of its weights, and its bias in codes of its sums."""
        scales = self.scales.get(op.y, np.zeros(0))
        weight = self.constants[op.weight]
        axis = weight.ndim - 1 if isinstance(op, DepthwiseConv2d) else 0
        if scales.size not in (1, weight.shape[axis]):
            raise _left(self.graph, op.y, "its weights are floats; quantize them")
        spread = scales.reshape([-1 if at == axis else 1 for at in range(weight.ndim)])
        whole = np.rint(weight / spread)
        if np.abs(whole).max(initial=0) > 128 or whole.max(initial=0) > 127:
            raise _left(self.graph, op.y, "the codes of its weights less their zero do not fit in int8")
        if not np.allclose(whole * spread, weight, rtol=1e-5, atol=0):
            raise _left(self.graph, op.y, "its weights were changed after they were quantized")
        self._held(op.weight, whole.astype(np.int8), scales, axis)
        if op.bias is not None:
            sums = self.codes[op.x].scale * scales
            limit = float((1 << 31) - 1)
            bias = np.clip(np.rint(self.constants[op.bias].astype(np.float64) / sums), -limit, limit)
            held = with_headroom(bias.astype(np.int32), whole.astype(np.int8), axis)
            self._held(op.bias, held, sums, 0)
        return op

    def _held(self, name: str, values: Array, scales: Array, axis: int) -> None:
        codes = Quantization(tuple(map(float, scales)), 0, axis if scales.size > 1 else None)
        self.constants[name] = values
        self.tensors[name] = Tensor(name, values.shape, str(values.dtype), codes)

    def _as_layer(self, op: AveragePool) -> DepthwiseConv2d:
        """A mean between two scales: kernels of ones, whose scale is one over their number."""
        if op.pads != ((0, 0), (0, 0)):
            raise _left(self.graph, op.y, "a mean over windows with pads between two scales")
        name = f"{op.y}.ones"
        ones = np.ones((*op.size, self.tensors[op.x].shape[-1]), np.int8)
        self._held(name, ones, np.array([1 / math.prod(op.size)]), 2)
        return DepthwiseConv2d(op.x, name, None, op.y, op.low, op.high, stride=op.stride)
