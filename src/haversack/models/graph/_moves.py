"""Operations that move numbers or join two tensors: permuted axes, a part of a tensor, products, a tensor for
each channel.

They stand beside those of _ir.py and take floats; Permute, Part and Put take codes as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.models.graph._ir import Op

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Permute(Op):
    """The axes of x (those of one example) in another order: axis i of y is axis `axes[i]` of x."""

    READS = ("x",)
    x: str
    y: str
    axes: tuple[int, ...]


@dataclass(frozen=True)
class Part(Op):
    """What `count` numbers from `first` on along the axis 0 of x (of one example) hold."""

    READS = ("x",)
    x: str
    y: str
    first: int
    count: int


@dataclass(frozen=True)
class Put(Op):
    """`x`, or nothing yet, with the rows of `other` from row `first` on (axis 0 of one example)."""

    READS = ("x", "other")
    IN_PLACE = "x"
    x: str | None
    other: str
    y: str
    first: int


@dataclass(frozen=True)
class Multiply(Op):
    """x times other, of one shape, or other [channels] for the last axis of x; other may be a constant."""

    READS = ("x", "other")
    IN_PLACE = "x"
    x: str
    other: str
    y: str


@dataclass(frozen=True)
class Shift(Op):
    """x + factor * other, other [channels] for the last axis of x."""

    READS = ("x", "other")
    IN_PLACE = "x"
    x: str
    other: str
    y: str
    factor: float = 1.0


def _spread(x: Array, other: Array) -> Array:
    """`other` against x, rows (1 for a constant) in front of both."""
    if other.shape[1:] == x.shape[1:]:
        return other
    return other.reshape(len(other), *(1,) * (x.ndim - 2), x.shape[-1])


Values = Mapping[str, Array]
Shape = tuple[int, ...]


def _permuted(op: Permute, values: Values, shape: Shape) -> Array:
    found: Array = values[op.x].transpose(0, *(axis + 1 for axis in op.axes))
    return found


def _part(op: Part, values: Values, shape: Shape) -> Array:
    found: Array = values[op.x][:, op.first : op.first + op.count]
    return found


def _put(op: Put, values: Values, shape: Shape) -> Array:
    """Rows that nothing wrote yet are 0."""
    other = values[op.other]
    found: Array = np.zeros((len(other), *shape), other.dtype) if op.x is None else values[op.x].copy()
    found[:, op.first : op.first + other.shape[1]] = other
    return found


def _multiplied(op: Multiply, values: Values, shape: Shape) -> Array:
    found: Array = values[op.x] * _spread(values[op.x], values[op.other])
    return found


def _shifted(op: Shift, values: Values, shape: Shape) -> Array:
    x, other = values[op.x], values[op.other]
    found: Array = x + x.dtype.type(op.factor) * _spread(x, other)
    return found


MOVES: dict[type[Op], Callable[[Any, Values, Shape], Array]] = {
    Multiply: _multiplied,
    Part: _part,
    Permute: _permuted,
    Put: _put,
    Shift: _shifted,
}
"""What each computes of `values`, rows in front, for a result of `shape`."""


def moved(op: Op, values: dict[str, Any], constants: Values, shape: Shape) -> None:
    """Run one of MOVES; y gets its `shape`."""
    read = {name: constants[name][None] if name in constants else values[name] for name in op.reads}
    found = MOVES[type(op)](op, read, shape)
    values[op.writes[0]] = np.ascontiguousarray(found).reshape(len(found), *shape)
