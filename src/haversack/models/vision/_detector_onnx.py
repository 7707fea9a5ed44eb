"""A published detector as ONNX nodes: `Maps` that write a graph (see _slim_onnx.py), and the graphs made of
them.

`server`: cells and the mode in, what the family's `answers` gives out. `regions`: the pyramid and the
regions of each level in, what `regions` gives out; RoIAlign is the operator of that name. Convolutions that
f16 holds exactly, as it does those of a pack, are kept so, and widened when a runtime loads the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from haversack.models.vision._detector_maps import Shapes, pads_of, side_after
from haversack.models.vision._detector_record import PREFIX, Detector

F32 = NDArray[np.float32]
FLOAT = 1
"""f32, as ONNX counts number types."""


class Node(NamedTuple):
    """A value of the graph with its sizes."""

    name: str
    channels: int
    side: int


class OnnxMaps:
    """`Maps` that add nodes to `graph`."""

    def __init__(self, graph: Any, tensors: Mapping[str, F32], shapes: Shapes) -> None:
        self.graph, self.shapes = graph, shapes
        self._tensors = tensors
        self._held: dict[str, str] = {}

    def tensor(self, name: str) -> str:
        """The constant of a tensor."""
        if name not in self._held:
            array = self._tensors[PREFIX + name]
            small = array.astype(np.float16) if array.ndim == 4 else None
            if small is not None and (small.astype(np.float32) == array).all():
                self._held[name] = self.graph.add("Cast", self.graph.constant(small, np.float16), to=FLOAT)
            else:
                self._held[name] = self.graph.constant(array)
        return self._held[name]

    def conv(
        self, x: Node, name: str, stride: int = 1, *, pad: int | None = None, same: bool = False
    ) -> Node:
        outputs, inputs, kernel, _ = self.shapes[f"{name}.weight"]
        given = [x.name, self.tensor(f"{name}.weight")]
        if f"{name}.bias" in self.shapes:
            given.append(self.tensor(f"{name}.bias"))
        pads = pads_of(x.side, kernel, stride, pad, same)
        made = self.graph.add(
            "Conv",
            *given,
            strides=[stride] * 2,
            group=x.channels // inputs,
            pads=[pads[0]] * 2 + [pads[1]] * 2,
            kernel_shape=[kernel] * 2,
        )
        return Node(made, outputs, side_after(x.side, kernel, stride, pads))

    def relu(self, x: Node) -> Node:
        return x._replace(name=self.graph.add("Relu", x.name))

    def silu(self, x: Node) -> Node:
        return x._replace(name=self.graph.add("Mul", x.name, self.graph.add("Sigmoid", x.name)))

    def pooled(self, x: Node, kernel: int, stride: int, pad: int = 0, *, same: bool = False) -> Node:
        pads = pads_of(x.side, kernel, stride, pad, same)
        made = self.graph.add(
            "MaxPool",
            x.name,
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[pads[0]] * 2 + [pads[1]] * 2,
        )
        return Node(made, x.channels, side_after(x.side, kernel, stride, pads))

    def doubled(self, x: Node) -> Node:
        made = self.graph.add(
            "Resize",
            x.name,
            "",
            self.graph.constant([1, 1, 2, 2]),
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
        return Node(made, x.channels, 2 * x.side)

    def add(self, *xs: Node) -> Node:
        total = xs[0]
        for x in xs[1:]:
            total = total._replace(name=self.graph.add("Add", total.name, x.name))
        return total

    def weighted(self, xs: Sequence[Node], name: str) -> Node:
        weights = self._tensors[PREFIX + name]
        parts = [
            x._replace(name=self.graph.add("Mul", x.name, self.graph.constant(weight)))
            for x, weight in zip(xs, weights, strict=True)
        ]
        return self.add(*parts)

    def gated(self, x: Node, inner: str, outer: str) -> Node:
        mean = Node(self.graph.add("GlobalAveragePool", x.name), x.channels, 1)
        gate = self.conv(self.silu(self.conv(mean, inner)), outer)
        return x._replace(name=self.graph.add("Mul", x.name, self.graph.add("Sigmoid", gate.name)))


def front_of(graph: Any, detector: Detector, tensors: Mapping[str, F32], picture: str, side: int) -> str:
    """The feature at the split of a picture that is normed as the split networks norm it."""
    maps = OnnxMaps(graph, tensors, detector.shapes)
    scale, shift = detector.scale_and_shift()
    x = graph.add("Mul", picture, graph.constant(scale[:, None, None]))
    x = graph.add("Add", x, graph.constant(shift[:, None, None]))
    made: str = detector.module.front(maps, Node(x, 3, side)).name
    return made


def rest_of(
    graph: Any, detector: Detector, tensors: Mapping[str, F32], split: str, side: int
) -> dict[str, Any]:
    """Adds what lies behind the split at a picture of `side`; the outputs' types and shapes by name."""
    maps = OnnxMaps(graph, tensors, detector.shapes)
    module = detector.module
    x = Node(split, detector.split, side // 4)
    said = module.answers(maps, x, module.stages(maps, x))
    outputs = {}
    for name, each in said.items():
        shape = [each.channels, each.side, each.side]
        graph.add("Reshape", each.name, graph.constant(shape, np.int64), name=name)
        outputs[name] = ("float32", shape)
    return outputs


def regions_onnx(graph: Any, detector: Detector, tensors: Mapping[str, F32], side: int) -> bytes | None:
    """The regions' graph, for a family that has one."""
    module = detector.module
    if not hasattr(module, "regions"):
        return None
    channels = detector.shapes["smooth.0.weight"][0]
    pooled: list[str] = []
    inputs: dict[str, Any] = {}
    for level, name in enumerate(module.PYRAMID):
        size = side // (4 << level)
        inputs[name] = ("float32", [1, channels, size, size])
        inputs[f"rois_{name}"] = ("float32", [f"n{level}", 4])
        count = graph.add("Gather", graph.add("Shape", f"rois_{name}"), graph.constant([0], np.int64))
        which = graph.add("Expand", graph.constant([0], np.int64), count)
        pooled.append(
            graph.add(
                "RoiAlign",
                name,
                f"rois_{name}",
                which,
                mode="avg",
                output_height=module.POOLED,
                output_width=module.POOLED,
                sampling_ratio=module.SAMPLES,
                spatial_scale=size / side,
            )
        )
    x = Node(graph.add("Concat", *pooled, axis=0), channels, module.POOLED)
    said = module.regions(OnnxMaps(graph, tensors, detector.shapes), x)
    outputs = {}
    for name, each in said.items():
        graph.add("Identity", each.name, name=name)
        outputs[name] = ("float32", ["n", each.channels, 1, 1])
    made: bytes = graph.finish("regions", inputs, outputs)
    return made
