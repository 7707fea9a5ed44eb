"""What exporters put between layers: constants worked out beforehand, shapes changed, axes turned, parts
taken."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.formats.onnx import OnnxNode
from haversack.models.graph._ir import Pad
from haversack.models.graph._moves import Part
from haversack.models.graph._onnx_making import Held, Making, natural

Array = npt.NDArray[Any]
MOST = 1 << 20
"""Numbers that a constant which is worked out may have."""
CASTS = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_, 10: np.float32, 11: np.float32}


def folded(made: Making, node: OnnxNode) -> bool:
    """Whether a node is a constant, or gives one of constants; then it is known."""
    if node.kind == "Constant":
        for key in ("value", "value_float", "value_int", "value_floats", "value_ints"):
            if node.attributes.get(key) is not None:
                made.known[node.outputs[0]] = np.asarray(node.attributes[key])
                return True
        return False
    if node.kind == "Shape" and node.inputs[0] in made.held:
        made.known[node.outputs[0]] = np.array(made.held[node.inputs[0]].shape, np.int64)
        return True
    rule = ARITHMETIC.get(node.kind)
    if rule is None or not all(name in made.known for name in node.inputs if name):
        return False
    arrays = [made.known[name] if name else np.zeros(0) for name in node.inputs]
    found = np.asarray(rule(node, arrays))
    if found.size > MOST:
        raise ValueError(f"the constant of {node.name[:80]} would have {found.size} numbers")
    made.known[node.outputs[0]] = found
    return True


def _filled(node: OnnxNode, arrays: list[Array]) -> Array:
    shape = [int(each) for each in arrays[0].reshape(-1)]
    if math.prod(shape) > MOST:
        raise ValueError(f"the constant of {node.name[:80]} would have {math.prod(shape)} numbers")
    value = np.asarray(node.attributes.get("value", np.zeros(1, np.float32)))
    return np.full(shape, value.reshape(-1)[0])


def _cast(node: OnnxNode, arrays: list[Array]) -> Array:
    kind = CASTS.get(int(node.attributes["to"]))
    if kind is None:
        raise ValueError(f"{node.name[:80]} casts to the type {node.attributes['to']}")
    return arrays[0].astype(kind)


def _cut(node: OnnxNode, arrays: list[Array]) -> Array:
    x, firsts, lasts, *rest = arrays
    axes = rest[0] if rest and rest[0].size else np.arange(len(firsts))
    steps = rest[1] if len(rest) > 1 and rest[1].size else np.ones(len(firsts), np.int64)
    parts: list[Any] = [slice(None)] * x.ndim
    for first, last, axis, step in zip(firsts, lasts, axes, steps, strict=True):
        size, by = x.shape[int(axis)], int(step)
        first, last = int(first), int(last)
        first = min(max(first + size if first < 0 else first, 0), size - 1 if by < 0 else size)
        last = last + size if -size <= last < 0 else last
        end: int | None = min(last, size) if by > 0 else (None if last < 0 else last)
        parts[int(axis)] = slice(first, end, by)
    return x[tuple(parts)]


def axes_of(made: Making | None, node: OnnxNode, arrays: list[Array]) -> list[int] | None:
    """Axes that a node names, as an input or as an attribute."""
    if len(arrays) > 1:
        return [int(each) for each in arrays[1].reshape(-1)]
    given = node.attributes.get("axes")
    return None if given is None else [int(each) for each in given]


def _squeezed(node: OnnxNode, arrays: list[Array]) -> Array:
    return arrays[0].reshape(squeezed(arrays[0].shape, axes_of(None, node, arrays)))


def _unsqueezed(node: OnnxNode, arrays: list[Array]) -> Array:
    return arrays[0].reshape(unsqueezed(arrays[0].shape, axes_of(None, node, arrays) or []))


def squeezed(shape: tuple[int, ...], axes: list[int] | None) -> tuple[int, ...]:
    gone = {axis % len(shape) for axis in axes} if axes is not None else set(natural(shape))
    if axes is not None and any(shape[axis] != 1 for axis in gone):
        raise ValueError(f"axes {axes} of {shape}, which are not 1")
    return tuple(size for axis, size in enumerate(shape) if axis not in gone or size != 1)


def unsqueezed(shape: tuple[int, ...], axes: list[int]) -> tuple[int, ...]:
    rank = len(shape) + len(axes)
    new = {axis % rank for axis in axes}
    rest = iter(shape)
    return tuple(1 if axis in new else next(rest) for axis in range(rank))


ARITHMETIC: dict[str, Callable[[OnnxNode, list[Array]], Array]] = {
    "Add": lambda node, arrays: arrays[0] + arrays[1],
    "Cast": _cast,
    "Concat": lambda node, arrays: np.concatenate(arrays, axis=int(node.attributes["axis"])),
    "ConstantOfShape": _filled,
    "Gather": lambda node, arrays: np.take(arrays[0], arrays[1], axis=int(node.attributes.get("axis", 0))),
    "Identity": lambda node, arrays: arrays[0],
    "Mul": lambda node, arrays: arrays[0] * arrays[1],
    "Reshape": lambda node, arrays: arrays[0].reshape([int(each) for each in arrays[1]]),
    "Slice": _cut,
    "Squeeze": _squeezed,
    "Sub": lambda node, arrays: arrays[0] - arrays[1],
    "Transpose": lambda node, arrays: arrays[0].transpose(node.attributes.get("perm")),
    "Unsqueeze": _unsqueezed,
}
FOLDS = frozenset((*ARITHMETIC, "Constant", "Shape"))
"""What can be worked out beforehand."""


def _nothing(made: Making, node: OnnxNode) -> None:
    made.write(node, made.read(node))


def _flatten(made: Making, node: OnnxNode) -> None:
    value = made.read(node)
    axis = int(node.attributes.get("axis", 1))
    axis = axis + len(value.shape) if axis < 0 else axis
    shape = (math.prod(value.shape[:axis]), math.prod(value.shape[axis:]))
    made.write(node, made.reshaped(value, shape))


def _reshape(made: Making, node: OnnxNode) -> None:
    value = made.read(node)
    goal = [int(each) for each in made.needed(node, 1, "shape").reshape(-1)]
    if not int(node.attributes.get("allowzero", 0)):
        goal = [value.shape[at] if size == 0 else size for at, size in enumerate(goal)]
    if goal.count(-1) == 1:
        rest = -math.prod(goal)
        if rest <= 0 or math.prod(value.shape) % rest:
            raise ValueError(f"{value.shape} does not become {goal}")
        goal[goal.index(-1)] = math.prod(value.shape) // rest
    made.write(node, made.reshaped(value, tuple(goal)))


def _axes(made: Making, node: OnnxNode) -> list[int] | None:
    given = made.fixed(node, 1, "axes")
    return axes_of(made, node, [np.zeros(0)] if given is None else [np.zeros(0), given])


def _squeeze(made: Making, node: OnnxNode) -> None:
    value = made.read(node)
    made.write(node, made.reshaped(value, squeezed(value.shape, _axes(made, node))))


def _unsqueeze(made: Making, node: OnnxNode) -> None:
    value = made.read(node)
    made.write(node, made.reshaped(value, unsqueezed(value.shape, _axes(made, node) or [])))


def _transpose(made: Making, node: OnnxNode) -> None:
    value = made.read(node)
    turned = [int(each) for each in node.attributes.get("perm") or reversed(natural(value.shape))]
    if sorted(turned) != list(natural(value.shape)):
        raise ValueError(f"axes {turned} for a value of the shape {value.shape}")
    shape = tuple(value.shape[axis] for axis in turned)
    made.write(node, Held(value.name, shape, tuple(turned.index(axis) for axis in value.order)))


def _cast_value(made: Making, node: OnnxNode) -> None:
    if CASTS.get(int(node.attributes["to"])) is not np.float32:
        raise ValueError("it makes integers of what is computed")
    _nothing(made, node)


def _pad(made: Making, node: OnnxNode) -> None:
    value = made.read(node)
    rank = len(value.shape)
    given = made.fixed(node, 1, "pads")
    flat = [int(each) for each in (given.reshape(-1) if given is not None else node.attributes["pads"])]
    fill = made.fixed(node, 2, "value")
    axes = made.fixed(node, 3, "axes")
    if axes is not None:
        named = [int(axis) % rank for axis in axes]
        whole = [0] * (2 * rank)
        for at, axis in enumerate(named):
            whole[axis], whole[rank + axis] = flat[at], flat[len(named) + at]
        flat = whole
    if str(node.attributes.get("mode", "constant")) != "constant" or len(flat) != 2 * rank or min(flat) < 0:
        raise ValueError(f"pads of {flat} in the mode {node.attributes.get('mode', 'constant')}")
    if (fill is not None and fill.size and float(fill.reshape(-1)[0])) or node.attributes.get("value"):
        raise ValueError("a value other than 0 around")
    if not any(flat):
        made.write(node, value)
        return
    x, _ = made.picture(value)
    by = [(flat[axis], flat[rank + axis]) for axis in range(rank)]
    channels, *places = by[1:]
    if by[0] != (0, 0):
        raise ValueError("pads of the batch")
    pads = (*([(0, 0)] if rank == 3 else []), *places, channels)
    shape = tuple(size + sum(pair) for size, pair in zip(made.tensors[x].shape, pads, strict=True))
    y = made.tensor(f"{made.fresh('Pad')}.y", shape)
    made.add(Pad(x, y, pads))
    made.write(node, made.depicted(y, rank))


def _part(made: Making, node: OnnxNode) -> None:
    """Slice and Gather along one axis: steps of a series, or channels."""
    value = made.read(node)
    rank, shape = len(value.shape), value.shape
    if node.kind == "Gather":
        index = np.asarray(made.needed(node, 1, "index"))
        axis = int(node.attributes.get("axis", 0)) % rank
        if index.size != 1:
            raise ValueError(f"{index.size} indices; one is supported")
        first, last = int(index.reshape(())) % shape[axis], int(index.reshape(())) % shape[axis] + 1
    else:
        index = np.zeros(1)
        ends = [made.needed(node, place, "bound").reshape(-1) for place in (1, 2)]
        named, steps = made.fixed(node, 3, "axes"), made.fixed(node, 4, "steps")
        if len(ends[0]) != 1 or (steps is not None and int(steps.reshape(-1)[0]) != 1):
            raise ValueError("several axes or steps other than 1")
        axis = 0 if named is None else int(named.reshape(-1)[0]) % rank
        size = shape[axis]
        first, last = (min(max(int(end[0]) + (size if int(end[0]) < 0 else 0), 0), size) for end in ends)
    if not first < last:
        raise ValueError("nothing is left")
    order = (axis, *(each for each in value.order if each != axis))
    rest = math.prod(shape) // shape[axis]
    x = made.laid(value, order, (shape[axis], rest))
    y = made.tensor(f"{made.fresh(node.kind)}.y", (last - first, rest))
    made.add(Part(x, y, first, last - first))
    sizes = tuple(last - first if each == axis else size for each, size in enumerate(shape))
    found = Held(y, sizes, order)
    if node.kind == "Gather" and not index.ndim:
        found = made.reshaped(found, tuple(size for each, size in enumerate(sizes) if each != axis) or (1,))
    made.write(node, found)


SHAPES: dict[str, Callable[[Making, OnnxNode], None]] = {
    "Cast": _cast_value,
    "Dropout": _nothing,
    "Flatten": _flatten,
    "Gather": _part,
    "Identity": _nothing,
    "Pad": _pad,
    "Reshape": _reshape,
    "Slice": _part,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
