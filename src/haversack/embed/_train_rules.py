"""What each operation of a training step becomes in C. Those of codes that learn nothing are inference's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from haversack.core.errors import UserError
from haversack.embed._c import literal
from haversack.embed._graph_rules import RULES as PLAIN
from haversack.embed._graph_rules import bounds
from haversack.embed._train_emission import Kernels, TrainEmission
from haversack.embed._train_ops import Cast, MeanSquare
from haversack.models.graph._gradients import (
    LABEL,
    LOSS,
    BiasStep,
    Crop,
    CrossEntropy,
    GradInput,
    Kept,
    Masked,
    PoolGrad,
    Rescaled,
    Step,
    Summed,
)
from haversack.models.graph._ir import (
    Add,
    AveragePool,
    Clamp,
    Conv2d,
    DepthwiseConv2d,
    FullyConnected,
    Graph,
    Linear,
    Mean,
    Op,
    Pad,
    Reshape,
)


def calls(made: TrainEmission) -> None:
    """Add the calls of the graph's operations. Raises UserError for one that has no kernel, naming it."""
    for number, op in enumerate(made.graph.ops):
        kind = type(op)
        first = made.graph.tensors[op.reads[0]].dtype if op.reads else "f32"
        rule: Callable[[Any, Any], None] | None = RULES.get(kind)
        if kind in BY_INFERENCE and first == "int8":
            rule = PLAIN[kind]
        if rule is None:
            wrote = f" (it writes {op.writes[0]})" if op.writes else ""
            raise UserError(
                f"operation {number} of {made.graph.name} is a {kind.__name__}{wrote}, which has no C kernel "
                "for training; train a network without it, or give a model that ends before it.",
                field="model",
                given=kind.__name__,
            )
        about = op.writes[0] if op.writes else getattr(op, "parameter", "")
        made.calls.append(f"    /* {kind.__name__}: {about} */\n")
        rule(made, op)


def patch_nbytes(graph: Graph, op: Op, kernels: Kernels) -> int:
    """Bytes in which a convolution that is laid out as a matrix lays out some places; 0 for others."""
    if type(op) is not Conv2d or (dtype := graph.tensors[op.y].dtype) == "int8":
        return 0
    weight = graph.tensors[op.weight]
    return kernels.of(op.weight).rows * math.prod(weight.shape[1:]) * (4 if dtype == "f32" else 2)


def patch_name(op: Conv2d) -> str:
    """Where in the arena it does."""
    return f"patches:{op.y}"


def _linear(made: TrainEmission, op: Linear) -> None:
    graph = made.graph
    weight, y = graph.tensors[op.weight], graph.tensors[op.y]
    made.macs += math.prod(y.shape[:-1]) * weight.size
    kind = y.dtype
    codes = kind == "int8"
    if (graph.tensors[op.x].dtype == "int8") != codes:
        raise UserError(
            f"{type(op).__name__} (it writes {op.y}) mixes {graph.tensors[op.x].dtype} and {kind}, which has "
            "no C kernel; only Dequantize leads from int8 to floats.",
            field="model",
            given=type(op).__name__,
        )
    learned, table, count = made.part(op.weight)
    parts = [made.seen(op.x), made.held(op.weight), made.held(op.bias), made.at(op.y), made.bits(op.mask)]
    scales = []
    if codes:
        factors = made.codes(op.x).scale * made.codes(op.weight).array() / made.codes(op.y).scale
        scales = [made.scales(op, factors, op.y, y.shape[-1])]
        made.used.discard("scales")
    if isinstance(op, DepthwiseConv2d):
        place = made.window(op, op.x, op.y, (weight.shape[0], weight.shape[1]), op.stride, op.pads)
        name = made.use(kind, "depthwise")
        if not codes:
            made.call(f"{name}({', '.join([*parts, place, bounds(op)])})")
            return
        made.call(f"{name}({', '.join([*parts, place, *scales, '0', str(weight.shape[-1])])})")
        if count:
            parts[1] = learned
            made.call(f"{name}({', '.join([*parts, place, *scales, table, str(count)])})")
    elif isinstance(op, Conv2d):
        place = made.window(op, op.x, op.y, (weight.shape[1], weight.shape[2]), op.stride, op.pads)
        if codes:
            name = made.use(kind, "conv2d")
            made.call(f"{name}({', '.join([*parts, place, *scales, learned, table, str(count)])})")
        elif (wish := made.kernels.of(op.weight)).rows:
            name = made.use(kind, f"conv2d_{wish.rows}x{wish.columns}")
            offset = made.plan.places()[patch_name(op)][0]
            patches = f"({'float' if kind == 'f32' else 'nn_real'} *)(nn_arena + {offset})"
            made.call(f"{name}({', '.join([*parts, place, bounds(op), patches])})")
        else:
            made.call(f"{made.use(kind, 'conv2d')}({', '.join([*parts, place, bounds(op)])})")
    else:
        sizes = [str(weight.shape[1]), str(weight.shape[0])]
        ends = scales if codes else [bounds(op)]
        made.call(f"{made.use(kind, 'dense')}({', '.join([*parts, *sizes, *ends])})")


