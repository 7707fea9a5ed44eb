"""ONNX networks as graphs, of floats or of 8-bit codes (_onnx_codes.py): convolution, dense, normalisation,
pooling, recurrent layers, and what exporters put between them.

Source: ONNX's operators as documented (formats/onnx.py reads the files). Batch normalisation and constants
that are added or multiplied fold into the linear layer before them, or, where none is, become a depthwise
convolution of size 1; ReLU and Clip become bounds; constants are computed beforehand. The batch is 1: a
leading size that has a name is taken as 1. Channels go behind the places (_onnx_making.py); inputs and
outputs keep ONNX's own order.

A recurrent layer whose first state is an input of the model and whose last one is an output carries it from
pass to pass, as on a device; else every pass begins with zeros.
Limits: one input and one output besides such states; sizes that are fixed; no dilation, no groups but
depthwise ones, no peepholes, no way back in time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import DamagedFileError, UserError, nearest_name
from haversack.formats.onnx import OnnxModel, OnnxNode, read_onnx
from haversack.models.graph._ir import (
    Add,
    AveragePool,
    Conv2d,
    DepthwiseConv2d,
    Graph,
    MaxPool,
    Mean,
    Softmax,
    Tensor,
)
from haversack.models.graph._moves import Multiply
from haversack.models.graph._onnx_codes import Coded, dequantize, lowered, quantize, remembered
from haversack.models.graph._onnx_making import Held, Making, natural, window
from haversack.models.graph._onnx_series import CELLS, recurrent
from haversack.models.graph._onnx_shapes import FOLDS, SHAPES, folded
from haversack.models.graph._tidy import tidied
from haversack.models.graph.series import Activation

Array = npt.NDArray[Any]
SYSTEM = 18

FUNCTIONS = {
    "Elu": "elu",
    "Exp": "exponential",
    "Selu": "selu",
    "Sigmoid": "sigmoid",
    "Softplus": "softplus",
    "Softsign": "softsign",
    "Tanh": "tanh",
}


def load_onnx(path: str | Path) -> Graph:
    """The graph in a file. Raises UserError for what is not supported, naming operator and node;
    DamagedFileError for what is no ONNX model."""
    place = Path(path)
    try:
        return graph_of(read_onnx(place), place.stem)
    except ValueError as error:
        raise DamagedFileError(
            place, f"its operators do not fit together ({error})", field="model"
        ) from error


def graph_of(model: OnnxModel, name: str) -> Graph:
    """The graph of a model. Raises UserError for what is not supported, ValueError where its parts do not
    fit."""
    made = Making(model)
    _begin(made, name)
    for node in model.nodes:
        rule = RULES.get(node.kind)
        if rule is None and node.kind not in FOLDS:
            nearest = nearest_name(node.kind, RULES)
            hint = f"; did you mean {nearest}?" if nearest else ""
            raise UserError(
                f"the node {node.name[:80]} is a {node.kind[:40]}, which is not supported (supported: "
                f"{', '.join(sorted(RULES))}){hint}",
                field="model",
                given=node.kind[:40],
                nearest=nearest,
            )
        before = len(made.ops)
        try:
            if not folded(made, node):
                (rule or _computed)(made, node)
                remembered(made, node, before)
        except (KeyError, ValueError, IndexError, TypeError) as error:
            raise UserError(
                f"the node {node.name[:80]} ({node.kind}) has what is not supported or does not fit: "
                f"{error}.",
                field="model",
                given=node.name[:80],
            ) from error
    goals = [each for each in model.outputs if each not in made.states.values()]
    if len(goals) != 1 or goals[0] not in made.held:
        raise UserError(
            f"{name} has {len(goals)} outputs that are computed from its input and are no states; one is "
            "supported.",
            field="model",
            given=len(goals),
        )
    goal = made.held[goals[0]]
    output = made.laid(goal, natural(goal.shape), _without_batch(goal.shape))
    graph = tidied(Graph(name, made.tensors, tuple(made.ops), ("input",), (output,), made.values))
    in_codes = any(isinstance(op, Coded) for op in graph.ops)
    return lowered(graph, made.layer_scales) if in_codes else graph


def _computed(made: Making, node: OnnxNode) -> None:
    raise ValueError("what it reads is computed; of constants it is supported")


def _without_batch(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[1:] if len(shape) > 1 and shape[0] == 1 else shape


def _begin(made: Making, name: str) -> None:
    """Declare the input; the others have to be states."""
    states = {
        node.inputs[place]: node.outputs[at]
        for node in made.model.nodes
        if node.kind in CELLS
        for place, at in ((5, 1), (6, 2))
        if len(node.inputs) > place and len(node.outputs) > at and node.inputs[place] in made.model.inputs
    }
    made.states = {x: y for x, y in states.items() if y in made.model.outputs}
    rest = {x: shape for x, shape in made.model.inputs.items() if x not in made.states}
    if len(rest) != 1:
        raise UserError(
            f"{name} has {len(rest)} inputs that are no states of recurrent layers "
            f"({', '.join(rest)[:120]}); one is supported.",
            field="model",
            given=len(rest),
        )
    source, sizes = next(iter(rest.items()))
    known = [
        1 if at == 0 and len(sizes) > 1 and not isinstance(size, int) else size
        for at, size in enumerate(sizes)
    ]
    if not known or any(not isinstance(size, int) or size < 1 for size in known):
        shown = ", ".join("?" if size is None else str(size) for size in sizes)
        raise UserError(
            f"the input {source[:80]} of {name} has the sizes ({shown}), which are not all fixed; export "
            "it with fixed ones.",
            field="model",
            given=shown,
        )
    shape = tuple(int(size or 0) for size in known)
    made.tensors["input"] = Tensor("input", _without_batch(shape), "f32")
    made.held[source] = Held("input", shape, natural(shape))


def _conv(made: Making, node: OnnxNode) -> None:
    weight = made.needed(node, 1, "kernel")
    bias = made.fixed(node, 2, "bias")
    value = made.read(node)
    x, (height, wide, channels) = made.picture(value)
    series = len(value.shape) == 3
    if weight.ndim != len(value.shape):
        raise ValueError(f"a kernel of the shape {weight.shape} for a value of the shape {value.shape}")
    groups = int(node.attributes.get("group", 1))
    kernel, stride, pads, sizes = window(node, (height, wide), series, weight.shape[2:])
    full = weight[:, :, None, :] if series else weight
    outputs = len(full)
    if full.shape[1] * groups != channels or kernel != full.shape[2:]:
        raise ValueError(f"a kernel of the shape {weight.shape} in {groups} groups for {channels} channels")
    layer = made.fresh("Conv")
    added = None if bias is None else made.constant(f"{layer}.bias", bias.reshape(outputs))
    y = made.tensor(f"{layer}.y", (*sizes, outputs))
    if groups == 1:
        name = made.constant(f"{layer}.weight", full.transpose(0, 2, 3, 1))
        made.add(Conv2d(x, name, added, y, stride=stride, pads=pads))
    elif groups == channels == outputs:
        name = made.constant(f"{layer}.weight", full[:, 0].transpose(1, 2, 0))
        made.add(DepthwiseConv2d(x, name, added, y, stride=stride, pads=pads))
    else:
        raise ValueError(f"{groups} groups for {channels} channels and {outputs} outputs; 1, or one each")
    made.write(node, made.depicted(y, len(value.shape)))


def _gemm(made: Making, node: OnnxNode) -> None:
    if int(node.attributes.get("transA", 0)):
        raise ValueError("transA, which is not supported")
    matrix = made.needed(node, 1, "matrix")
    if matrix.ndim != 2:
        raise ValueError(f"a matrix of the shape {matrix.shape}")
    matrix = matrix if int(node.attributes.get("transB", 0)) else matrix.T
    bias = made.fixed(node, 2, "bias")
    if bias is not None:
        if bias.size not in (1, len(matrix)) or (bias.ndim and bias.size != bias.shape[-1]):
            raise ValueError(f"a bias of the shape {bias.shape} for {len(matrix)} outputs")
        bias = np.broadcast_to(bias.reshape(-1), len(matrix)) * float(node.attributes.get("beta", 1.0))
    scaled = matrix * float(node.attributes.get("alpha", 1.0))
    made.write(node, made.dense(made.read(node), scaled, bias, made.fresh("Gemm")))


def _matmul(made: Making, node: OnnxNode) -> None:
    matrix = made.needed(node, 1, "matrix")
    if matrix.ndim != 2:
        raise ValueError(f"a matrix of the shape {matrix.shape}; two axes are supported")
    made.write(node, made.dense(made.read(node), matrix.T, None, made.fresh("MatMul")))


def _normalise(made: Making, node: OnnxNode) -> None:
    if int(node.attributes.get("training_mode", 0)) or len(node.outputs) > 1:
        raise ValueError("training_mode; a network as it runs is supported")
    scale, shift, mean, variance = (
        made.needed(node, place, "statistics").astype(np.float64) for place in (1, 2, 3, 4)
    )
    factor = scale / np.sqrt(variance + float(node.attributes.get("epsilon", 1e-5)))
    spread = (-1, *(1,) * (len(made.read(node).shape) - 2))
    made.affine(node, factor.reshape(spread), (shift - mean * factor).reshape(spread))


def _joined(made: Making, node: OnnxNode) -> None:
    """Add, Sub, Mul and Div: of two values, or of one and a constant."""
    places = [place for place in (0, 1) if node.inputs[place] in made.held]
    if len(places) == 2:
        _two(made, node)
        return
    place = places[0]
    other = np.asarray(made.needed(node, 1 - place, "constant"), np.float64)
    one, nothing = np.ones(()), np.zeros(())
    if node.kind == "Add":
        made.affine(node, one, other, place)
    elif node.kind == "Mul":
        made.affine(node, other, nothing, place)
    elif node.kind == "Sub":
        made.affine(node, one if place == 0 else -one, -other if place == 0 else other, place)
    elif place == 0:
        if not other.all():
            raise ValueError("a division by nothing")
        made.affine(node, 1 / other, nothing, place)
    else:
        raise ValueError("a constant over a value, which is not supported")


def _two(made: Making, node: OnnxNode) -> None:
    one, other = made.read(node, 0), made.read(node, 1)
    if node.kind not in ("Add", "Mul"):
        raise ValueError("two values that are computed; Add and Mul take them")
    if math.prod(one.shape) < math.prod(other.shape):
        one, other = other, one
    layer = made.fresh(node.kind)
    if one.shape == other.shape:
        shape = made.tensors[one.name].shape
        second = made.laid(other, one.order, shape)
        y = made.tensor(f"{layer}.y", shape)
        made.add((Add if node.kind == "Add" else Multiply)(one.name, second, y))
        made.write(node, replace(one, name=y))
        return
    sizes = (1,) * (len(one.shape) - len(other.shape)) + other.shape
    axes = [axis for axis, size in enumerate(sizes) if size > 1]
    fits = all(size in (1, full) for size, full in zip(sizes, one.shape, strict=True))
    if node.kind == "Add" or len(axes) != 1 or not fits:
        raise ValueError(f"values of the shapes {one.shape} and {other.shape}")
    size = one.shape[axes[0]]
    order = (*(axis for axis in one.order if axis != axes[0]), axes[0])
    x = made.laid(one, order, (math.prod(one.shape) // size, size))
    y = made.tensor(f"{layer}.y", made.tensors[x].shape)
    made.add(Multiply(x, made.laid(other, natural(other.shape), (size,)), y))
    made.write(node, Held(y, one.shape, order))


def _clip(made: Making, node: OnnxNode) -> None:
    ends = [made.fixed(node, place, "bound") for place in (1, 2)]
    given = [
        node.attributes.get(key) if end is None else end
        for key, end in zip(("min", "max"), ends, strict=True)
    ]
    low, high = (
        math.inf * sign if end is None else float(np.asarray(end).reshape(()))
        for end, sign in zip(given, (-1, 1), strict=True)
    )
    if not low <= high:
        raise ValueError(f"bounds of {low} and {high}")
    made.bounded(node, low, high)


def _function(made: Making, node: OnnxNode) -> None:
    value = made.read(node)
    name = FUNCTIONS.get(node.kind, "")
    if node.kind == "Elu" and float(node.attributes.get("alpha", 1.0)) != 1.0:
        raise ValueError(f"alpha {node.attributes['alpha']}; 1 is supported")
    if node.kind == "HardSigmoid":
        slope, height = float(node.attributes.get("alpha", 0.2)), float(node.attributes.get("beta", 0.5))
        if height != 0.5 or round(slope, 4) not in (0.2, 0.1667):
            raise ValueError(f"alpha {slope} and beta {height}; 0.2 or 1/6, and 0.5 are supported")
        name = "hard_sigmoid" if round(slope, 4) == 0.2 else "hard_sigmoid_sixth"
    if node.kind == "HardSwish":
        name = "hard_sigmoid_sixth"
    layer = made.fresh(node.kind)
    y = made.add(Activation(value.name, made.tensor(f"{layer}.y", made.tensors[value.name].shape), name))
    if node.kind == "HardSwish":
        y = made.add(Multiply(value.name, y, made.tensor(f"{layer}.y", made.tensors[y].shape)))
    made.write(node, replace(value, name=y))


def _softmax(made: Making, node: OnnxNode) -> None:
    value = made.read(node)
    rank = len(value.shape)
    axis = int(node.attributes.get("axis", -1 if made.model.opset >= 13 else 1)) % rank
    if made.model.opset < 13:
        value = made.reshaped(value, (math.prod(value.shape[:axis]), math.prod(value.shape[axis:])))
        axis = 1
    size = value.shape[axis]
    order = (*(each for each in value.order if each != axis), axis)
    shape = (size,) if math.prod(value.shape) == size else (math.prod(value.shape) // size, size)
    y = made.tensor(f"{made.fresh('Softmax')}.y", shape)
    made.add(Softmax(made.laid(value, order, shape), y))
    found = Held(y, value.shape, order)
    made.write(node, made.reshaped(found, made.read(node).shape))


def _pool(made: Making, node: OnnxNode) -> None:
    value = made.read(node)
    x, (height, wide, channels) = made.picture(value)
    if node.kind.startswith("Global"):
        kernel, stride, pads, sizes = (height, wide), (1, 1), ((0, 0), (0, 0)), (1, 1)
    else:
        kernel, stride, pads, sizes = window(node, (height, wide), len(value.shape) == 3, ())
        if int(node.attributes.get("count_include_pad", 0)) and pads != ((0, 0), (0, 0)):
            raise ValueError("count_include_pad with pads, which is not supported")
    y = made.tensor(f"{made.fresh(node.kind)}.y", (*sizes, channels))
    made.add((MaxPool if "Max" in node.kind else AveragePool)(x, y, kernel, stride, pads))
    made.write(node, made.depicted(y, len(value.shape)))


def _mean(made: Making, node: OnnxNode) -> None:
    value = made.read(node)
    rank = len(value.shape)
    given = made.fixed(node, 1, "axes")
    axes = given.tolist() if given is not None else node.attributes.get("axes")
    if node.kind == "GlobalAveragePool":
        axes, keep = range(2, rank), True
    else:
        keep = bool(node.attributes.get("keepdims", 1))
    gone = {int(axis) % rank for axis in (axes if axes is not None else range(rank))}
    kept = tuple(axis for axis in value.order if axis not in gone)
    order = (*(axis for axis in value.order if axis in gone), *kept)
    places = math.prod(value.shape[axis] for axis in gone)
    channels = math.prod(value.shape) // places
    y = made.tensor(f"{made.fresh('Mean')}.y", (channels,))
    made.add(Mean(made.laid(value, order, (1, places, channels)), y))
    shape = tuple(1 if axis in gone else size for axis, size in enumerate(value.shape))
    found = Held(y, shape, order)
    goal = tuple(size for axis, size in enumerate(shape) if axis not in gone)
    made.write(node, found if keep else made.reshaped(found, goal or (1,)))


RULES: dict[str, Callable[[Making, OnnxNode], None]] = {
    "Add": _joined,
    "AveragePool": _pool,
    "BatchNormalization": _normalise,
    "Clip": _clip,
    "Conv": _conv,
    "DequantizeLinear": dequantize,
    "Div": _joined,
    "Gemm": _gemm,
    "GlobalAveragePool": _mean,
    "GlobalMaxPool": _pool,
    "HardSigmoid": _function,
    "HardSwish": _function,
    "MatMul": _matmul,
    "MaxPool": _pool,
    "Mul": _joined,
    "QuantizeLinear": quantize,
    "ReduceMean": _mean,
    "Relu": lambda made, node: made.bounded(node, 0.0, math.inf),
    "Softmax": _softmax,
    "Sub": _joined,
    **dict.fromkeys(FUNCTIONS, _function),
    **dict.fromkeys(CELLS, recurrent),
    **SHAPES,
}
