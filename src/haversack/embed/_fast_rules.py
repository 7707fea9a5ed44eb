"""Layers with fast kernels as calls: tasks that threads can share, biases that hold the zero point."""

from __future__ import annotations

import math

import numpy as np

from haversack.embed._emission import Emission
from haversack.embed._variants import SPLIT_MACS, patches_name
from haversack.models.graph._ir import Conv2d, DepthwiseConv2d, Linear

FAST = frozenset(("conv2d_matmul", "depthwise_blocked", "dense_matmul"))
"""Kernels of int8_matmul.c.j2 and float_matmul.c.j2."""


def fast_layer(made: Emission, op: Linear, bounds: str) -> None:
    """The call of a layer's fast kernel; `bounds` are those of floats."""
    graph = made.graph
    weight, y = graph.tensors[op.weight], graph.tensors[op.y]
    macs = math.prod(y.shape[:-1]) * weight.size
    made.count("blocked" if isinstance(op, DepthwiseConv2d) else "matmul", macs)
    last = _scales(made, op, y.shape[-1]) if made.integer else bounds
    parts = [made.seen(op.x), made.held(op.weight), _bias(made, op), made.at(op.y)]
    if not isinstance(op, Conv2d):
        made.used.add("dense_matmul")
        parts += [str(weight.shape[1]), str(weight.shape[0]), last]
        made.call(f"nn_dense_matmul({', '.join(parts)})")
        return
    at = 0 if isinstance(op, DepthwiseConv2d) else 1
    name = "depthwise_blocked" if isinstance(op, DepthwiseConv2d) else "conv2d_matmul"
    made.used.add(name)
    window = made.window(op, op.x, op.y, (weight.shape[at], weight.shape[at + 1]), op.stride, op.pads)
    task, place = f"task{made.tasks}", made.plan.places().get(patches_name(op))
    made.tasks += 1
    kind = "int8_t" if made.integer else "float"
    patches = "0" if place is None else f"({kind} *)(nn_arena + {place[0]})"
    made.calls.append(f"    const nn_task {task} = {{{', '.join([*parts, patches, window, last])}}};\n")
    rows = y.shape[0]
    if made.threads > 1 and rows > 1 and macs >= SPLIT_MACS:
        made.used.add("split")
        made.call(f"nn_split(nn_{name}, &{task}, {rows})")
    else:
        made.call_rows(op, f"nn_{name}", f"&{task}", last=", 0")


def _scales(made: Emission, op: Linear, channels: int) -> str:
    factors = made.codes(op.x).scale * made.codes(op.weight).array() / made.codes(op.y).scale
    return made.scales(op, factors, op.y, channels)


def _bias(made: Emission, op: Linear) -> str:
    """Biases; those of codes less the zero point times the weights, where a kernel multiplies codes as they
    are. No sum leaves 32 bits: the products' sum alone cannot, and both together are what they were."""
    if not made.integer:
        return made.held(op.bias)
    weight = made.graph.constants[op.weight].astype(np.int64)
    if isinstance(op, DepthwiseConv2d):
        if op.bias is not None:
            return made.held(op.bias)
        return made.constant(f"{op.y}.zeros", np.zeros(weight.shape[-1], np.int32))
    sums = weight.reshape(len(weight), -1).sum(axis=1)
    bias = 0 if op.bias is None else made.graph.constants[op.bias].astype(np.int64)
    moved = bias - made.codes(op.x).zero * sums
    return made.constant(f"{op.y}.sums", moved.astype(np.int32))
