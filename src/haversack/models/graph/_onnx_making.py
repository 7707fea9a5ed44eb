"""A graph in the making from an ONNX model: values with their order in memory, constants, linear layers.

ONNX puts channels before places, a graph behind them. So every value says in which order its axes lie in
memory: a transposition moves nothing, a convolution asks for the order it needs, and numbers are moved only
where two users want two orders.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.formats.onnx import OnnxModel, OnnxNode
from haversack.models.graph._ir import (
    Clamp,
    Conv2d,
    DepthwiseConv2d,
    FullyConnected,
    Linear,
    Op,
    Pads,
    Reshape,
    Tensor,
    out_size,
)
from haversack.models.graph._moves import Permute

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Held:
    """A value: the tensor that holds it, its sizes in ONNX (the batch of 1 among them), its axes from the
    outermost in memory to the innermost."""

    name: str
    shape: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def wide(self) -> tuple[int, ...]:
        """The axes of more than one place, as they lie in memory."""
        return tuple(axis for axis in self.order if self.shape[axis] > 1)


def natural(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(range(len(shape)))


class Making:
    """What rules add to. `held` maps ONNX names to values, `constants` to arrays."""

    def __init__(self, model: OnnxModel) -> None:
        self.model = model
        self.held: dict[str, Held] = {}
        self.known: dict[str, Array] = dict(model.constants)
        self.tensors: dict[str, Tensor] = {}
        self.values: dict[str, Array] = {}
        self.ops: list[Op] = []
        self.uses = Counter(name for node in model.nodes for name in node.inputs if name)
        self.uses.update(model.outputs)
        self.states: dict[str, str] = {}
        """Inputs that are states of recurrent layers, and the outputs that they become."""
        self.scales: dict[str, tuple[Array, int]] = {}
        """Constants that were codes, and their scales along an axis."""
        self.layer_scales: dict[str, Array] = {}
        """What a layer writes, and the scales of its weights."""
        self._counts: Counter[str] = Counter()
        self._moved: dict[tuple[str, tuple[int, ...]], str] = {}

    # Names and tensors.

    def fresh(self, kind: str) -> str:
        """The next layer's name."""
        self._counts[kind] += 1
        return f"{kind.lower()}{self._counts[kind] - 1}"

    def tensor(self, name: str, shape: tuple[int, ...]) -> str:
        if not all(size > 0 for size in shape):
            raise ValueError(f"its result would have the shape {shape}")
        while name in self.tensors:
            name += "'"
        self.tensors[name] = Tensor(name, shape, "f32")
        return name

    def constant(self, name: str, values: Array) -> str:
        """Declare weights. Raises ValueError for numbers that are not finite."""
        array = np.ascontiguousarray(values, np.float32)
        if not np.isfinite(array).all():
            raise ValueError("its weights hold numbers that are not finite; train it again")
        name = self.tensor(name, array.shape)
        self.values[name] = array
        return name

    def add(self, op: Op) -> str:
        self.ops.append(op)
        return op.writes[0]

    # What nodes read and write.

    def read(self, node: OnnxNode, place: int = 0) -> Held:
        """The value of an input. Raises ValueError for a constant or for what nothing wrote."""
        name = node.given(place)
        if name is None or name not in self.held:
            what = "a constant" if name in self.known else "nothing that was computed"
            raise ValueError(f"its input {place} is {what}")
        return self.held[name]

    def fixed(self, node: OnnxNode, place: int, what: str) -> Array | None:
        """A constant input; None where it is left out. Raises ValueError for one that is computed."""
        name = node.given(place)
        if name is None:
            return None
        if name not in self.known:
            raise ValueError(f"its {what} is computed; a constant is supported")
        return self.known[name]

    def needed(self, node: OnnxNode, place: int, what: str) -> Array:
        """The same for one that has to be there."""
        found = self.fixed(node, place, what)
        if found is None:
            raise ValueError(f"it has no {what}")
        return found

    def write(self, node: OnnxNode, value: Held, place: int = 0) -> None:
        self.held[node.outputs[place]] = value

    # Memory.

    def laid(self, value: Held, order: tuple[int, ...], shape: tuple[int, ...]) -> str:
        """The tensor of `shape` that holds a value with its axes in `order`; moves numbers where it must."""
        wanted = tuple(axis for axis in order if value.shape[axis] > 1)
        name, have = value.name, value.wide
        if wanted != have:
            key = (name, wanted)
            if key not in self._moved:
                x = self.shaped(name, tuple(value.shape[axis] for axis in have))
                y = self.tensor(f"{name}.turned", tuple(value.shape[axis] for axis in wanted))
                self.add(Permute(x, y, tuple(have.index(axis) for axis in wanted)))
                self._moved[key] = y
            name = self._moved[key]
        return self.shaped(name, shape)

    def shaped(self, name: str, shape: tuple[int, ...]) -> str:
        """The tensor with the same numbers in memory and another shape."""
        if self.tensors[name].shape == shape:
            return name
        if self.tensors[name].size != math.prod(shape):
            raise ValueError(f"{self.tensors[name].shape} does not become {shape}")
        return self.add(Reshape(name, self.tensor(f"{name}.shape", shape)))

    def reshaped(self, value: Held, shape: tuple[int, ...]) -> Held:
        """A value with other sizes, its numbers in the same natural order."""
        if math.prod(value.shape) != math.prod(shape):
            raise ValueError(f"{value.shape} does not become {shape}")
        before = [axis for axis, size in enumerate(value.shape) if size > 1]
        after = [axis for axis, size in enumerate(shape) if size > 1]
        if [value.shape[axis] for axis in before] == [shape[axis] for axis in after]:
            names = dict(zip(before, after, strict=True))
            wide = [names[axis] for axis in value.wide]
            return Held(value.name, shape, (*wide, *(axis for axis in range(len(shape)) if axis not in wide)))
        flat = self.laid(value, natural(value.shape), (math.prod(shape),))
        return Held(flat, shape, natural(shape))

    def picture(self, value: Held) -> tuple[str, tuple[int, int, int]]:
        """A value [1, channels, ...] as [height, width, channels]; a series gets the height 1."""
        if len(value.shape) not in (3, 4) or value.shape[0] != 1:
            raise ValueError(f"its input has the shape {value.shape}; [1, channels, ...] is supported")
        channels, *places = value.shape[1:]
        height, width = places if len(places) == 2 else (1, places[0])
        order = (0, *range(2, len(value.shape)), 1)
        return self.laid(value, order, (height, width, channels)), (height, width, channels)

    def depicted(self, y: str, rank: int) -> Held:
        """The ONNX value of a tensor [height, width, channels]."""
        height, width, channels = self.tensors[y].shape
        shape = (1, channels, height, width) if rank == 4 else (1, channels, width)
        return Held(y, shape, (0, *range(2, rank), 1))

    # Linear layers, and what folds into them.

    def before(self, value: Held, node: OnnxNode, place: int = 0) -> Linear | None:
        """The linear layer whose unbounded result only this node reads."""
        name = node.inputs[place]
        last = next((op for op in reversed(self.ops) if value.name in op.writes), None)
        readers = sum(value.name in op.reads for op in self.ops)
        if not isinstance(last, Linear) or readers or self.uses[name] > 1:
            return None
        return last if math.isinf(last.low) and math.isinf(last.high) else None

    def replaced(self, old: Op, new: Op) -> None:
        self.ops[self.ops.index(old)] = new

    def bounded(self, node: OnnxNode, low: float, high: float) -> None:
        """Bounds on a value: those of the layer before, where they can be."""
        value = self.read(node)
        before = self.before(value, node)
        if before is not None:
            self.replaced(before, replace(before, low=low, high=high))
        elif math.isfinite(low) or math.isfinite(high):
            y = self.tensor(f"{self.fresh(node.kind)}.y", self.tensors[value.name].shape)
            self.add(Clamp(value.name, y, low, high))
            value = replace(value, name=y)
        self.write(node, value)

    def dense(self, value: Held, matrix: Array, bias: Array | None, layer: str) -> Held:
        """value [..., inputs] times matrix [outputs, inputs] for its last axis."""
        outputs, inputs = matrix.shape
        if value.shape[-1] != inputs:
            raise ValueError(f"{inputs} inputs for a value of the shape {value.shape}")
        rows = math.prod(value.shape[:-1])
        shape = (*value.shape[:-1], outputs)
        added = None if bias is None else self.constant(f"{layer}.bias", bias)
        if rows == 1:
            x = self.laid(value, natural(value.shape), (inputs,))
            weight = self.constant(f"{layer}.weight", matrix)
            y = self.tensor(f"{layer}.y", (outputs,))
            self.add(FullyConnected(x, weight, added, y))
        else:
            x = self.laid(value, natural(value.shape), (1, rows, inputs))
            weight = self.constant(f"{layer}.weight", matrix[:, None, None, :])
            y = self.tensor(f"{layer}.y", (1, rows, outputs))
            self.add(Conv2d(x, weight, added, y))
        return Held(y, shape, natural(shape))

    def affine(self, node: OnnxNode, scale: Array, shift: Array, place: int = 0) -> None:
        """value * scale + shift, both constants that vary along one axis at most."""
        value = self.read(node, place)
        rank = len(value.shape)
        arrays = [
            np.asarray(each, np.float64).reshape((1,) * (rank - each.ndim) + each.shape)
            for each in (scale, shift)
            if each.ndim <= rank
        ]
        if len(arrays) < 2 or any(
            size not in (1, wide)
            for each in arrays
            for size, wide in zip(each.shape, value.shape, strict=True)
        ):
            raise ValueError("its constant has more numbers than its input")
        varying = {axis for each in arrays for axis, size in enumerate(each.shape) if size > 1}
        if len(varying) > 1:
            raise ValueError("its constant varies along several axes; one is supported")
        axis = min(varying) if varying else (value.wide or (rank - 1,))[-1]
        before = self.before(value, node, place)
        channels = 0 if before is None else self.tensors[before.y].shape[-1]
        if before is not None and (
            not varying or (value.wide[-1:] == (axis,) and value.shape[axis] == channels)
        ):
            self._folded(before, *(np.broadcast_to(each.reshape(-1), channels) for each in arrays))
            self.write(node, value)
            return
        size = value.shape[axis]
        factor, term = (np.broadcast_to(each.reshape(-1), size) for each in arrays)
        order = (*(each for each in value.order if each != axis), axis)
        x = self.laid(value, order, (1, math.prod(value.shape) // size, size))
        layer = self.fresh(node.kind)
        weight = self.constant(f"{layer}.weight", factor[None, None])
        bias = self.constant(f"{layer}.bias", term)
        y = self.tensor(f"{layer}.y", self.tensors[x].shape)
        self.add(DepthwiseConv2d(x, weight, bias, y))
        self.write(node, Held(y, value.shape, order))

    def _folded(self, op: Linear, factor: Array, term: Array) -> None:
        weight = self.values[op.weight]
        spread = factor
        if not isinstance(op, DepthwiseConv2d):
            spread = factor.reshape(-1, *[1] * (weight.ndim - 1))
        self.values[op.weight] = (weight * spread).astype(np.float32)
        old = 0.0 if op.bias is None else self.values[op.bias]
        new = (old * factor + term).astype(np.float32)
        if not (np.isfinite(new).all() and np.isfinite(self.values[op.weight]).all()):
            raise ValueError("its weights hold numbers that are not finite; train it again")
        if op.bias is None:
            self.replaced(op, replace(op, bias=self.constant(f"{op.y}.bias", new)))
        else:
            self.values[op.bias] = new


def window(
    node: OnnxNode, sizes: tuple[int, int], series: bool, kernel: Sequence[int]
) -> tuple[tuple[int, int], tuple[int, int], Pads, tuple[int, int]]:
    """(kernel, stride, pads, sizes out) of a node with a window; those of a series stand in the second
    place."""
    count = 1 if series else 2
    given = [int(each) for each in node.attributes.get("kernel_shape") or kernel]
    strides = [int(each) for each in node.attributes.get("strides") or (1,) * count]
    if any(int(each) != 1 for each in node.attributes.get("dilations") or ()):
        raise ValueError(f"dilations of {node.attributes['dilations']}; 1 is supported")
    if int(node.attributes.get("ceil_mode", 0)):
        raise ValueError("ceil_mode, which is not supported")
    if len(given) != count or len(strides) != count or min(*given, *strides) < 1:
        raise ValueError(f"a window of {given} with strides {strides} for a value of {count} sides")
    where = sizes[2 - count :]
    auto = str(node.attributes.get("auto_pad", "NOTSET") or "NOTSET")
    flat = [int(each) for each in node.attributes.get("pads") or (0,) * (2 * count)]
    pads = list(zip(flat[:count], flat[count:], strict=True))
    if auto.startswith("SAME"):
        pads = []
        for size, k, s in zip(where, given, strides, strict=True):
            total = max((-(-size // s) - 1) * s + k - size, 0)
            less, more = total // 2, total - total // 2
            pads.append((less, more) if auto == "SAME_UPPER" else (more, less))
    elif auto == "VALID":
        pads = [(0, 0)] * count
    if min(min(pair) for pair in pads) < 0:
        raise ValueError(f"pads of {flat}")
    if series:
        given, strides, pads = [1, *given], [1, *strides], [(0, 0), *pads]
    outs = tuple(out_size(*each) for each in zip(sizes, given, strides, pads, strict=True))
    if min(outs) < 1:
        raise ValueError(f"a window of {given} over {sizes} places with pads {pads}")
    return (given[0], given[1]), (strides[0], strides[1]), (pads[0], pads[1]), (outs[0], outs[1])
