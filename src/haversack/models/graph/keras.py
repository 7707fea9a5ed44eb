"""Keras networks as graphs of floats: dense, convolution, pooling, normalisation, GRU, LSTM, SimpleRNN.

Source: Keras' documented layers (formats/keras_h5.py reads the files). Weights are turned to the graph's
layouts (a convolution's kernel from [height, width, inputs, outputs] to [outputs, height, width, inputs]);
batch normalisation is folded into the linear layer before it, or, where none is, becomes a depthwise
convolution of size 1; ReLU and ReLU6 become bounds; dropout and noise are nothing. Padding `same` is
TensorFlow's: what is left over goes to the end.

A recurrent layer over one step, or a stateful one, carries its hidden state from pass to pass. `hard_sigmoid`
is 0.2 x + 0.5 in files of Keras 2 and x / 6 + 0.5 in those of Keras 3.
Limits: chains; shapes without None; no dilation, no groups, no masks, no bidirectional layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError, nearest_name
from haversack.formats.keras_h5 import KerasLayer, KerasModel, read_keras
from haversack.models.graph._ir import (
    NO_PADS,
    AveragePool,
    Conv2d,
    DepthwiseConv2d,
    FullyConnected,
    Graph,
    Linear,
    MaxPool,
    Mean,
    Op,
    Reshape,
    Tensor,
    out_size,
)
from haversack.models.graph.series import Activation, Recurrent
from haversack.models.series.activations import FUNCTIONS

Array = npt.NDArray[Any]
SYSTEM = 18

CELL_GATES = {"gru": 3, "lstm": 4, "simple_rnn": 1}


def load_keras(path: str | Path) -> Graph:
    """The graph in a file. Raises UserError for what is not supported, naming the layer; DamagedFileError."""
    place = Path(path)
    return graph_of(read_keras(place), place.stem)


def graph_of(model: KerasModel, name: str) -> Graph:
    """The graph of a network, floats in, floats out."""
    if any(size is None for size in model.input_shape):
        shown = ", ".join("?" if size is None else str(size) for size in model.input_shape)
        raise UserError(
            f"{name} takes inputs of the shape ({shown}), whose sizes are not all fixed; save it with an "
            f"Input of "
            "fixed sizes.",
            field="model",
            given=shown,
        )
    made = _Making(model.version)
    made.tensor("input", tuple(int(size or 0) for size in model.input_shape))
    made.last = "input"
    for layer in model.layers:
        rule = RULES.get(layer.kind)
        if rule is None:
            nearest = nearest_name(layer.kind, RULES)
            hint = f"; did you mean {nearest}?" if nearest else ""
            raise UserError(
                f"the layer {layer.name} is a {layer.kind}, which is not supported (supported: "
                f"{', '.join(sorted(RULES))}){hint}",
                field="model",
                given=layer.kind,
                nearest=nearest,
            )
        for key, values in layer.arrays.items():
            if not np.isfinite(values).all():
                raise UserError(
                    f"{key} of the layer {layer.name} holds numbers that are not finite; train it again.",
                    field="model",
                    given=layer.name,
                )
        try:
            rule(made, layer)
        except (KeyError, ValueError, IndexError, TypeError) as error:
            raise UserError(
                f"the layer {layer.name} ({layer.kind}) does not fit its arrays or its input: {error}.",
                field="model",
                given=layer.name,
            ) from error
    return Graph(
        name,
        made.tensors,
        tuple(made.ops),
        ("input",),
        (made.last,),
        made.constants,
        tuple(made.constants),
    )


class _Making:
    def __init__(self, version: str) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.constants: dict[str, Array] = {}
        self.ops: list[Op] = []
        self.last = ""
        self.sixth = version.startswith("3")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensors[self.last].shape

    def tensor(self, name: str, shape: tuple[int, ...]) -> str:
        while name in self.tensors:
            name += "'"
        if not all(size > 0 for size in shape):
            raise ValueError(f"{name} would have the shape {shape}")
        self.tensors[name] = Tensor(name, shape, "f32")
        return name

    def constant(self, name: str, values: Array) -> str:
        name = self.tensor(name, values.shape)
        self.constants[name] = np.ascontiguousarray(values, np.float32)
        return name

    def add(self, op: Op) -> None:
        self.ops.append(op)
        self.last = op.writes[0]

    def reshaped(self, layer: str, shape: tuple[int, ...]) -> None:
        if shape != self.shape:
            if math.prod(shape) != math.prod(self.shape):
                raise ValueError(f"{self.shape} does not become {shape}")
            x = self.last
            self.add(Reshape(x, self.tensor(f"{layer}.shape", shape)))

    def function(self, given: Any) -> str:
        """The name of an activation, however it is written down."""
        name = (
            given.get("config", {}).get("name", given.get("class_name")) if isinstance(given, dict) else given
        )
        name = "linear" if name is None else str(name).lower()
        if name == "hard_sigmoid" and self.sixth:
            name = "hard_sigmoid_sixth"
        if name not in FUNCTIONS:
            nearest = nearest_name(name, FUNCTIONS)
            raise UserError(
                f"the activation {name!r} is not supported (supported: {', '.join(sorted(FUNCTIONS))}).",
                field="model",
                given=name,
                nearest=nearest,
            )
        return name

    def activated(self, layer: str, name: str) -> None:
        """Put a function behind the last operation, as its bounds where they say the same."""
        if name == "linear":
            return
        before = self.ops[-1] if self.ops else None
        if (
            name in ("relu", "relu6")
            and isinstance(before, Linear)
            and before.y == self.last
            and math.isinf(before.low)
        ):
            high = 6.0 if name == "relu6" else math.inf
            self.ops[-1] = _bounded(before, 0.0, high)
            return
        self.add(Activation(self.last, self.tensor(f"{layer}.{name}", self.shape), name))

    def flattened_picture(self, layer: str) -> bool:
        """Make a series [steps, features] a picture of one row; whether it was one."""
        if len(self.shape) == 2:
            self.reshaped(layer, (1, *self.shape))
            return True
        if len(self.shape) != 3:
            raise ValueError(f"its input has the shape {self.shape}")
        return False


def _bounded(op: Linear, low: float, high: float) -> Linear:
    return replace(op, low=low, high=high)


def _pair(value: Any, series: bool) -> tuple[int, int]:
    """A size or stride along a picture; one along a series stands in the second place."""
    numbers = [int(each) for each in value] if isinstance(value, list | tuple) else [int(value)]
    if series:
        return (1, numbers[0])
    return (numbers[0], numbers[-1])


def _pads(
    mode: str, sizes: tuple[int, ...], kernel: tuple[int, int], stride: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    if mode == "valid":
        return NO_PADS
    if mode == "causal":
        return ((0, 0), (kernel[1] - 1, 0))
    if mode != "same":
        raise ValueError(f"padding {mode!r}")
    found = []
    for size, k, s in zip(sizes, kernel, stride, strict=True):
        total = max((-(-size // s) - 1) * s + k - size, 0)
        found.append((total // 2, total - total // 2))
    return (found[0], found[1])


def _window(made: _Making, kernel: tuple[int, int], stride: tuple[int, int], mode: str) -> tuple[Any, Any]:
    """Pads, and height and width that a window gives on the last tensor."""
    pads = _pads(mode, made.shape[:2], kernel, stride)
    sizes = tuple(out_size(made.shape[i], kernel[i], stride[i], pads[i]) for i in range(2))
    return pads, sizes


def _dense(made: _Making, layer: KerasLayer) -> None:
    kernel = layer.arrays["kernel"]
    bias = _bias(made, layer, kernel.shape[1])
    if len(made.shape) == 1:
        if kernel.shape[0] != made.shape[0]:
            raise ValueError(f"{kernel.shape[0]} inputs for a tensor of {made.shape[0]}")
        weight = made.constant(f"{layer.name}.weight", kernel.T)
        y = made.tensor(f"{layer.name}.y", (kernel.shape[1],))
        made.add(FullyConnected(made.last, weight, bias, y))
    else:
        shape = made.shape
        made.reshaped(layer.name, (1, math.prod(shape[:-1]), shape[-1]))
        _convolve(made, layer, kernel[None, None], bias, (1, 1), "valid")
        made.reshaped(f"{layer.name}.back", (*shape[:-1], kernel.shape[1]))
    made.activated(layer.name, made.function(layer.config.get("activation")))


def _bias(made: _Making, layer: KerasLayer, count: int) -> str | None:
    if not layer.config.get("use_bias", True):
        return None
    bias = layer.arrays["bias"]
    if bias.shape != (count,):
        raise ValueError(f"a bias of the shape {bias.shape} for {count} outputs")
    return made.constant(f"{layer.name}.bias", bias)


def _convolve(
    made: _Making, layer: KerasLayer, kernel: Array, bias: str | None, stride: tuple[int, int], mode: str
) -> None:
    """`kernel` [height, width, inputs, outputs]."""
    if kernel.shape[2] != made.shape[2]:
        raise ValueError(f"{kernel.shape[2]} inputs for a tensor of {made.shape[2]}")
    pads, sizes = _window(made, (kernel.shape[0], kernel.shape[1]), stride, mode)
    weight = made.constant(f"{layer.name}.weight", kernel.transpose(3, 0, 1, 2))
    y = made.tensor(f"{layer.name}.y", (*sizes, kernel.shape[3]))
    made.add(Conv2d(made.last, weight, bias, y, stride=stride, pads=pads))


def _conv(made: _Making, layer: KerasLayer) -> None:
    config, series = layer.config, layer.kind.endswith("1D")
    spread = config.get("dilation_rate", 1)
    if any(int(each) != 1 for each in (spread if isinstance(spread, list | tuple) else [spread])):
        raise ValueError(f"dilation {spread}, 1 is supported")
    if int(config.get("groups", 1)) != 1:
        raise ValueError(f"{config['groups']} groups, 1 is supported")
    if config.get("data_format", "channels_last") == "channels_first":
        raise ValueError("channels_first, channels_last is supported")
    made.flattened_picture(layer.name)
    stride, mode = _pair(config.get("strides", 1), series), config.get("padding", "valid")
    if layer.kind == "DepthwiseConv2D":
        kernel = layer.arrays.get("depthwise_kernel", layer.arrays.get("kernel"))
        if kernel is None or kernel.shape[3] != 1 or kernel.shape[2] != made.shape[2]:
            raise ValueError("a depthwise kernel with one output a channel is supported")
        bias = _bias(made, layer, kernel.shape[2])
        pads, sizes = _window(made, kernel.shape[:2], stride, mode)
        weight = made.constant(f"{layer.name}.weight", kernel[..., 0])
        y = made.tensor(f"{layer.name}.y", (*sizes, kernel.shape[2]))
        made.add(DepthwiseConv2d(made.last, weight, bias, y, stride=stride, pads=pads))
    else:
        kernel = layer.arrays["kernel"]
        kernel = kernel[None] if series else kernel
        _convolve(made, layer, kernel, _bias(made, layer, kernel.shape[3]), stride, mode)
    made.activated(layer.name, made.function(config.get("activation")))
    if series:
        made.reshaped(f"{layer.name}.series", made.shape[1:])


def _pool(made: _Making, layer: KerasLayer) -> None:
    config, series = layer.config, layer.kind.endswith("1D")
    size = _pair(config["pool_size"], series)
    stride = size if config.get("strides") is None else _pair(config["strides"], series)
    made.flattened_picture(layer.name)
    pads, sizes = _window(made, size, stride, config.get("padding", "valid"))
    y = made.tensor(f"{layer.name}.y", (*sizes, made.shape[2]))
    kind = MaxPool if layer.kind.startswith("Max") else AveragePool
    made.add(kind(made.last, y, size, stride, pads))
    if series:
        made.reshaped(f"{layer.name}.series", made.shape[1:])


def _global_pool(made: _Making, layer: KerasLayer) -> None:
    made.flattened_picture(layer.name)
    made.add(Mean(made.last, made.tensor(f"{layer.name}.y", made.shape[2:])))


def _flatten(made: _Making, layer: KerasLayer) -> None:
    made.reshaped(layer.name, (math.prod(made.shape),))


def _reshape(made: _Making, layer: KerasLayer) -> None:
    goal = [int(each) for each in layer.config["target_shape"]]
    if -1 in goal:
        rest = -math.prod(goal)
        goal[goal.index(-1)] = math.prod(made.shape) // rest
    made.reshaped(layer.name, tuple(goal))


def _activation(made: _Making, layer: KerasLayer) -> None:
    name = {"ReLU": "relu", "Softmax": "softmax"}.get(layer.kind)
    if layer.kind == "ReLU" and layer.config.get("max_value") is not None:
        if float(layer.config["max_value"]) != 6.0:
            raise ValueError(f"a ReLU that ends at {layer.config['max_value']}, 6 is supported")
        name = "relu6"
    made.activated(layer.name, name or made.function(layer.config.get("activation")))


def _normalise(made: _Making, layer: KerasLayer) -> None:
    """Fold gamma (x - mean) / sqrt(variance + epsilon) + beta into the layer before, or do it as a layer."""
    held = layer.arrays
    mean, variance = held["moving_mean"].astype(float), held["moving_variance"].astype(float)
    gamma, beta = held.get("gamma", np.ones_like(mean)), held.get("beta", np.zeros_like(mean))
    factor = gamma / np.sqrt(variance + float(layer.config.get("epsilon", 1e-3)))
    shift = beta - mean * factor
    before = made.ops[-1] if made.ops else None
    unbounded = isinstance(before, Linear) and math.isinf(before.low) and math.isinf(before.high)
    if isinstance(before, Linear) and unbounded and before.y == made.last:
        weight = made.constants[before.weight]
        depthwise = isinstance(before, DepthwiseConv2d)
        spread = factor if depthwise else factor.reshape(-1, *[1] * (weight.ndim - 1))
        made.constants[before.weight] = (weight * spread).astype(np.float32)
        old = 0.0 if before.bias is None else made.constants[before.bias]
        if before.bias is None:
            bias = made.constant(f"{layer.name}.bias", shift)
            made.ops[-1] = replace(before, bias=bias)
        else:
            made.constants[before.bias] = (old * factor + shift).astype(np.float32)
        return
    shape = made.shape
    made.reshaped(layer.name, (1, math.prod(shape[:-1]), shape[-1]))
    weight_name = made.constant(f"{layer.name}.weight", factor[None, None])
    bias_name = made.constant(f"{layer.name}.bias", shift)
    y = made.tensor(f"{layer.name}.y", made.shape)
    made.add(DepthwiseConv2d(made.last, weight_name, bias_name, y))
    made.reshaped(f"{layer.name}.back", shape)


def _recurrent(made: _Making, layer: KerasLayer) -> None:
    config, held = layer.config, layer.arrays
    cell = {"GRU": "gru", "LSTM": "lstm", "SimpleRNN": "simple_rnn"}[layer.kind]
    for key in ("go_backwards", "return_state", "time_major"):
        if config.get(key):
            raise ValueError(f"{key} is not supported")
    kernel, recurrent = held["kernel"], held["recurrent_kernel"]
    units, gates = recurrent.shape[0], CELL_GATES[cell]
    if len(made.shape) != 2 or kernel.shape != (made.shape[1], gates * units):
        raise ValueError(f"a kernel of the shape {kernel.shape} for a series of the shape {made.shape}")
    after = cell == "gru" and bool(config.get("reset_after", False))
    wanted = (2, gates * units) if after else (gates * units,)
    bias = held["bias"] if config.get("use_bias", True) else np.zeros(wanted, np.float32)
    if bias.shape != wanted or recurrent.shape[1] != gates * units:
        raise ValueError(f"a bias of the shape {bias.shape} where reset_after={after} has {wanted}")
    steps = made.shape[0]
    sequences = bool(config.get("return_sequences", False))
    gate = made.function(config.get("recurrent_activation", "sigmoid")) if cell != "simple_rnn" else "sigmoid"
    y = made.tensor(f"{layer.name}.y", (steps, units) if sequences else (units,))
    made.add(
        Recurrent(
            made.last,
            made.constant(f"{layer.name}.kernel", kernel),
            made.constant(f"{layer.name}.recurrent", recurrent),
            made.constant(f"{layer.name}.bias", bias),
            y,
            cell,
            made.function(config.get("activation", "tanh")),
            gate,
            steps == 1 or bool(config.get("stateful")),
            sequences,
        )
    )


def _nothing(made: _Making, layer: KerasLayer) -> None:
    return


RULES: dict[str, Callable[[_Making, KerasLayer], None]] = {
    "Activation": _activation,
    "AveragePooling1D": _pool,
    "AveragePooling2D": _pool,
    "BatchNormalization": _normalise,
    "Conv1D": _conv,
    "Conv2D": _conv,
    "Dense": _dense,
    "DepthwiseConv2D": _conv,
    "Dropout": _nothing,
    "Flatten": _flatten,
    "GRU": _recurrent,
    "GaussianNoise": _nothing,
    "GlobalAveragePooling1D": _global_pool,
    "GlobalAveragePooling2D": _global_pool,
    "InputLayer": _nothing,
    "LSTM": _recurrent,
    "MaxPooling1D": _pool,
    "MaxPooling2D": _pool,
    "ReLU": _activation,
    "Reshape": _reshape,
    "SimpleRNN": _recurrent,
    "Softmax": _activation,
    "SpatialDropout1D": _nothing,
    "SpatialDropout2D": _nothing,
}
