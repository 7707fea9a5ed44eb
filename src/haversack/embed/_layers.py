"""Stacks of recurrent and dense layers as C: their arrays, the kernels that they use, the calls of one
step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from haversack.embed._c import array, rendered
from haversack.models.series.recurrent import Dense, Gru, Layer, Lstm, parameter_count

NUMPY = {"f32": np.float32, "f64": np.float64}


@dataclass(frozen=True)
class Stack:
    """The C of a stack. `calls` compute one step from `x` and the states `h` to `next` and `y`; `state` and
    `scratch` are counts of numbers."""

    weights: str
    kernels: str
    calls: str
    state: int
    scratch: int
    parameters: int
    macs: int


def kernel_of(layer: Layer) -> str:
    """The C function of a layer."""
    if isinstance(layer, Dense):
        return "nn_dense"
    if isinstance(layer, Gru):
        order = "after" if layer.reset_after else "before"
        return f"nn_gru_{layer.activation}_{layer.gate}_{order}"
    if isinstance(layer, Lstm):
        return f"nn_lstm_{layer.activation}_{layer.gate}"
    return f"nn_simple_rnn_{layer.activation}"


def scratch_of(layer: Layer) -> int:
    """Numbers that a layer's kernel works in."""
    if isinstance(layer, Gru):
        return (6 if layer.reset_after else 4) * layer.units
    return {Lstm: 5, Dense: 0}.get(type(layer), 1) * layer.units


def kernels(layers: Sequence[Layer], dtype: str) -> str:
    """The functions that `layers` call, each once, in an order in which C can read them."""
    functions = {layer.activation for layer in layers} | {
        layer.gate for layer in layers if isinstance(layer, Gru | Lstm)
    }
    found = [rendered("activations.c.j2", dtype, names=sorted(functions)).strip("\n")]
    found.append(rendered("dense.c.j2", dtype).strip("\n"))
    seen: set[str] = set()
    for layer in layers:
        name = kernel_of(layer)
        if isinstance(layer, Dense) or name in seen:
            continue
        seen.add(name)
        values = {"activation": layer.activation, "gate": getattr(layer, "gate", "")}
        values["reset_after"] = isinstance(layer, Gru) and layer.reset_after
        template = {Gru: "gru", Lstm: "lstm"}.get(type(layer), "simple_rnn")
        found.append(rendered(f"{template}.c.j2", dtype, **values).strip("\n"))
    return "\n\n".join(part for part in found if part) + "\n"


def stack(layers: Sequence[Layer], dtype: str = "f32") -> Stack:
    """`layers` as C in numbers of `dtype`."""
    kind = NUMPY[dtype]
    weights, calls = [], []
    state, source, values = 0, "x", 0
    real = {"f32": "float", "f64": "double"}[dtype]
    buffers = []
    for at, layer in enumerate(layers):
        inputs, units, tag = int(layer.kernel.shape[0]), layer.units, f"layer{at}"
        last = at == len(layers) - 1
        about = f"{type(layer).__name__} {inputs} -> {units}"
        weights.append(array(f"{tag}_w", np.ascontiguousarray(layer.kernel.T, kind), about=about))
        if not isinstance(layer, Dense):
            weights.append(array(f"{tag}_u", np.ascontiguousarray(layer.recurrent.T, kind)))
        weights.append(array(f"{tag}_b", layer.bias.astype(kind)))
        if isinstance(layer, Dense):
            goal = "y" if last else f"v{at}"
            calls.append(f"    nn_dense({source}, {tag}_w, {tag}_b, {goal}, {inputs}, {units});")
            if layer.activation != "linear":
                calls.append(f"    nn_{layer.activation}({goal}, {units});")
            if not last:
                buffers.append(f"    {real} v{at}[{units}];")
            source = goal
            continue
        calls.append(
            f"    {kernel_of(layer)}({source}, h + {state}, {tag}_w, {tag}_u, {tag}_b, next + {state}, "
            f"scratch, "
            f"{inputs}, {units});"
        )
        source = f"next + {state}" if state else "next"
        state += 2 * units if isinstance(layer, Lstm) else units
        if last:
            calls.append(f"    for (int i = 0; i < {units}; i++)\n        y[i] = ({source})[i];")
        values += units
    macs = sum(int(layer.kernel.size) for layer in layers)
    macs += sum(int(layer.recurrent.size) for layer in layers if not isinstance(layer, Dense))
    scratch = max(scratch_of(layer) for layer in layers)
    if not scratch:
        buffers.append("    (void)scratch;")
    if not state:
        buffers.append("    next[0] = h[0];")
    text = "\n".join([*buffers, *calls]) + "\n"
    return Stack(
        "\n".join(weights),
        kernels(layers, dtype),
        text,
        max(state, 1),
        max(scratch, 1),
        parameter_count(layers),
        macs,
    )
