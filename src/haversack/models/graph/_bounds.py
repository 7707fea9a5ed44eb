"""Bounds as operations of their own: they have a way back of their own."""

from __future__ import annotations

import math
from dataclasses import replace

from haversack.models.graph._ir import Add, AveragePool, Clamp, Graph, Op
from haversack.models.graph.series import Activation

BOUNDS = {"relu": (0.0, math.inf), "relu6": (0.0, 6.0), "linear": (-math.inf, math.inf)}


def bounds_apart(graph: Graph) -> Graph:
    """`graph` with a clamp behind every sum and mean that has bounds, and for every ReLU: the same values."""
    tensors, ops = dict(graph.tensors), list[Op]()
    for op in graph.ops:
        if isinstance(op, Activation) and op.name in BOUNDS:
            ops.append(Clamp(op.x, op.y, *BOUNDS[op.name]))
        elif isinstance(op, Add | AveragePool) and _binds(graph, op):
            before = f"{op.y}.unbounded"
            tensors[before] = replace(tensors[op.y], name=before)
            wide = (-128.0, 127.0) if tensors[op.y].dtype == "int8" else (-math.inf, math.inf)
            ops += [
                replace(op, y=before, low=wide[0], high=wide[1]),
                Clamp(before, op.y, op.low, op.high),
            ]
        else:
            ops.append(op)
    return replace(graph, tensors=tensors, ops=tuple(ops))


def _binds(graph: Graph, op: Add | AveragePool) -> bool:
    if graph.tensors[op.y].dtype == "int8":
        return op.low > -128 or op.high < 127
    return math.isfinite(op.low) or math.isfinite(op.high)
