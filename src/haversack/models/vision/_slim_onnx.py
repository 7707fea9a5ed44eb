"""The two halves as ONNX graphs, written node by node: the mode is an input of both.

`member`: one member alone. A runtime lays constants out anew for speed, but not inside branches, so a
device that can run several graphs is faster with a graph a member; `device` is one file for phones.
`device`: picture u8 [side, side, 3], k and b i64 -> cells u8 [6, side / 4, side / 4], low and step f32.
Each member after the first lies in a branch of its own, which runs only where k asks for it. `server`:
cells, low, step, mode i64 (0 for k = 1, b = 1) -> logits, or what a published detector says
(_detector_onnx.py). Norms are folded into their convolutions, the decoder's into a scale and a shift for
each mode. Needs the package onnx to write, any runtime of ONNX to run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import MissingExtraError
from haversack.models.vision import _slim_record as record
from haversack.models.vision._detector_onnx import front_of, regions_onnx, rest_of
from haversack.models.vision._record import Block, Squeeze, Unit
from haversack.models.vision._slim_record import BITS, SplitNet
from haversack.models.vision.slimmable import folded

OPSET, IR = 13, 8
Tensors = Mapping[str, NDArray[np.float32]]


class _Graph:
    """Nodes and constants in the order in which they are added; a branch has a graph of its own, and its
    constants lie in the whole one."""

    def __init__(self, onnx: Any, above: _Graph | None = None) -> None:
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.constants: list[Any] = [] if above is None else above.constants
        self.count: list[int] = [0] if above is None else above.count

    def name(self) -> str:
        self.count[0] += 1
        return f"t{self.count[0]}"

    def constant(self, value: Any, kind: Any = np.float32) -> str:
        name = self.name()
        array = np.asarray(value, kind)
        self.constants.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def add(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        out = name or self.name()
        self.nodes.append(self.onnx.helper.make_node(op, list(inputs), [out], **attributes))
        return out

    def convolution(
        self, x: str, weight: NDArray[np.float32], bias: NDArray[np.float32] | None, stride: int, groups: int
    ) -> str:
        given = [x, self.constant(weight)] + ([] if bias is None else [self.constant(bias)])
        pad, kernel = (weight.shape[2] - 1) // 2, list(weight.shape[2:])
        return self.add(
            "Conv", *given, strides=[stride] * 2, group=groups, pads=[pad] * 4, kernel_shape=kernel
        )

    def unit(self, x: str, unit: Unit, tensors: Tensors, prefix: str = "") -> str:
        y = self.convolution(x, *folded(tensors, prefix, unit), unit.stride, unit.groups)
        if unit.activation is None:
            return y
        return self.add("Relu", y)

    def layer(self, x: str, layer: record.Layer, tensors: Tensors, prefix: str = "") -> str:
        if isinstance(layer, Unit):
            return self.unit(x, layer, tensors, prefix)
        y = x
        for part in layer.layers():
            if isinstance(part, Squeeze):
                y = self.squeeze(y, part, tensors, prefix)
            else:
                y = self.unit(y, part, tensors, prefix)
        if isinstance(layer, record.Residual):
            return self.add("Relu", self.add("Add", x, y))
        return self.add("Add", x, y) if isinstance(layer, Block) and layer.residual else y

    def squeeze(self, x: str, squeeze: Squeeze, tensors: Tensors, prefix: str) -> str:
        at = f"{prefix}{squeeze.name}"
        y = self.add("GlobalAveragePool", x)
        y = self.convolution(y, tensors[f"{at}.reduce.weight"], tensors[f"{at}.reduce.bias"], 1, 1)
        y = self.add("Relu", y)
        y = self.convolution(y, tensors[f"{at}.expand.weight"], tensors[f"{at}.expand.bias"], 1, 1)
        return self.add("Mul", x, self.add("HardSigmoid", y, alpha=1 / 6, beta=0.5))

    def chain(self, x: str, layers: Iterable[record.Layer], tensors: Tensors, prefix: str = "") -> str:
        for layer in layers:
            x = self.layer(x, layer, tensors, prefix)
        return x

    def normed(self, net: SplitNet) -> str:
        """The input `picture` as the networks take it, [1, 3, side, side]."""
        x = self.add("Transpose", "picture", perm=[2, 0, 1])
        x = self.add("Reshape", x, self.constant([1, 3, net.side, net.side], np.int64))
        x = self.add("Mul", self.add("Cast", x, to=1), self.constant(4 / 255))
        return self.add("Sub", x, self.constant(2))

    def finish(self, name: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> bytes:
        """The model's bytes; inputs and outputs: name -> (numpy type, shape)."""
        helper = self.onnx.helper

        def told(values: Mapping[str, Any]) -> list[Any]:
            kinds = {"float32": 1, "uint8": 2, "int64": 7}
            return [
                helper.make_tensor_value_info(key, kinds[kind], shape)
                for key, (kind, shape) in values.items()
            ]

        made = helper.make_graph(self.nodes, name, told(inputs), told(outputs), self.constants)
        whole = helper.make_model(
            made, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="haversack"
        )
        whole.ir_version = IR
        self.onnx.checker.check_model(whole)
        return bytes(whole.SerializeToString())


