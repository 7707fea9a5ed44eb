"""A graph as C: its calls in order, the kernels and types that they need, the files.

Floats and codes share the windows and the calls; scales of codes become fixed-point multipliers or 32-bit
factors, as the graph's rounding rule says, worked out with the functions that run the graph in numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from haversack.core.errors import UserError
from haversack.embed._c import rendered
from haversack.embed._emission import C_TYPES, Emission
from haversack.embed._fast_rules import FAST
from haversack.embed._graph_rules import RULES
from haversack.embed._layers import kernels as layer_kernels
from haversack.embed._move_rules import MOVERS
from haversack.models.graph._ir import Graph
from haversack.models.graph.plan import Arena, arena, lifetimes
from haversack.models.graph.series import Recurrent
from haversack.models.series.recurrent import Dense, Gru, Layer, Lstm

SCALES = {
    "fixed": "typedef struct "
    "{\n    int zero_x, zero, low, high;\n    const int32_t *multipliers;\n    const int8_t *shifts;\n} "
    "nn_scales;\n",
    "float": "typedef struct {\n    int zero_x, zero, low, high;\n    const float *factors;\n} nn_scales;\n",
}
SUMS = {
    "fixed": "typedef struct {\n    int zero_x, zero_other, zero, low, high, m[3], shift[3];\n} nn_sum;\n",
    "float": "typedef struct {\n    int zero_x, zero_other, zero, low, high;\n    float scale[3];\n} "
    "nn_sum;\n",
}
AVERAGES = {
    "fixed": "typedef struct {\n    int zero_x, zero, m, shift;\n} nn_average;\n",
    "float": "typedef struct {\n    int zero_x, zero, count;\n    double ratio;\n} nn_average;\n",
}

TASKS = {
    True: "typedef struct {\n    const int8_t *x, *weights;\n    const int32_t *bias;\n    int8_t *y, "
    "*patches;\n    const nn_window *window;\n    const nn_scales *scales;\n} nn_task;\n",
    False: "typedef struct {\n    const float *x, *weights, *bias;\n    float *y, *patches;\n    const "
    "nn_window *window;\n    float low, high;\n} nn_task;\n",
}


def emission(
    graph: Graph, plan: Arena | None = None, choices: Mapping[str, str] | None = None, threads: int = 1
) -> Emission:
    """`graph` as C, with the kernels of `choices` (_variants.py) where they are not the plain ones; then
    `plan` holds their patches.

    Raises UserError for an operation or a mix of types that has no kernel, naming it.
    """
    plan = arena(lifetimes(graph)) if plan is None else plan
    integer = graph.tensors[graph.inputs[0]].dtype == "int8"
    made = Emission(graph, plan, integer, choices=choices or {}, threads=threads)
    source, goal = graph.inputs[0], graph.outputs[0]
    made.call(f"memcpy({made.at(source)}, input, sizeof(nn_input) * NN_INPUTS)")
    for number, op in enumerate(graph.ops):
        rule = RULES.get(type(op))
        if rule is None:
            raise UserError(
                f"operation {number} of {graph.name} is a {type(op).__name__} (it writes {op.writes[0]}), "
                f"which has no "
                f"C kernel (there is one for {', '.join(sorted(kind.__name__ for kind in RULES))}).",
                field="model",
                given=type(op).__name__,
            )
        made.calls.append(f"    /* {type(op).__name__}: {op.writes[0]} */\n")
        rule(made, op)
    made.call(f"memcpy(output, {made.seen(goal)}, sizeof(nn_output) * NN_OUTPUTS)")
    return made


def kernel_text(made: Emission) -> str:
    """The functions that the calls need, each once."""
    parts = []
    functions = set(made.functions)
    for layer in made.layers:
        functions |= {layer.activation} | ({layer.gate} if isinstance(layer, Gru | Lstm) else set())
    if made.layers:
        parts.append(layer_kernels([*made.layers, *_named(functions)], "f32"))
    else:
        if functions:
            parts.append(rendered("activations.c.j2", names=sorted(functions)))
        if "dense" in made.used and not made.integer:
            parts.append(rendered("dense.c.j2"))
    if "dense_f32" in made.used:
        parts.append(rendered("dense.c.j2", name="nn_dense_f32"))
    if "pad" in made.used:
        kind = C_TYPES["int8" if made.integer else "f32"]
        parts.append(rendered("pad.c.j2", kind=kind))
    if made.used & MOVERS:
        parts.append(rendered("moves.c.j2", used=made.used, kind=C_TYPES["int8" if made.integer else "f32"]))
    template = "int8_ops.c.j2" if made.integer else "float_ops.c.j2"
    parts.append(rendered(template, used=made.used, rounding=made.graph.rounding))
    if made.used & FAST:
        template = "int8_matmul.c.j2" if made.integer else "float_matmul.c.j2"
        parts.append(rendered(template, used=made.used, rounding=made.graph.rounding))
    if "split" in made.used:
        parts.append(rendered("split.c.j2", threads=made.threads))
    text = "\n".join(part.strip("\n") for part in parts if part.strip())
    return text + "\n" if text else ""


def _named(functions: set[str]) -> list[Layer]:
    """Layers of nothing whose activations are `functions`."""
    nothing = np.zeros((0, 0), np.float32)
    return [Dense(nothing, nothing, name) for name in sorted(functions)]


def struct_text(made: Emission) -> str:
    """The types that calls of codes need, and what a layer's fast kernel is given."""
    task = TASKS[made.integer] if made.tasks else ""
    if not made.integer:
        return task
    rule = made.graph.rounding
    text = SCALES[rule] + task
    text += SUMS[rule] if "add" in made.used else ""
    return text + (AVERAGES[rule] if "mean" in made.used else "")


def network_text(made: Emission, title: str) -> tuple[str, str]:
    """`network.h` and `network.c`."""
    graph = made.graph
    source, goal = graph.tensors[graph.inputs[0]], graph.tensors[graph.outputs[0]]

    def about(tensor: Any) -> str:
        codes = tensor.quantization
        return "floats" if codes is None else f"code q stands for (q - ({codes.zero})) * {codes.scale:.9g}"

    carried = any(isinstance(op, Recurrent) and op.carry for op in graph.ops)
    header = rendered(
        "network.h.j2",
        title=title,
        in_type=C_TYPES[source.dtype],
        out_type=C_TYPES[goal.dtype],
        in_about=about(source),
        out_about=about(goal),
        inputs=source.size,
        outputs=goal.size,
        in_shape=" x ".join(map(str, source.shape)),
        out_shape=" x ".join(map(str, goal.shape)),
        arena=made.plan.nbytes,
        state_about="Hidden states go on from the pass before."
        if carried
        else "Nothing is kept between passes.",
    )
    text = rendered(
        "network.c.j2",
        title=title,
        macs=f"{made.macs:,}",
        constants=f"{made.constant_bytes:,}",
        arena=f"{made.plan.nbytes:,}",
        windows=made.windows,
        structs=struct_text(made),
        weights="\n".join(made.weights),
        kernels=kernel_text(made),
        state=made.state,
        scratch=made.scratch,
        calls="".join(made.calls),
    )
    return header, text
