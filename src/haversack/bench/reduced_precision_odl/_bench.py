"""What the rows of this bench share: what they watch, networks, the emitted C in this process."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.bench._harness import Bench
from haversack.embed.train import Kernels, Training, TrainPlan, build_training_graph
from haversack.models.graph._ir import Clamp, Conv2d, FullyConnected, Graph, Mean, Op, Tensor

Array = npt.NDArray[Any]

FILES = (
    "embed/halves.py",
    "embed/train.py",
    "embed/train_kernels.py",
    "embed/_train_*.py",
    "embed/kernels/back_ops.c.j2",
    "embed/kernels/half.c.j2",
    "embed/kernels/train_forward.c.j2",
    "embed/kernels/_numbers.j2",
    "embed/templates/train*.j2",
    "models/graph/autodiff.py",
    "models/graph/plan.py",
    "bench/_compiler.py",
    "bench/reduced_precision_odl/*.py",
)

bench = Bench("reduced-precision-odl", FILES, number=11)

FAST = ("-std=c99", "-O3", "-march=native", "-ffp-contract=off", "-shared", "-fPIC", "-w")
KERNELS = Kernels(32, 1, 32, 32)
"""Fast on processors with wide registers; every kernel gives the same bits."""


def resnet8() -> Graph:
    """The trained ResNet8 of MLPerf Tiny in floats. Raises Unavailable where it is absent."""
    from haversack.bench._spelling_cnn import data
    from haversack.models.graph.litert import load_litert

    return load_litert(data(Path("models") / "mlperf-tiny" / "pretrainedResnet.tflite"))


def small_cnn(
    size: int = 8, classes: int = 10, widths: tuple[int, ...] = (8, 16, 16), seed: int = 0
) -> Graph:
    """Three 3 x 3 convolutions with ReLU, the second at stride 2, the mean, a classifier; drawn by He."""
    rng = np.random.default_rng([seed, 0x3C])
    tensors = {"x": Tensor("x", (size, size, 1), "f32")}
    constants: dict[str, Array] = {}
    ops: list[Op] = []
    x, channels, side = "x", 1, size
    for number, width in enumerate(widths):
        stride = 2 if number == 1 else 1
        side = (side - 1) // stride + 1
        weight, bias, y = (f"conv{number}.{part}" for part in ("weight", "bias", "y"))
        drawn = rng.normal(size=(width, 3, 3, channels)) * np.sqrt(2 / (9 * channels))
        constants |= {weight: drawn.astype(np.float32), bias: np.zeros(width, np.float32)}
        tensors |= {name: Tensor(name, constants[name].shape, "f32") for name in (weight, bias)}
        tensors |= {name: Tensor(name, (side, side, width), "f32") for name in (y, f"relu{number}")}
        pads = ((1, 1), (1, 1))
        ops += [
            Conv2d(x, weight, bias, y, stride=(stride, stride), pads=pads),
            Clamp(y, f"relu{number}", 0.0),
        ]
        x, channels = f"relu{number}", width
    weights = (rng.normal(size=(classes, channels)) / np.sqrt(channels)).astype(np.float32)
    constants |= {"dense.weight": weights, "dense.bias": np.zeros(classes, np.float32)}
    tensors |= {name: Tensor(name, constants[name].shape, "f32") for name in ("dense.weight", "dense.bias")}
    tensors |= {"mean": Tensor("mean", (channels,), "f32"), "y": Tensor("y", (classes,), "f32")}
    ops += [Mean(x, "mean"), FullyConnected("mean", "dense.weight", "dense.bias", "y")]
    return Graph("small-cnn", tensors, tuple(ops), ("x",), ("y",), constants, tuple(constants))


class Compiled:
    """A network that learns, as emitted C in this process."""

    def __init__(self, graph: Graph, training: Training, folder: Path) -> None:
        from haversack.embed._host import run

        self.plan: TrainPlan = build_training_graph(graph, folder, training, count=1).plan
        library = folder / "network.so"
        run(["gcc", *FAST, folder / "network.c", "-o", library, "-lm"])
        self.lib = ctypes.CDLL(str(library))
        self.lib.nn_train_step.restype = ctypes.c_float
        self.lib.nn_train_step.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_float]
        self.lib.nn_forward.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        self.outputs = self.plan.pass_graph.tensors[self.plan.pass_graph.outputs[0]].size
        self.lib.nn_train_reset()

    def reset(self) -> None:
        """What was compiled in, anew."""
        self.lib.nn_train_reset()

    def step(self, x: Array, label: int, rate: float) -> float:
        """One step; the loss before it."""
        found: float = self.lib.nn_train_step(x.ctypes.data, ctypes.byref(ctypes.c_int32(label)), rate)
        return found

    def classes(self, inputs: Array) -> Array:
        """The class of each row."""
        out, found = np.zeros(self.outputs, np.float32), np.zeros(len(inputs), np.int64)
        for number, row in enumerate(inputs):
            self.lib.nn_forward(row.ctypes.data, out.ctypes.data)
            found[number] = int(out.argmax())
        return found