def _onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("writing ONNX", "onnx", "onnx") from error
    return onnx


def member_onnx(net: SplitNet, tensors: Tensors, at: int) -> bytes:
    """Member number `at` alone: x f32 [1, 3, side, side], normed -> y f32 [1, 6, side / 4, side / 4]. Raises
    MissingExtraError without onnx."""
    graph = _Graph(_onnx())
    y = graph.chain("x", record.member(), tensors, f"members.{at}.")
    graph.add("Identity", y, name="y")
    return graph.finish(
        "member", {"x": ("float32", [1, 3, net.side, net.side])}, {"y": ("float32", [1, *net.shape])}
    )


def device_onnx(net: SplitNet, tensors: Tensors, gain: tuple[float, ...]) -> bytes:
    """The device half. Raises MissingExtraError without onnx."""
    graph = _Graph(_onnx())
    x = graph.normed(net)
    total = graph.chain(x, record.member(), tensors, "members.0.")
    total = _members(graph, net, tensors, gain, x, total, 1)
    y = graph.add("Reshape", total, graph.constant(net.shape, np.int64))
    mean = graph.add("ReduceMean", y, axes=[0, 1, 2], keepdims=0)
    apart = graph.add("Sub", y, mean)
    square = graph.add("ReduceMean", graph.add("Mul", apart, apart), axes=[0, 1, 2], keepdims=0)
    deviation = graph.add("Max", graph.add("Sqrt", square), graph.constant(1e-6))
    at = graph.add("Sub", "b", graph.constant(1, np.int64))
    levels = [2**bits for bits in range(1, BITS + 1)]
    reach = graph.add("Mul", graph.add("Gather", graph.constant(tensors["clips"]), at), deviation)
    low = graph.add("Sub", mean, reach, name="low")
    share = graph.add("Gather", graph.constant([2 / each for each in levels]), at)
    step = graph.add("Mul", reach, share, name="step")
    cells = graph.add("Floor", graph.add("Div", graph.add("Sub", y, low), step))
    most = graph.add("Gather", graph.constant([each - 1 for each in levels]), at)
    graph.add("Cast", graph.add("Clip", cells, graph.constant(0), most), name="cells", to=2)
    return graph.finish(
        "device",
        {"picture": ("uint8", [net.side, net.side, 3]), "k": ("int64", []), "b": ("int64", [])},
        {"cells": ("uint8", list(net.shape)), "low": ("float32", []), "step": ("float32", [])},
    )


def _members(
    graph: _Graph, net: SplitNet, tensors: Tensors, gain: tuple[float, ...], x: str, total: str, at: int
) -> str:
    """`total` with the members from number `at` on that k asks for, each in a branch inside the last."""
    if at == net.members:
        return total
    helper = graph.onnx.helper
    more, plain = _Graph(graph.onnx, graph), _Graph(graph.onnx, graph)
    own = more.chain(x, record.member(), tensors, f"members.{at}.")
    summed = more.add("Add", total, more.add("Mul", own, more.constant(gain[at])))
    last = more.add("Identity", _members(more, net, tensors, gain, x, summed, at + 1))
    same = plain.add("Identity", total)
    branches = [
        helper.make_graph(branch.nodes, f"{word}{at}", [], [helper.make_tensor_value_info(end, 1, None)])
        for branch, word, end in ((more, "with", last), (plain, "without", same))
    ]
    asked = graph.add("Greater", "k", graph.constant(at, np.int64))
    return graph.add("If", asked, then_branch=branches[0], else_branch=branches[1])


