"""Networks of MCUNet's tiny training as graphs: int8 convolutions, sums, a mean, a classifier.

Source: the checkpoints that formats/mcu_pickle.py reads (MobileNetV2, MCUNet, ProxylessNAS).
What is here: every layer becomes one convolution whose bounds are the whole range of its codes (ReLU6 is
nothing but the bound: zero -128, scale 6/255); zeros around pictures are put in after the zero point is
taken off, (k - 1) // 2 on each side; the mean over the picture keeps its codes, halves go to the even one.
What we changed: biases at the ends of 32 bits (those of dead channels) are moved off by what products can
add, so that no sum overflows; it moves no code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from haversack.formats.mcu_pickle import Activations, McuLayer, McuNetwork, read_mcu
from haversack.models.graph._integer import with_headroom
from haversack.models.graph._ir import (
    Add,
    AveragePool,
    Conv2d,
    DepthwiseConv2d,
    Graph,
    Op,
    Quantization,
    Reshape,
    Tensor,
    out_size,
)

INPUT = "picture"


def load_mcu(path: str | Path) -> Graph:
    """The graph in a file. Raises UserError or DamagedFileError for what is none."""
    place = Path(path)
    return graph_of(read_mcu(place), place.stem)


def graph_of(network: McuNetwork, name: str) -> Graph:
    """The graph of a network: input i8 [size, size, 3], output i8 [classes]."""
    made = _Making()
    codes = network.first.x
    made.tensor(INPUT, (network.size, network.size, 3), codes)
    x = made.layer("first_conv", network.first, INPUT)
    for number, block in enumerate(network.blocks):
        begin = x
        for layer_name, layer in zip(block.names, block.layers, strict=True):
            x = made.layer(f"block{number}.{layer_name}", layer, x)
        if block.residual is not None:
            y = made.tensor(f"block{number}.sum", made.tensors[x].shape, block.residual)
            made.ops.append(Add(begin, x, y, -128, 127))
            x = y
    height, width, channels = made.tensors[x].shape
    codes = network.classifier.x
    mean = made.tensor("mean", (1, 1, channels), codes)
    made.ops.append(AveragePool(x, mean, (height, width), (1, 1), low=-128, high=127, rounding="even"))
    logits = made.layer("classifier", network.classifier, mean)
    flat = made.tensor("logits", (made.tensors[logits].shape[-1],), network.classifier.y)
    made.ops.append(Reshape(logits, flat))
    return Graph(
        name, made.tensors, tuple(made.ops), (INPUT,), (flat,), made.constants, tuple(made.constants)
    )


class _Making:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.constants: dict[str, Any] = {}
        self.ops: list[Op] = []

    def tensor(self, name: str, shape: tuple[int, ...], codes: Activations) -> str:
        self.tensors[name] = Tensor(name, shape, "int8", Quantization((codes.scale,), codes.zero))
        return name

    def constant(self, name: str, values: Any, dtype: str, codes: Quantization) -> str:
        self.tensors[name] = Tensor(name, values.shape, dtype, codes)
        self.constants[name] = values
        return name

    def layer(self, name: str, layer: McuLayer, x: str) -> str:
        """Add a convolution; the name of what it writes."""
        scales = tuple(float(each) for each in layer.scales)
        kernel = layer.kernel
        if layer.depthwise:
            weight, axis = np.ascontiguousarray(layer.weight[:, 0].transpose(1, 2, 0)), 2
        else:
            weight, axis = np.ascontiguousarray(layer.weight.transpose(0, 2, 3, 1)), 0
        bias = with_headroom(layer.bias, weight, axis)
        sums = tuple(layer.x.scale * each for each in scales)
        weight_name = self.constant(f"{name}.weight", weight, "int8", Quantization(scales, 0, axis))
        bias_name = self.constant(f"{name}.bias", bias, "int32", Quantization(sums, 0, 0))
        pad = (kernel - 1) // 2
        pads = ((pad, pad), (pad, pad))
        height, width, _ = self.tensors[x].shape
        sizes = tuple(out_size(size, kernel, layer.stride, (pad, pad)) for size in (height, width))
        y = self.tensor(f"{name}.y", (*sizes, len(bias)), layer.y)
        kind = DepthwiseConv2d if layer.depthwise else Conv2d
        stride = (layer.stride, layer.stride)
        self.ops.append(kind(x, weight_name, bias_name, y, -128, 127, stride=stride, pads=pads))
        return y
