"""The trained `hands` as an ONNX graph, written node by node: normalisations folded into convolutions, boxes
decoded from their anchors inside the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hands_recipe import IN_HEIGHT, IN_WIDTH, anchors

OUTPUTS = 9


class Graph:
    """Nodes and constants in the order in which they are added."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: Any, kind: Any = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value, kind), name))
        return name

    def add(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        out = name or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], **attributes))
        return out

    def convolution(self, x: str, conv: Any, norm: Any = None) -> str:
        """With the batch normalisation that follows it folded in, and a ReLU after that."""
        weight = conv.weight.detach().double().numpy()
        bias = np.zeros(len(weight)) if conv.bias is None else conv.bias.detach().double().numpy()
        if norm is not None:
            gain = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
            bias = (
                (bias - norm.running_mean.double().numpy()) * gain.numpy()
            ) + norm.bias.detach().double().numpy()
            weight = weight * gain.numpy()[:, None, None, None]
        out = self.add(
            "Conv",
            *(x, self.constant(weight), self.constant(bias)),
            strides=list(conv.stride),
            dilations=list(conv.dilation),
            group=conv.groups,
            pads=[*conv.padding, *conv.padding],
            kernel_shape=list(conv.kernel_size),
        )
        return out if norm is None else self.add("Relu", out)


def write_onnx(model: Any, path: Path) -> None:
    """Write `model` (train_hands.Hands, in evaluation mode) to `path`."""
    graph = Graph()
    x = graph.add("Sub", "picture", graph.constant(0.5))
    x = graph.convolution(x, model.first, model.norm)
    parts = []
    for blocks, head in zip((model.near, model.far), model.heads, strict=True):
        for block in blocks:
            made = graph.convolution(graph.convolution(x, block.depth, block.one), block.point, block.two)
            x = graph.add("Add", x, made) if block.same else made
        y = graph.convolution(x, head)
        y = graph.add("Reshape", y, graph.constant([3, OUTPUTS, -1], np.int64))
        y = graph.add("Transpose", y, perm=[0, 2, 1])
        parts.append(graph.add("Reshape", y, graph.constant([-1, OUTPUTS], np.int64)))
    rows = graph.add("Concat", *parts, axis=0)
    centres, sizes, strides = anchors()

    def columns(begin: int, end: int) -> str:
        limits = (graph.constant([at], np.int64) for at in (begin, end, 1))
        return graph.add("Slice", rows, *limits)

    def column(at: int, name: str) -> None:
        flat = graph.add("Reshape", columns(at, at + 1), graph.constant([-1], np.int64))
        graph.add("Sigmoid", flat, name=name)

    column(0, "scores")
    column(1, "sides")
    column(2, "contacts")
    shift = graph.add("Mul", columns(3, 5), graph.constant(strides[:, None]))
    middle = graph.add("Add", shift, graph.constant(centres))
    clipped = graph.add("Clip", columns(5, 7), graph.constant(-3.0), graph.constant(3.0))
    half = graph.add("Mul", graph.add("Exp", clipped), graph.constant(0.5 * sizes))
    corners = graph.add("Concat", graph.add("Sub", middle, half), graph.add("Add", middle, half), axis=1)
    size = [IN_WIDTH, IN_HEIGHT, IN_WIDTH, IN_HEIGHT]
    graph.add("Div", corners, graph.constant(size), name="boxes")
    palms = graph.add("Identity", columns(7, 9), name="palms")
    count = len(centres)
    shapes = {
        "boxes": [count, 4],
        "scores": [count],
        "sides": [count],
        "contacts": [count],
        palms: [count, 2],
    }
    made = helper.make_graph(
        graph.nodes,
        "hands",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, [1, 3, IN_HEIGHT, IN_WIDTH])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        graph.constants,
    )
    whole = helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], producer_name="haversack")
    whole.ir_version = 8
    onnx.checker.check_model(whole)
    path.write_bytes(whole.SerializeToString())
