"""Passes over a graph that change nothing it computes: dead operations go, permutations before a dense layer
go into its weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from haversack.models.graph._ir import FullyConnected, Graph, Op, Reshape
from haversack.models.graph._moves import Permute


def tidied(graph: Graph) -> Graph:
    """Both passes; parameters are all constants that are left."""
    return alive(_turned(graph))


def alive(graph: Graph) -> Graph:
    """Without operations and constants that no output needs."""
    needed, ops = set(graph.outputs), []
    for op in reversed(graph.ops):
        if needed.intersection(op.writes):
            ops.append(op)
            needed.update(op.reads)
    ops.reverse()
    names = {name for op in ops for name in (*op.reads, *op.writes)} | {*graph.inputs, *graph.outputs}
    constants = {name: values for name, values in graph.constants.items() if name in names}
    tensors = {name: tensor for name, tensor in graph.tensors.items() if name in names}
    return replace(graph, tensors=tensors, ops=tuple(ops), constants=constants, parameters=tuple(constants))


def _turned(graph: Graph) -> Graph:
    """Dense layers that read permuted numbers take them as they were, with their columns permuted."""
    makers = {name: op for op in graph.ops for name in op.writes}
    tensors, constants = dict(graph.tensors), dict(graph.constants)
    ops: list[Op] = []
    for op in graph.ops:
        if isinstance(op, FullyConnected):
            maker = makers.get(op.x)
            while isinstance(maker, Reshape):
                maker = makers.get(maker.x)
            if isinstance(maker, Permute):
                shape = graph.tensors[maker.x].shape
                place = np.arange(int(np.prod(shape))).reshape(shape).transpose(maker.axes).reshape(-1)
                weight = np.empty_like(constants[op.weight])
                weight[:, place] = constants[op.weight]
                name, flat = f"{op.weight}.turned", f"{maker.x}.flat.{op.y}"
                constants[name] = weight
                tensors[name] = replace(tensors[op.weight], name=name)
                tensors[flat] = replace(tensors[maker.x], name=flat, shape=(weight.shape[1],))
                ops.append(Reshape(maker.x, flat))
                op = replace(op, x=flat, weight=name)
        ops.append(op)
    return replace(graph, tensors=tensors, ops=tuple(ops), constants=constants)
