"""Networks for tests: the real checkpoints where they are, and small ones made up."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from haversack.models.graph._ir import (
    Add,
    AveragePool,
    Clamp,
    Conv2d,
    DepthwiseConv2d,
    FullyConnected,
    Graph,
    Mean,
    Pad,
    Quantization,
    Reshape,
    Tensor,
    out_size,
)


def data(*parts: str) -> Path:
    """A file of the shared data; the test skips where it is absent."""
    folder = os.environ.get("HAVERSACK_DATA")
    path = Path(folder or "/nowhere").joinpath(*parts)
    if not path.is_file():
        pytest.skip(f"shared data absent: {'/'.join(parts)}")
    return path


class Maker:
    """A random int8 graph, layer by layer."""

    def __init__(self, seed: int, size: int = 8, channels: int = 3) -> None:
        self.random = np.random.default_rng(seed)
        self.tensors = {"x": Tensor("x", (size, size, channels), "int8", Quantization((0.02,), -3))}
        self.constants: dict[str, np.ndarray] = {}
        self.ops: list = []
        self.at = "x"

    def wrote(self, shape: tuple[int, ...], scale: float, zero: int) -> str:
        name = f"y{len(self.ops)}"
        self.tensors[name] = Tensor(name, shape, "int8", Quantization((scale,), zero))
        return name

    def conv(
        self, outputs: int, kernel: int = 1, stride: int = 1, depthwise: bool = False, scale: float = 0.05
    ) -> str:
        height, width, channels = self.tensors[self.at].shape
        pad = (kernel - 1) // 2
        sizes = [out_size(size, kernel, stride, (pad, pad)) for size in (height, width)]
        shape = (kernel, kernel, channels) if depthwise else (outputs, kernel, kernel, channels)
        count = channels if depthwise else outputs
        scales = tuple(float(each) for each in self.random.uniform(0.002, 0.01, count))
        x = self.tensors[self.at].quantization
        assert x is not None
        layer = f"layer{len(self.ops)}"
        weight = self.random.integers(-127, 128, shape).astype(np.int8)
        bias = self.random.integers(-2000, 2000, count).astype(np.int32)
        self.tensors[f"{layer}.weight"] = Tensor(
            f"{layer}.weight", shape, "int8", Quantization(scales, 0, 2 if depthwise else 0)
        )
        sums = Quantization(tuple(x.scale * each for each in scales), 0, 0)
        self.tensors[f"{layer}.bias"] = Tensor(f"{layer}.bias", (count,), "int32", sums)
        self.constants |= {f"{layer}.weight": weight, f"{layer}.bias": bias}
        y = self.wrote((*sizes, count), scale, int(self.random.integers(-20, 20)))
        kind = DepthwiseConv2d if depthwise else Conv2d
        pads = ((pad, pad), (pad, pad))
        self.ops.append(
            kind(
                self.at, f"{layer}.weight", f"{layer}.bias", y, -128, 127, stride=(stride, stride), pads=pads
            )
        )
        self.at = y
        return y

    def add(self, other: str, scale: float = 0.2) -> str:
        y = self.wrote(self.tensors[self.at].shape, scale, 5)
        self.ops.append(Add(other, self.at, y, -128, 127))
        self.at = y
        return y

    def pool(self, size: int) -> str:
        codes = self.tensors[self.at].quantization
        height, width, channels = self.tensors[self.at].shape
        y = f"y{len(self.ops)}"
        self.tensors[y] = Tensor(y, (height // size, width // size, channels), "int8", codes)
        self.ops.append(AveragePool(self.at, y, (size, size), (size, size), low=-128, high=127))
        self.at = y
        return y

    def mean(self, scale: float = 0.04) -> str:
        y = self.wrote((self.tensors[self.at].shape[-1],), scale, -2)
        self.ops.append(Mean(self.at, y))
        self.at = y
        return y

    def padded(self) -> str:
        shape, codes = self.tensors[self.at].shape, self.tensors[self.at].quantization
        y = f"y{len(self.ops)}"
        self.tensors[y] = Tensor(y, (shape[0] + 1, shape[1] + 2, shape[2]), "int8", codes)
        self.ops.append(Pad(self.at, y, ((0, 1), (1, 1), (0, 0))))
        self.at = y
        return y

    def relu(self) -> str:
        codes = self.tensors[self.at].quantization
        assert codes is not None
        y = f"y{len(self.ops)}"
        self.tensors[y] = Tensor(y, self.tensors[self.at].shape, "int8", codes)
        self.ops.append(Clamp(self.at, y, codes.zero, 127))
        self.at = y
        return y

    def dense(self, outputs: int) -> str:
        flat = self.tensors[self.at]
        if len(flat.shape) > 1:
            y = f"y{len(self.ops)}"
            self.tensors[y] = Tensor(y, (flat.size,), "int8", flat.quantization)
            self.ops.append(Reshape(self.at, y))
            self.at = y
        layer = f"layer{len(self.ops)}"
        scales = (0.004,)
        x = flat.quantization
        assert x is not None
        self.tensors[f"{layer}.weight"] = Tensor(
            f"{layer}.weight", (outputs, flat.size), "int8", Quantization(scales, 0)
        )
        self.tensors[f"{layer}.bias"] = Tensor(
            f"{layer}.bias", (outputs,), "int32", Quantization((x.scale * scales[0],), 0)
        )
        self.constants |= {
            f"{layer}.weight": self.random.integers(-127, 128, (outputs, flat.size)).astype(np.int8),
            f"{layer}.bias": self.random.integers(-2000, 2000, outputs).astype(np.int32),
        }
        y = self.wrote((outputs,), 0.1, 0)
        self.ops.append(FullyConnected(self.at, f"{layer}.weight", f"{layer}.bias", y, -128, 127))
        self.at = y
        return y

    def graph(self) -> Graph:
        return Graph(
            "made", self.tensors, tuple(self.ops), ("x",), (self.at,), self.constants, tuple(self.constants)
        )


def residual_net(seed: int = 0) -> Graph:
    """Convolutions of three kinds, a sum, a mean over windows, a classifier."""
    made = Maker(seed)
    first = made.conv(6, 3, 2)
    made.conv(12, 1)
    made.conv(12, 3, 1, depthwise=True, scale=0.1)
    made.conv(6, 1, scale=0.2)
    made.add(first)
    made.conv(8, 3, 1)
    made.conv(8, 5, 2, depthwise=True, scale=0.1)
    made.pool(2)
    made.dense(5)
    return made.graph()


def other_net(seed: int = 0) -> Graph:
    """The operations that the first lacks."""
    made = Maker(seed)
    made.conv(6, 3, 1)
    made.padded()
    made.conv(8, 1, scale=0.3)
    made.relu()
    made.mean(0.2)
    made.dense(7)
    made.dense(4)
    return made.graph()
