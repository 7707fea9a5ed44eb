"""Operations that move numbers or join two tensors, as calls of their C kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from haversack.core.errors import UserError
from haversack.embed._c import literal
from haversack.embed._emission import C_TYPES, Emission
from haversack.models.graph._ir import Op
from haversack.models.graph._moves import Multiply, Part, Permute, Put, Shift

AXES = 4
MOVERS = frozenset(("permute", "multiply", "shift"))
"""Kernels of moves.c.j2."""


def _permute(made: Emission, op: Permute) -> None:
    """Sizes of y and, for each of its axes, how far a step goes in x."""
    x = made.graph.tensors[op.x].shape
    steps = [math.prod(x[axis + 1 :]) for axis in range(len(x))]
    sizes = [x[axis] for axis in op.axes]
    strides = [steps[axis] for axis in op.axes]
    if len(sizes) > AXES:
        raise UserError(
            f"Permute (it writes {op.y}) turns {len(sizes)} axes; {AXES} have a C kernel.",
            field="model",
            given=len(sizes),
            nearest=AXES,
        )
    blank = AXES - len(sizes)
    numbers = ", ".join(str(each) for each in [1] * blank + sizes + [0] * blank + strides)
    made.used.add("permute")
    made.call(f"nn_permute({made.seen(op.x)}, {made.at(op.y)}, {numbers})")


def _part(made: Emission, op: Part) -> None:
    tensor = made.graph.tensors[op.y]
    kind = C_TYPES[tensor.dtype]
    first = op.first * (tensor.size // op.count)
    made.call(f"memcpy({made.at(op.y)}, {made.seen(op.x)} + {first}, {tensor.size} * sizeof({kind}))")


def _put(made: Emission, op: Put) -> None:
    y, other = made.graph.tensors[op.y], made.graph.tensors[op.other]
    kind, places = C_TYPES[y.dtype], made.plan.places()
    if op.x is not None and places[op.x][0] != places[op.y][0]:
        made.call(f"memcpy({made.at(op.y)}, {made.seen(op.x)}, {y.nbytes})")
    first = op.first * (y.size // y.shape[0])
    made.call(f"memcpy({made.at(op.y)} + {first}, {made.seen(op.other)}, {other.size} * sizeof({kind}))")


def _join(made: Emission, op: Multiply | Shift) -> None:
    if made.integer:
        raise UserError(
            f"{type(op).__name__} (it writes {op.y}) has no C kernel for codes; floats have one.",
            field="model",
            given=type(op).__name__,
        )
    name = type(op).__name__.lower()
    made.used.add(name)
    count, other = made.graph.tensors[op.y].size, made.graph.tensors[op.other].size
    second = made.held(op.other) if op.other in made.graph.constants else made.seen(op.other)
    parts = f"{made.seen(op.x)}, {second}, {made.at(op.y)}, {count}, {other}"
    last = f", {literal(op.factor, 'float32')}" if isinstance(op, Shift) else ""
    made.call(f"nn_{name}({parts}{last})")


MOVE_RULES: dict[type[Op], Callable[[Emission, Any], None]] = {
    Multiply: _join,
    Part: _part,
    Permute: _permute,
    Put: _put,
    Shift: _join,
}
