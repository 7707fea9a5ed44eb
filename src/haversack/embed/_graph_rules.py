"""What each operation of a graph becomes in C: a call of its kernel, the constants and scales that it
names."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from haversack.core.errors import UserError
from haversack.embed._c import literal
from haversack.embed._emission import Emission
from haversack.embed._fast_rules import fast_layer
from haversack.embed._layers import kernel_of, scratch_of
from haversack.embed._move_rules import MOVE_RULES
from haversack.models.graph._integer import multiplier
from haversack.models.graph._ir import (
    Add,
    AveragePool,
    Clamp,
    Conv2d,
    DepthwiseConv2d,
    Dequantize,
    FullyConnected,
    Linear,
    MaxPool,
    Mean,
    Op,
    Pad,
    Reshape,
    Softmax,
)
from haversack.models.graph._softmax import MOST, fixed_powers, softmax_powers
from haversack.models.graph.series import Activation, Recurrent, layer_of
from haversack.models.series.recurrent import Dense, Lstm


def refuse_mixed(made: Emission, op: Op) -> None:
    """Raises UserError where an operation of codes has a neighbour in floats."""
    dtypes = {made.graph.tensors[name].dtype for name in (op.reads[0], op.writes[0])}
    if len(dtypes) > 1 or (made.integer and dtypes != {"int8"}):
        raise UserError(
            f"{type(op).__name__} (it writes {op.writes[0]}) mixes {' and '.join(sorted(dtypes))}, which "
            f"has no C "
            "kernel; only Dequantize leads from int8 to floats.",
            field="model",
            given=type(op).__name__,
        )


def bounds(op: Any) -> str:
    """`low, high` of an operation of floats."""
    ends = []
    for value in (op.low, op.high):
        infinite = "-INFINITY" if value < 0 else "INFINITY"
        ends.append(infinite if math.isinf(value) else literal(value, "float32"))
    return ", ".join(ends)


def _linear(made: Emission, op: Linear) -> None:
    if made.integer and isinstance(op, FullyConnected) and made.graph.tensors[op.x].dtype == "f32":
        _float_head(made, op)
        return
    refuse_mixed(made, op)
    if made.choices.get(op.y, "direct") != "direct":
        fast_layer(made, op, bounds(op))
        return
    graph = made.graph
    weight, y = graph.tensors[op.weight], graph.tensors[op.y]
    channels = y.shape[-1]
    made.count("direct", math.prod(y.shape[:-1]) * weight.size)
    parts = [made.seen(op.x), made.held(op.weight), made.held(op.bias), made.at(op.y)]
    if isinstance(op, Conv2d):
        at = 0 if isinstance(op, DepthwiseConv2d) else 1
        kernel = (weight.shape[at], weight.shape[at + 1])
        parts.append(made.window(op, op.x, op.y, kernel, op.stride, op.pads))
        name = "depthwise" if isinstance(op, DepthwiseConv2d) else "conv2d"
    else:
        parts += [str(weight.shape[1]), str(weight.shape[0])]
        name = "dense"
    made.used.add(name)
    if made.integer:
        factors = made.codes(op.x).scale * made.codes(op.weight).array() / made.codes(op.y).scale
        ends = made.scales(op, factors, op.y, channels)
        if isinstance(op, Conv2d):
            made.call_rows(op, f"nn_{name}", *parts, ends)
        else:
            made.call(f"nn_{name}({', '.join([*parts, ends])})")
        return
    if not isinstance(op, Conv2d):
        if op.bias is None:
            parts[2] = made.constant(f"{op.y}.zeros", np.zeros(channels, np.float32))
        made.call(f"nn_dense({', '.join(parts)})")
        if math.isfinite(op.low) or math.isfinite(op.high):
            made.used.add("clamp")
            made.call(f"nn_clamp({parts[3]}, {parts[3]}, {channels}, {bounds(op)})")
        return
    made.call_rows(op, f"nn_{name}", *parts, bounds(op))


def _float_head(made: Emission, op: FullyConnected) -> None:
    """A dense layer of floats behind codes: the classifier that a training on the device leaves."""
    outputs, inputs = made.graph.tensors[op.weight].shape
    if math.isfinite(op.low) or math.isfinite(op.high):
        raise UserError(
            f"FullyConnected (it writes {op.y}) is a layer of floats with bounds behind codes, which has "
            "no C kernel.",
            field="model",
            given="FullyConnected",
        )
    made.count("direct", inputs * outputs)
    made.used.add("dense_f32")
    bias = made.held(op.bias)
    if op.bias is None:
        bias = made.constant(f"{op.y}.zeros", np.zeros(outputs, np.float32))
    parts = f"{made.seen(op.x)}, {made.held(op.weight)}, {bias}, {made.at(op.y)}, {inputs}, {outputs}"
    made.call(f"nn_dense_f32({parts})")


def _add(made: Emission, op: Add) -> None:
    refuse_mixed(made, op)
    made.used.add("add")
    count = made.graph.tensors[op.y].size
    parts = f"{made.seen(op.x)}, {made.seen(op.other)}, {made.at(op.y)}, {count}"
    if not made.integer:
        made.call(f"nn_add({parts}, {bounds(op)})")
        return
    one, two, y = (made.codes(name) for name in (op.x, op.other, op.y))
    name = f"sum{len(made.calls)}"
    ends = f"{max(op.low, -128):.0f}, {min(op.high, 127):.0f}"
    if made.graph.rounding == "fixed":
        twice = 2 * max(one.scale, two.scale)
        pairs = [multiplier(s) for s in (one.scale / twice, two.scale / twice, twice / ((1 << 20) * y.scale))]
        last = "{{{}}}, {{{}}}".format(*tuple(", ".join(str(pair[at]) for pair in pairs) for at in (0, 1)))
    else:
        last = "{{{}}}".format(", ".join(literal(codes.scale, "float32") for codes in (one, two, y)))
    made.calls.append(
        f"    static const nn_sum {name} = {{{one.zero}, {two.zero}, {y.zero}, {ends}, {last}}};\n"
    )
    made.call(f"nn_add({parts}, &{name})")


def _pool(made: Emission, op: AveragePool | MaxPool) -> None:
    refuse_mixed(made, op)
    place = made.window(op, op.x, op.y, op.size, op.stride, op.pads)
    parts = f"{made.seen(op.x)}, {made.at(op.y)}, {place}"
    if made.integer and isinstance(op, AveragePool):
        made.used.add("average_pool")
        ends = f"{max(op.low, -128):.0f}, {min(op.high, 127):.0f}"
        made.call(f"nn_average_pool({parts}, {ends}, {int(op.rounding == 'even')})")
        return
    if made.integer:
        made.used.add("max_pool")
        made.call(f"nn_max_pool({parts})")
        return
    largest = isinstance(op, MaxPool)
    made.used.add("max_pool" if largest else "average_pool")
    made.call(f"nn_pool({parts}, {int(largest)})")
    if isinstance(op, AveragePool) and (math.isfinite(op.low) or math.isfinite(op.high)):
        made.used.add("clamp")
        count = made.graph.tensors[op.y].size
        made.call(f"nn_clamp({made.seen(op.y)}, {made.at(op.y)}, {count}, {bounds(op)})")


def _mean(made: Emission, op: Mean) -> None:
    refuse_mixed(made, op)
    made.used.add("mean")
    height, width, channels = made.graph.tensors[op.x].shape
    count = 1 if op.summed else height * width
    parts = f"{made.seen(op.x)}, {made.at(op.y)}, {height * width}, {channels}"
    if not made.integer:
        made.call(f"nn_mean({parts}, {literal(1 / count, 'float32')})")
        return
    one, y = made.codes(op.x), made.codes(op.y)
    name = f"average{len(made.calls)}"
    if made.graph.rounding == "fixed":
        m, shift = multiplier(one.scale / y.scale)
        folded = min(count.bit_length() - 1, 32, 31 + shift)
        last = f"{(m << folded) // count}, {shift - folded}"
    else:
        last = f"{count}, {literal(one.scale / y.scale, 'float64')}"
    made.calls.append(f"    static const nn_average {name} = {{{one.zero}, {y.zero}, {last}}};\n")
    made.call(f"nn_mean({parts}, &{name})")


def _reshape(made: Emission, op: Reshape) -> None:
    places = made.plan.places()
    if places[op.x][0] != places[op.y][0]:
        made.call(f"memcpy({made.at(op.y)}, {made.seen(op.x)}, {places[op.y][1]})")


def _pad(made: Emission, op: Pad) -> None:
    x, y = made.graph.tensors[op.x], made.graph.tensors[op.y]
    shape, goal = x.shape, y.shape
    while len(shape) < 3:
        shape, goal = (1, *shape), (1, *goal)
    pads = ((0, 0),) * (3 - len(op.pads)) + tuple(op.pads)
    made.used.add("pad")
    fill = made.codes(op.x).zero if x.dtype == "int8" else 0
    inside = f"{pads[0][0]}, {pads[1][0]}, {pads[2][0]}"
    made.call(
        f"nn_pad({made.seen(op.x)}, {made.at(op.y)}, {shape[0]}, {shape[1]}, {shape[2]}, {goal[0]}, "
        f"{goal[1]}, "
        f"{goal[2]}, {inside}, {fill})"
    )


def _clamp(made: Emission, op: Clamp) -> None:
    refuse_mixed(made, op)
    made.used.add("clamp")
    count = made.graph.tensors[op.y].size
    parts = f"{made.seen(op.x)}, {made.at(op.y)}, {count}"
    if not made.integer:
        made.call(f"nn_clamp({parts}, {bounds(op)})")
        return
    ratio = np.array([made.codes(op.x).scale / made.codes(op.y).scale])
    made.call(f"nn_clamp({parts}, {made.scales(op, ratio, op.y, 1)})")


def _softmax(made: Emission, op: Softmax) -> None:
    refuse_mixed(made, op)
    shape = made.graph.tensors[op.y].shape
    rows, count = math.prod(shape[:-1]), shape[-1]
    if made.integer:
        made.used.add("softmax")
        one, y = made.codes(op.x), made.codes(op.y)
        fixed, scale = made.graph.rounding == "fixed", one.scale * op.beta
        if fixed and count > MOST:
            raise UserError(
                f"Softmax (it writes {op.y}) over {count} codes has no C kernel ({MOST} at most).",
                field="model",
                given=count,
                nearest=MOST,
            )
        powers = fixed_powers(scale).astype(np.int32) if fixed else softmax_powers(scale)
        last = "" if fixed else f", {literal(y.scale, 'float32')}, {y.zero}"
        table = made.constant(f"{op.y}.powers", powers)
        made.call(f"nn_softmax({made.seen(op.x)}, {made.at(op.y)}, {rows}, {count}, {table}{last})")
        return
    _activated(made, op.x, op.y, "softmax", op.beta)


def _activated(made: Emission, x: str, y: str, name: str, beta: float = 1.0) -> None:
    shape = made.graph.tensors[y].shape
    size, places = made.graph.tensors[y].size, made.plan.places()
    if places[x][0] != places[y][0]:
        made.call(f"memcpy({made.at(y)}, {made.seen(x)}, {places[y][1]})")
    if beta != 1.0:
        raise UserError(
            f"softmax with beta {beta:g} has no C kernel for floats (1 has).", field="model", given=beta
        )
    if name == "linear":
        return
    made.functions.add(name)
    rows = math.prod(shape[:-1]) if name == "softmax" else 1
    if rows == 1:
        made.call(f"nn_{name}({made.at(y)}, {size})")
        return
    made.calls.append(f"    for (int row = 0; row < {rows}; row++)\n")
    made.calls.append(f"        nn_softmax({made.at(y)} + row * {shape[-1]}, {shape[-1]});\n")


def _activation(made: Emission, op: Activation) -> None:
    refuse_mixed(made, op)
    _activated(made, op.x, op.y, op.name)


def _dequantize(made: Emission, op: Dequantize) -> None:
    made.used.add("dequantize")
    codes, count = made.codes(op.x), made.graph.tensors[op.y].size
    made.call(
        f"nn_dequantize({made.seen(op.x)}, {made.at(op.y)}, {count}, {codes.zero}, "
        f"{literal(codes.scale, 'float32')})"
    )


def _recurrent(made: Emission, op: Recurrent) -> None:
    layer = layer_of(op, made.graph.constants)
    assert not isinstance(layer, Dense)
    steps, features = made.graph.tensors[op.x].shape
    units = layer.units
    made.layers.append(layer)
    made.count("direct", steps * (layer.kernel.size + layer.recurrent.size))
    kernel = made.constant(op.kernel, np.ascontiguousarray(layer.kernel.T, np.float32))
    recurrent = made.constant(op.recurrent, np.ascontiguousarray(layer.recurrent.T, np.float32))
    bias = made.constant(op.bias, layer.bias.astype(np.float32))
    size = 2 * units if isinstance(layer, Lstm) else units
    first = made.state
    made.state += size
    made.scratch = max(made.scratch, scratch_of(layer))
    if not op.carry:
        made.call(f"memset(state + {first}, 0, {4 * size})")
    goal = f"{made.at(op.y)} + at * {units}" if op.sequences else made.at(op.y)
    arguments = f"{kernel}, {recurrent}, {bias}, after + {first}, scratch, {features}, {units}"
    lines = [
        f"memcpy(after + {first}, state + {first}, {4 * size});",
        f"for (int at = 0; at < {steps}; at++) {{",
        f"    {kernel_of(layer)}({made.seen(op.x)} + at * {features}, after + {first}, {arguments});",
    ]
    if op.sequences:
        lines.append(f"    memcpy({goal}, after + {first}, {4 * units});")
    lines.append("}")
    if not op.sequences:
        lines.append(f"memcpy({goal}, after + {first}, {4 * units});")
    if op.carry:
        lines.append("if (storing)")
        lines.append(f"    memcpy(state + {first}, after + {first}, {4 * size});")
    made.calls += [f"    {line}\n" for line in lines]


RULES: dict[type[Op], Callable[[Emission, Any], None]] = {
    Activation: _activation,
    Add: _add,
    AveragePool: _pool,
    Clamp: _clamp,
    Conv2d: _linear,
    Dequantize: _dequantize,
    DepthwiseConv2d: _linear,
    FullyConnected: _linear,
    MaxPool: _pool,
    Mean: _mean,
    Pad: _pad,
    Recurrent: _recurrent,
    Reshape: _reshape,
    Softmax: _softmax,
    **MOVE_RULES,
}