def _add(made: TrainEmission, op: Add) -> None:
    kind, count = made.kind(op.y), made.graph.tensors[op.y].size
    parts = f"{made.seen(op.x)}, {made.seen(op.other)}, {made.at(op.y)}, {count}, {bounds(op)}"
    made.call(f"{made.use(kind, 'add')}({parts})")


def _pool(made: TrainEmission, op: AveragePool) -> None:
    place = made.window(op, op.x, op.y, op.size, op.stride, op.pads)
    name = made.use(made.kind(op.y), "pool")
    made.call(f"{name}({made.seen(op.x)}, {made.at(op.y)}, {place}, {bounds(op)})")


def _mean(made: TrainEmission, op: Mean) -> None:
    height, width, channels = made.graph.tensors[op.x].shape
    share = literal(1 if op.summed else 1 / (height * width), "float32")
    name = made.use(made.kind(op.y), "mean")
    made.call(f"{name}({made.seen(op.x)}, {made.at(op.y)}, {height * width}, {channels}, {share})")


def _clamp(made: TrainEmission, op: Clamp) -> None:
    kind, count = made.kind(op.y), made.graph.tensors[op.y].size
    parts = f"{made.seen(op.x)}, {made.at(op.y)}, {made.bits(op.mask)}, {count}"
    if kind == "int8":
        ratio = np.array([made.codes(op.x).scale / made.codes(op.y).scale])
        scales = made.scales(op, ratio, op.y, 1)
        made.used.discard("scales")
        made.call(f"{made.use(kind, 'clamp')}({parts}, {scales})")
        return
    made.call(f"{made.use(kind, 'clamp')}({parts}, {bounds(op)})")


def _moved(made: TrainEmission, op: Reshape) -> None:
    places = made.plan.places()
    if places[op.x][0] != places[op.y][0]:
        made.call(f"memcpy({made.at(op.y)}, {made.seen(op.x)}, {places[op.y][1]})")


def _cast(made: TrainEmission, op: Cast) -> None:
    wide = made.kind(op.y) == "f32"
    name = made.use(made.kind(op.x if wide else op.y), "widened" if wide else "cast")
    name = name if wide else name.replace("nn_cast", "nn_narrowed")
    made.call(f"{name}({made.seen(op.x)}, {made.at(op.y)}, {made.graph.tensors[op.y].size})")


def _loss(made: TrainEmission, op: CrossEntropy) -> None:
    kind, count = made.kind(op.x), made.graph.tensors[op.x].size
    square = isinstance(op, MeanSquare)
    name = made.use(kind, "mean_square" if square else "cross_entropy")
    label = made.seen(LABEL) if square else f"*{made.seen(LABEL)}"
    scale = literal(made.recipe.loss_scale, "float32")
    made.call(f"loss = {name}({made.seen(op.x)}, {made.at(op.gradient)}, {count}, {label}, {scale})")
    made.call(f"memcpy({made.at(LOSS)}, &loss, sizeof loss)")
    made.calls.append("    if (!(loss - loss == 0))\n        return loss;\n")


def _masked(made: TrainEmission, op: Masked) -> None:
    kind, count = made.kind(op.y), made.graph.tensors[op.y].size
    factors, channels = "0", 1
    if op.factors is not None:
        factors, channels = made.held(op.factors), made.graph.tensors[op.factors].size
    inside = "0" if op.mask is None else made.seen(op.mask)
    name = made.use_back(kind, "masked")
    made.call(f"{name}({made.seen(op.x)}, {made.at(op.y)}, {inside}, {count}, {factors}, {channels})")


def _rescaled(made: TrainEmission, op: Rescaled) -> None:
    name = made.use_back(made.kind(op.y), "rescaled")
    factor = literal(op.factor, "float32")
    made.call(f"{name}({made.seen(op.x)}, {made.at(op.y)}, {made.graph.tensors[op.y].size}, {factor})")


def _summed(made: TrainEmission, op: Summed) -> None:
    name = made.use_back(made.kind(op.y), "summed")
    count = made.graph.tensors[op.y].size
    made.call(f"{name}({made.seen(op.x)}, {made.seen(op.other)}, {made.at(op.y)}, {count})")


def _pool_input(made: TrainEmission, op: PoolGrad) -> None:
    place = made.window(op, op.y, op.x, op.size, op.stride, op.pads)
    name = made.use_back(made.kind(op.y), "pool_input")
    factor = literal(op.factor, "float32")
    made.call(f"{name}({made.seen(op.x)}, {made.at(op.y)}, {place}, {factor})")