def server_onnx(net: SplitNet, tensors: Tensors) -> bytes:
    """The server half: decoder and the rest of the teacher. Raises MissingExtraError without onnx."""
    graph = _Graph(_onnx())
    x = graph.add("Add", graph.add("Cast", "cells", to=1), graph.constant(0.5))
    x = graph.add("Add", graph.add("Mul", x, "step"), "low")
    x = graph.add("Reshape", x, graph.constant([1, *net.shape], np.int64))
    for unit in net.decoder():
        at = f"decoder.{unit.name}"
        x = graph.convolution(x, np.asarray(tensors[f"{at}.conv.weight"], np.float32), None, 1, 1)
        scale = tensors[f"{at}.norm.weight"] / np.sqrt(tensors[f"{at}.norm.variances"] + record.EPS)
        shift = tensors[f"{at}.norm.bias"] - tensors[f"{at}.norm.means"] * scale
        modes = (len(scale), unit.outputs, 1, 1)
        factor = graph.add("Gather", graph.constant(scale.reshape(modes)), "mode")
        moved = graph.add("Gather", graph.constant(shift.reshape(modes)), "mode")
        x = graph.add("Add", graph.add("Mul", x, factor), moved)
        x = x if unit.activation is None else graph.add("Relu", x)
    outputs = _rest(graph, net, tensors, x)
    return graph.finish(
        "server",
        {
            "cells": ("uint8", list(net.shape)),
            "low": ("float32", []),
            "step": ("float32", []),
            "mode": ("int64", []),
        },
        outputs,
    )


def look_onnx(net: SplitNet, tensors: Tensors) -> bytes | None:
    """The graph that looks at regions, of a detector that does. Raises MissingExtraError without onnx."""
    if net.detector is None:
        return None
    return regions_onnx(_Graph(_onnx()), net.detector, tensors, net.side)


def teacher_onnx(net: SplitNet, tensors: Tensors) -> bytes:
    """The whole teacher, picture in, logits or a detector's answers out. Raises MissingExtraError without
    onnx."""
    graph = _Graph(_onnx())
    x = graph.normed(net)
    if net.detector is None:
        x = graph.chain(x, net.teacher()["head"], tensors)
    else:
        x = front_of(graph, net.detector, tensors, x, net.side)
    outputs = _rest(graph, net, tensors, x)
    return graph.finish("teacher", {"picture": ("uint8", [net.side, net.side, 3])}, outputs)


def _answer(net: SplitNet) -> dict[str, Any]:
    cells = [net.side // 8] * 2 if net.task == "detect" else []
    return {"logits": ("float32", [net.outputs, *cells])}


def _rest(graph: _Graph, net: SplitNet, tensors: Tensors, x: str) -> dict[str, Any]:
    """The stages behind the split and the last layer; the outputs' types and shapes by name."""
    if net.detector is not None:
        return rest_of(graph, net.detector, tensors, x, net.side)
    stages = net.teacher()
    mid = graph.chain(x, stages["mid"], tensors)
    last = graph.chain(mid, stages["low"], tensors)
    if net.task == "detect":
        across, smooth = stages["neck"]
        y = graph.layer(last, across, tensors)
        scales = graph.constant([1, 1, 2, 2])
        y = graph.add(
            "Resize",
            y,
            "",
            scales,
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
        last = graph.layer(graph.add("Add", y, mid), smooth, tensors)
    else:
        last = graph.add("GlobalAveragePool", last)
    y = graph.convolution(last, tensors["final.weight"], tensors["final.bias"], 1, 1)
    outputs = _answer(net)
    graph.add("Reshape", y, graph.constant(outputs["logits"][1], np.int64), name="logits")
    return outputs