def _crop(made: TrainEmission, op: Crop) -> None:
    x, y = (made.graph.tensors[name].shape for name in (op.x, op.y))
    pads = tuple(op.pads)
    while len(x) < 3:
        x, y, pads = (1, *x), (1, *y), ((0, 0), *pads)
    sizes = [x[1], x[2], *(pad[0] for pad in pads), *y]
    name = made.use_back(made.kind(op.y), "crop")
    made.call(f"{name}({made.seen(op.x)}, {made.at(op.y)}, {', '.join(map(str, sizes))})")


def _pad(made: TrainEmission, op: Pad) -> None:
    if made.kind(op.x) in ("f16", "bf16"):
        raise UserError(
            f"Pad (it writes {op.y}) has no C kernel for {made.kind(op.x)} (there is one for f32).",
            field="precision",
            given=made.kind(op.x),
            nearest="fp32",
        )
    PLAIN[Pad](made, op)


def _kept(made: TrainEmission, op: Kept) -> None:
    kind, shape = made.kind(op.x), made.graph.tensors[op.x].shape
    table = made.channel_table(op.channels, op.y)
    name = made.use_back(kind, "kept")
    places = math.prod(shape[:-1])
    made.call(
        f"{name}({made.seen(op.x)}, {made.at(op.y)}, {places}, {shape[-1]}, {table}, {len(op.channels)})"
    )


def _input(made: TrainEmission, op: GradInput) -> None:
    graph = made.graph
    kind, weight = made.kind(op.weight), graph.tensors[op.weight]
    made.macs += math.prod(graph.tensors[op.gradient].shape[:-1]) * weight.size
    g, y = made.seen(op.gradient), made.at(op.y)
    if op.kind == "dense":
        name = made.use_back(kind, "dense_input")
        made.call(f"{name}({g}, {made.held(op.weight)}, {y}, {weight.shape[1]}, {weight.shape[0]})")
        return
    depthwise = op.kind == "depthwise"
    block = made.kernels.of(op.weight).inputs
    name = made.use_back(kind, "depthwise_input" if depthwise else f"conv2d_input_{block}")
    at = 0 if depthwise else 1
    kernel = (weight.shape[at], weight.shape[at + 1])
    place = made.window(op, op.y, op.gradient, kernel, op.stride, op.pads)
    made.call(f"{name}({g}, {made.held(op.weight)}, {y}, {place}, {weight.shape[-1]}, 0)")
    learned, table, count = made.part(op.weight)
    if count:
        made.call(f"{name}({g}, {learned}, {y}, {place}, {count}, {table})")


def _step(made: TrainEmission, op: Step) -> None:
    of, graph = op.weight_gradient, made.graph
    kind = made.kind(op.parameter)
    x, g = graph.tensors[op.x], graph.tensors[op.gradient]
    made.learning(op)
    zero = [str(made.codes(op.x).zero)] if kind == "int8" else []
    parts = [made.seen(op.x), made.seen(op.gradient), made.ram(op.parameter)]
    outputs = 1 if of.kind == "depthwise" else g.shape[-1]
    made.macs += math.prod(g.shape[:-1]) * outputs * math.prod(of.kernel) * x.shape[-1]
    if of.kind == "dense":
        name = made.use_back(kind, "dense_step")
        made.call(f"{name}({', '.join([*parts, str(x.size), str(g.size), *zero, '&learning'])})")
        return
    place = made.window(op, op.x, op.gradient, of.kernel, of.stride, of.pads)
    block = made.kernels.of(op.parameter).weights
    name = made.use_back(kind, "depthwise_step" if of.kind == "depthwise" else f"conv2d_step_{block}")
    table = []
    if of.kind == "depthwise":
        table = ["0" if op.channels is None else made.channel_table(op.channels, op.parameter)]
    made.call(f"{name}({', '.join([*parts, place, *zero, *table, '&learning'])})")


def _bias_step(made: TrainEmission, op: BiasStep) -> None:
    kind, g = made.kind(op.parameter), made.graph.tensors[op.gradient]
    made.learning(op)
    name = made.use_back("int8" if kind == "int32" else kind, "bias_step")
    places = math.prod(g.shape[:-1])
    made.call(
        f"{name}({made.seen(op.gradient)}, {made.ram(op.parameter)}, {places}, {g.shape[-1]}, &learning)"
    )


BY_INFERENCE = (Add, AveragePool, Mean)

RULES: dict[type[Op], Callable[[TrainEmission, Any], None]] = {
    Add: _add,
    AveragePool: _pool,
    BiasStep: _bias_step,
    Cast: _cast,
    Clamp: _clamp,
    Conv2d: _linear,
    Crop: _crop,
    CrossEntropy: _loss,
    DepthwiseConv2d: _linear,
    FullyConnected: _linear,
    GradInput: _input,
    Kept: _kept,
    Masked: _masked,
    Mean: _mean,
    MeanSquare: _loss,
    Pad: _pad,
    PoolGrad: _pool_input,
    Rescaled: _rescaled,
    Reshape: _moved,
    Step: _step,
    Summed: _summed,
    **{kind: PLAIN[kind] for kind in PLAIN if kind.__name__ == "Dequantize"},
}
